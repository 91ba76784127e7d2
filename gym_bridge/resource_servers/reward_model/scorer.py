"""A sequence-classification model and its renderer: conversations to scores. All torch of the resource servers is in here.

B = conversations of a batch, T = tokens of the longest of them.
"""

import copy
import inspect
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
        self.module = module.to(self._device).eval()
        self._pad_id: int | None = module.config.pad_token_id
        self.shares_beginnings = _keeps_keys(self.module)
        """Whether what conversations begin with together is computed once."""

    def token_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[int]:
        """A whole conversation. Raises DataError for what its renderer cannot render."""
        return self._renderer.render_ids(messages, tools=list(tools) or None)

    def scores(self, batch: Sequence[Sequence[int]]) -> list[float]:
        """The model's score of each conversation, as `transformers` computes it for that one alone.

        What conversations begin with together, such as the prompt of a group, is computed once.
        """
        found = [0.0] * len(batch)
        for shared, places in of_one_beginning(batch) if self.shares_beginnings else [(0, list(range(len(batch))))]:
            kept = self._keys(batch[places[0]][:shared]) if shared else None
            rests = [batch[place][shared:] for place in places]
            at_once = max(MOST_KEPT // shared, 1) if shared else len(rests)
            for group in of_like_lengths([len(one) for one in rests]):
                for some in (group[first : first + at_once] for first in range(0, len(group), at_once)):
                    for place, score in zip(some, self._scores_padded([rests[one] for one in some], shared, kept), strict=True):
                        found[places[place]] = score
        return found

    def _keys(self, beginning: Sequence[int]) -> Any:
        """Keys and values of the tokens that conversations begin with."""
        import torch

        with torch.inference_mode():
            return self.module(input_ids=torch.tensor([beginning], device=self._device), use_cache=True).past_key_values

    def _scores_padded(self, rests: Sequence[Sequence[int]], shared: int, kept: Any) -> list[float]:
        """Of conversations of which `shared` tokens, with their keys and values in `kept`, are not among `rests`."""
        import torch

        longest = max(map(len, rests))
        pad_id = self._padding(rests)
        ids = torch.tensor([[*one, *[pad_id] * (longest - len(one))] for one in rests], device=self._device)  # [B, T]
        lengths = torch.tensor([shared + len(one) for one in rests], device=self._device)
        mask = (torch.arange(shared + longest, device=self._device)[None] < lengths[:, None]).long()  # [B, shared + T]
        given: dict[str, Any] = {"use_cache": False}
        if kept is not None:
            own = copy.deepcopy(kept)  # which the model writes to
            own.batch_repeat_interleave(len(rests))
            given = {"past_key_values": own}
        with torch.inference_mode():
            logits = self.module(input_ids=ids, attention_mask=mask, **given).logits  # [B, 1]
        return logits[:, 0].float().tolist()

    def _padding(self, batch: Sequence[Sequence[int]]) -> int:
        """The model's own token for it; where it has none, one that ends no conversation, as transformers looks for the end."""
        if self._pad_id is not None:
            return self._pad_id
        ends = {one[-1] for one in batch}
        pad_id = next(token_id for token_id in range(len(ends) + 1) if token_id not in ends)
        self.module.config.pad_token_id = pad_id
        return pad_id


MOST_KEPT = 65_536
"""Tokens whose keys and values are held at once, at most: 2 GiB for a model of 1.5B parameters with grouped heads."""
WORTH_KEEPING = 64
"""Tokens that must be spared, at least, where a beginning is computed by itself: it is one more pass."""


def of_one_beginning(batch: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """The places of conversations in clusters, each with the number of tokens that all in it begin with: 0 where none is worth it.

    In order of their tokens, a conversation joins the cluster before it where that leaves fewer tokens to compute. Each keeps at
    least its last token to itself.
    """
    clusters: list[tuple[int, list[int]]] = []
    for place in sorted(range(len(batch)), key=lambda place: list(batch[place])):
        if clusters:
            shared, places = clusters[-1]
            common = _num_common(batch[places[-1]], batch[place])
            fewest = min(shared, common) if len(places) > 1 else common
            if (len(places) - 1) * (shared - fewest) < fewest:
                clusters[-1] = fewest, [*places, place]
                continue
        clusters.append((0, [place]))
    alone = [place for shared, places in clusters if (len(places) - 1) * shared < WORTH_KEEPING for place in places]
    found = [(shared, places) for shared, places in clusters if (len(places) - 1) * shared >= WORTH_KEEPING]
    return [*found, (0, alone)] if alone else found


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    most = min(len(first), len(second)) - 1
    return next((place for place in range(most) if first[place] != second[place]), most)


def _keeps_keys(module: Any) -> bool:
    """Whether tokens may be computed after those before them: a decoder whose keys and values transformers keeps."""
    from transformers import DynamicCache

    if "past_key_values" not in inspect.signature(module.forward).parameters:
        return False
    if getattr(module.config.get_text_config(), "use_bidirectional_attention", False):
        return False
    import torch

    with torch.inference_mode():
        told = module(input_ids=torch.tensor([[0]], device=module.device), use_cache=True).past_key_values
    return type(told) is DynamicCache


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
