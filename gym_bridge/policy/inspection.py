"""What weights hold, read in blocks: how many, in which dtypes, how many are NaN or infinite."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gym_bridge.errors import PolicyError

BLOCK_ELEMENTS = 2**22
"""Elements that are held in memory at a time."""


@dataclass(slots=True, kw_only=True)
class WeightSurvey:
    """Counts over the tensors of some files."""

    num_parameters: Counter[str] = field(default_factory=Counter)
    """By dtype."""
    num_bytes: int = 0
    num_nan: int = 0
    num_infinite: int = 0
    not_finite: list[str] = field(default_factory=list)
    """Tensors with such values."""
    names: set[str] = field(default_factory=set)


def survey_weights(files: Sequence[Path]) -> WeightSurvey:
    """Read safetensors files through. Raises PolicyError for a damaged one."""
    survey = WeightSurvey()
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118, a reader and no mapping
                    survey.names.add(name)
                    _count(survey, name, _blocks(opened, name))
        except (OSError, SafetensorError) as error:
            raise PolicyError(f"{file}: no whole safetensors file: {error}") from error
    return survey


def _blocks(opened: "safe_open", name: str) -> Iterator[Tensor]:
    """A tensor's rows, as many at a time as a block holds."""
    part = opened.get_slice(name)
    shape = part.get_shape()
    if len(shape) < 2:
        yield opened.get_tensor(name)
        return
    row = max(1, torch.Size(shape[1:]).numel())
    step = max(1, BLOCK_ELEMENTS // row)
    for start in range(0, shape[0], step):
        yield part[start : start + step]


def _count(survey: WeightSurvey, name: str, blocks: Iterator[Tensor]) -> None:
    num_nan = num_infinite = 0
    for block in blocks:
        survey.num_parameters[str(block.dtype).removeprefix("torch.")] += block.numel()
        survey.num_bytes += block.nbytes
        if block.is_floating_point():
            num_nan += int(torch.isnan(block).sum())
            num_infinite += int(torch.isinf(block).sum())
    survey.num_nan, survey.num_infinite = survey.num_nan + num_nan, survey.num_infinite + num_infinite
    if num_nan or num_infinite:
        survey.not_finite.append(name)
