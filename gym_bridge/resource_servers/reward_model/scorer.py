"""A sequence-classification model and its renderer: conversations to scores. All torch of the resource servers is in here.

B = conversations of a batch, T = tokens of the longest of them.
"""

from collections.abc import Sequence
from typing import Any, Literal

from gym_bridge.errors import ConfigError, PolicyError, missing_extra
from gym_bridge.hub import resolve
from gym_bridge.schemas.chat import Message
from gym_bridge.tokens.renderers import load_renderer


class RewardScorer:
    """The model in `directory` (plain Hugging Face, one label), on one device. Not safe to call from two threads at once."""

    def __init__(self, name: str, *, device: str, dtype: Literal["float32", "bfloat16"], renderer: str | None):
        """Loads it. Raises ConfigError for a name that means nothing, PolicyError for a model that cannot be a reward model."""
        try:
            import torch
            from safetensors import SafetensorError
            from transformers import AutoModelForSequenceClassification
        except ImportError:
            raise missing_extra("resource server 'reward_model'", "train") from None
        directory = resolve(name)
        self._renderer = load_renderer(directory, name=renderer)
        self._device = _device(device)
        try:
            module, told = AutoModelForSequenceClassification.from_pretrained(
                directory, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise PolicyError(f"{directory}: transformers cannot load it for sequence classification: {error}") from error
        if told["missing_keys"]:
            missing = sorted(told["missing_keys"])[0]
            raise PolicyError(f"{directory}: no weights for {missing}; expected a reward model, found a model of another kind")
        if module.config.num_labels != 1:
            raise PolicyError(f"{directory}: a head with {module.config.num_labels} labels; expected a reward model, with one")
        self._module = module.to(self._device).eval()
        self._pad_id: int | None = module.config.pad_token_id

    def token_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[int]:
        """A whole conversation. Raises DataError for what its renderer cannot render."""
        return self._renderer.render_ids(messages, tools=list(tools) or None)

    def scores(self, batch: Sequence[Sequence[int]]) -> list[float]:
        """The model's score of each conversation, as `transformers` computes it for that one alone."""
        found = [0.0] * len(batch)
        for places in of_like_lengths([len(one) for one in batch]):
            for place, score in zip(places, self._scores_padded([batch[place] for place in places]), strict=True):
                found[place] = score
        return found

    def _scores_padded(self, batch: Sequence[Sequence[int]]) -> list[float]:
        import torch

        longest = max(map(len, batch))
        pad_id = self._padding(batch)
        ids = torch.tensor([[*one, *[pad_id] * (longest - len(one))] for one in batch], device=self._device)  # [B, T]
        lengths = torch.tensor([len(one) for one in batch], device=self._device)
        mask = (torch.arange(longest, device=self._device)[None] < lengths[:, None]).long()  # [B, T]
        with torch.inference_mode():
            logits = self._module(input_ids=ids, attention_mask=mask, use_cache=False).logits  # [B, 1]
        return logits[:, 0].float().tolist()

    def _padding(self, batch: Sequence[Sequence[int]]) -> int:
        """The model's own token for it; where it has none, one that ends no conversation, as transformers looks for the end."""
        if self._pad_id is not None:
            return self._pad_id
        ends = {one[-1] for one in batch}
        pad_id = next(token_id for token_id in range(len(ends) + 1) if token_id not in ends)
        self._module.config.pad_token_id = pad_id
        return pad_id


def of_like_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """The places of `lengths` in groups, each to be padded to its longest: no more than a third as many pad tokens as real ones."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if groups and lengths[place] * 4 >= lengths[groups[-1][0]] * 3:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name!r} cannot be used: {str(error).splitlines()[0]}") from error
