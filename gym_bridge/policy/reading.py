"""What is read off a model for a trained token: its log-prob, a score or a value. N = trained tokens of a microbatch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gym_bridge.policy.failures import memory_told
from gym_bridge.policy.family import ModelFamily, values_at
from gym_bridge.policy.importing import head_of
from gym_bridge.policy.loading import SCORE
from gym_bridge.policy.packing import Pack, assign_units, pack
from gym_bridge.schemas.policy_settings import PolicySettings
from gym_bridge.schemas.seams import Head
from gym_bridge.schemas.tokens import TrainingSequence

if TYPE_CHECKING:
    from gym_bridge.policy.placement import Placement

Reading = Head | Literal["value"]
"""As `Head`; `value` is the scalar head at the state before a trained token: a score of all before it."""


def head_for(reading: Reading) -> Head:
    """The head of the model that it is read off."""
    return "lm" if reading == "lm" else "scalar"


def open_module(family: ModelFamily, directory: Path, *, device: torch.device, reading: Reading) -> PreTrainedModel:
    """The model of a directory in float32; values begin with a head of zeros where that is a language model.

    Raises PolicyError as the family does.
    """
    module = family.load(directory, device=device, head=head_for(reading))
    if reading == "value" and head_of(directory) == "lm":
        torch.nn.init.zeros_(module.get_parameter(SCORE))
    return module


def token_values(family: ModelFamily, module: PreTrainedModel, packed: Pack, reading: Reading) -> tuple[Tensor, Tensor | None]:
    """Log-probs [N] and entropies [N] of the trained tokens, or with the scalar head their scores [N] alone."""
    hidden = family.hidden(module, packed)
    return values_at(family, module, packed, hidden, "trained" if reading == "scalar" else "predictors", head_for(reading))


@torch.no_grad()
def sequence_values(
    sequences: Sequence[TrainingSequence],
    read: Callable[[Pack], tuple[Tensor, Tensor | None]],
    *,
    settings: PolicySettings,
    placement: "Placement",
) -> list[Tensor]:
    """For each sequence what `read` says of its trained tokens [n], on the CPU, without gradient.

    Raises PolicyError when memory runs out.
    """
    found: dict[int, Tensor] = {}
    units, sharing = [(one,) for one in sequences], settings.prefix_sharing
    plan = assign_units(units, max_tokens=settings.microbatch_tokens, share_prefixes=sharing, multiple_of=placement.num_shares)
    for batch, counts in placement.dealt(plan):
        part = [sequences[index] for index in batch]
        packed = pack(
            part,
            share_prefixes=sharing,
            device=placement.device,
            multiple_of=placement.token_multiple,
            share=placement.token_share,
        )
        with memory_told(part, settings, packed_tokens=packed.num_tokens):
            values, _ = read(packed)
        if counts:
            found |= zip(batch, values.cpu().split([one.num_trained for one in part]), strict=True)
    everywhere = {index: values for one in placement.gathered(found) for index, values in one.items()}
    return [everywhere[index] for index in range(len(sequences))]
