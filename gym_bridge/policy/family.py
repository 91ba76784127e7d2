"""What the PyTorch backend must know of an architecture, and where it learns it from transformers.

T = packed tokens, H = hidden size, V = vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from gym_bridge.config import load_object
from gym_bridge.errors import ConfigError, PolicyError, nearest
from gym_bridge.policy.attention import KERNEL, BlockRows, block_rows, flex_mask
from gym_bridge.policy.context_parallel import TokenShare
from gym_bridge.policy.dtensors import local
from gym_bridge.policy.head import OutputHead, token_logprobs, vocabulary_part
from gym_bridge.policy.loading import SCORE, load_module, outline
from gym_bridge.policy.packing import Pack, Place, pack
from gym_bridge.schemas.policy_settings import PolicySettings
from gym_bridge.schemas.seams import Head
from gym_bridge.schemas.tokens import TrainingSequence

FULL, SLIDING = "full_attention", "sliding_attention"
TOLERANCE = 1e-3
"""In nats, by how much a packed log-prob may differ from that of the sequence alone before a model is refused."""


class ModelFamily(Protocol):
    """An architecture as the PyTorch backend uses it; `policy.family` names a class of these methods, called with (settings)."""

    def load(self, directory: Path, *, device: torch.device, head: Head) -> PreTrainedModel:
        """The model of a Hugging Face directory, in evaluation mode and float32. Raises PolicyError where packing is wrong."""
        ...

    def hidden(self, module: PreTrainedModel, packed: Pack) -> Tensor:
        """[T, H] hidden states after the last norm, equal to those of the sequences alone; of the tokens that are `packed.here`."""
        ...

    def output_head(self, module: PreTrainedModel) -> OutputHead:
        """How hidden states become logits; the tensors are those that train."""
        ...

    def score_weight(self, module: PreTrainedModel) -> Tensor:
        """[H] weight of the scalar head."""
        ...


def open_family(settings: PolicySettings) -> ModelFamily:
    """The family that `policy.family` names. Raises ConfigError for an unknown name, and for attention that the device lacks."""
    if settings.family == "hf":
        return HFFamily(settings)
    if ":" not in settings.family:
        raise ConfigError(f"policy.family={settings.family!r}: unknown family{nearest(settings.family, ['hf'])}")
    return load_object(settings.family)(settings)


class HFFamily:
    """Decoders of transformers whose layers attend to everything before a token or to a window of it.

    A model is tried on a few tokens when it is loaded: one whose packed sequences differ from the same ones alone is refused,
    such as one with a recurrent state, with a bias by distance within the row or with an unknown factor on its logits.
    """

    def __init__(self, settings: PolicySettings):
        on_cuda = torch.device(settings.device).type == "cuda"
        if settings.attention == "flex" and not on_cuda:
            raise ConfigError(
                f"policy.attention=flex: FlexAttention has no backward pass on {settings.device}; set policy.attention=sdpa"
            )
        self._flex = on_cuda and settings.attention != "sdpa"

    def load(self, directory: Path, *, device: torch.device, head: Head) -> PreTrainedModel:
        """The model of a Hugging Face directory, in evaluation mode and float32. Raises PolicyError where packing is wrong."""
        module = load_module(directory, device=device, head=head, attention="eager")
        _refuse_unpackable(module, directory)
        self.check(module, head, directory)
        return module

    def outline(self, directory: Path, *, head: Head) -> PreTrainedModel:
        """As `load`, without values: on the meta device. What comes to hold them is to be given to `check`."""
        module = outline(directory, head=head)
        _refuse_unpackable(module, directory)
        return module

    def check(
        self,
        module: PreTrainedModel,
        head: Head,
        directory: Path,
        *,
        tolerance: float = TOLERANCE,
        multiple_of: int = 1,
        share: TokenShare | None = None,
    ) -> None:
        """Raises PolicyError when short packed sequences get other values than the same ones alone, by more than `tolerance`.

        `multiple_of`: of which the tokens are a multiple in each call of the module. `share`: those of a pack that are computed
        here."""
        layout = {"multiple_of": multiple_of, "share": share}
        _refuse_wrong_values(self, module, head, directory, tolerance=tolerance, layout=layout)

    def hidden(self, module: PreTrainedModel, packed: Pack) -> Tensor:
        """[T, H] hidden states after the last norm."""
        return hidden_states(module, packed, _masks(module, packed, flex=self._flex))

    def output_head(self, module: PreTrainedModel) -> OutputHead:
        """How hidden states become logits, as the configuration tells."""
        layer: Any = module.get_output_embeddings()
        config = module.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        if divisor := getattr(config, "logits_scaling", None):
            scale = divisor if config.model_type.startswith("hyperclovax") else 1 / divisor
        softcap = getattr(config, "final_logit_softcapping", None)
        part, bias = vocabulary_part(layer.weight), getattr(layer, "bias", None)
        return OutputHead(
            weight=local(layer.weight), bias=None if bias is None else local(bias), scale=scale, softcap=softcap, part=part
        )

    def score_weight(self, module: PreTrainedModel) -> Tensor:
        """[H] weight of the scalar head."""
        return local(module.get_parameter(SCORE))[0]


Mask = BlockRows | BlockMask


def attention_kinds(module: PreTrainedModel) -> tuple[set[str], int | None]:
    """What the layers attend to, and the window of those that slide, in tokens."""
    config = module.get_decoder().config
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or [FULL if window is None else SLIDING]
    return set(layers), window


def _masks(module: PreTrainedModel, packed: Pack, *, flex: bool) -> Mask | dict[str, Mask]:
    """The mask of all layers, or by kind of attention where layers differ."""
    kinds, window = attention_kinds(module)
    build = flex_mask if flex else block_rows
    masks: dict[str, Mask] = {kind: build(packed, window=window if kind == SLIDING else None) for kind in sorted(kinds)}
    return masks if len(masks) > 1 else masks.popitem()[1]


def hidden_states(module: PreTrainedModel, packed: Pack, masks: Mask | dict[str, Mask]) -> Tensor:
    """[T, H] hidden states after the last norm, under the mask of all layers or those by kind of attention; of the tokens of this
    process."""
    found = module.get_decoder()(
        input_ids=packed.token_ids[packed.here][None],
        position_ids=packed.position_ids[packed.here][None],
        attention_mask=masks,
        use_cache=False,
    )
    return found.last_hidden_state[0]


def values_at(
    family: ModelFamily, module: PreTrainedModel, packed: Pack, hidden: Tensor, place: Place, head: Head
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [N] and entropies [N] of a pack's trained tokens, or their scores [N], read off `place`."""
    if head == "lm":
        output = family.output_head(module)
        logprobs, entropies = packed.read(hidden, place, lambda states, own: token_logprobs(states, packed.targets[own], output))
        return logprobs, entropies
    weight = family.score_weight(module)
    (scores,) = packed.read(hidden, place, lambda states, _: ((states @ weight).float(),))
    return scores, None


def _refuse_unpackable(module: PreTrainedModel, directory: Path) -> None:
    """Let the module compute attention in packs. Raises PolicyError where its architecture cannot."""
    name = type(module).__name__
    if not isinstance(module.get_decoder(), PreTrainedModel):
        raise PolicyError(f"{directory}: {name} has no decoder that transformers can name; choose a model of another family")
    kinds, _ = attention_kinds(module)
    if unknown := kinds - {FULL, SLIDING}:
        raise PolicyError(f"{directory}: sequences cannot be packed for layers of {min(unknown)}; choose a model without them")
    if not module.is_backend_compatible():
        raise PolicyError(f"{directory}: {name} has attention code of its own, which takes no packed sequences; choose another")
    module.set_attn_implementation(KERNEL)


@torch.no_grad()
def _refuse_wrong_values(
    family: HFFamily, module: PreTrainedModel, head: Head, directory: Path, *, tolerance: float, layout: dict[str, Any]
) -> None:
    """Raises PolicyError when short packed sequences get other values than the same ones alone, within a window of 4 tokens."""
    sequences = _trial(module, head, layout["multiple_of"])
    device = next(module.parameters()).device
    try:
        with _window_of(module, 4):
            packed = pack(sequences, device=device, **layout)
            hidden = hidden_states(module, packed, _masks(module, packed, flex=False))
            found, _ = values_at(family, module, packed, hidden, "trained" if head == "scalar" else "predictors", head)
            expected = torch.cat([_alone(module, one, head) for one in sequences])
    except (PolicyError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise PolicyError(f"{directory}: sequences cannot be packed for {type(module).__name__}: {error}") from error
    difference = float((found - expected).abs().max())
    if not difference <= tolerance * max(1.0, float(expected.abs().max())):
        raise PolicyError(
            f"{directory}: {type(module).__name__} gives packed sequences other values than the same alone (by {difference:.2g}); "
            "it keeps a state, biases or factors that packing does not know; choose a model of another family"
        )


def _trial(module: PreTrainedModel, head: Head, multiple_of: int) -> list[TrainingSequence]:
    """Three sequences of about 14 tokens, two of which begin alike."""
    draw = np.random.default_rng(0)
    config = module.config.get_text_config()
    pad = getattr(config, "pad_token_id", None)  # a scalar head of transformers is read before the padding
    allowed = [token for token in range(min(config.vocab_size, 1000)) if token != pad]
    first, second, other = (draw.choice(allowed, -(-size // multiple_of) * multiple_of) for size in (14, 11, 9))
    second[:6] = first[:6]
    sequences = []
    for ids in (first, second, other):
        mask = np.arange(len(ids)) >= (6 if head == "lm" else len(ids) - 1)
        sequences.append(TrainingSequence(token_ids=ids.astype(np.int32), train_mask=mask))
    return sequences


def _alone(module: PreTrainedModel, sequence: TrainingSequence, head: Head) -> Tensor:
    """Log-probs or score of one sequence by the model's own forward pass."""
    ids = torch.from_numpy(sequence.token_ids).long().to(next(module.parameters()).device)
    logits = module(input_ids=ids[None], use_cache=False).logits[0].float()
    if head == "scalar":
        return logits
    trained = torch.from_numpy(sequence.train_mask[1:]).to(ids.device)
    return torch.log_softmax(logits[:-1], dim=-1)[torch.arange(len(ids) - 1, device=ids.device), ids[1:]][trained]


@contextmanager
def _window_of(module: PreTrainedModel, window: int) -> Iterator[None]:
    """A model that has a sliding window has one of `window` tokens inside, so that a few tokens show whether it is right."""
    config = module.get_decoder().config
    before = getattr(config, "sliding_window", None)
    if before is not None:
        config.sliding_window = window
    try:
        yield
    finally:
        if before is not None:
            config.sliding_window = before
