"""How numbers are spread: quartiles, and histograms with round edges."""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import polars as pl
from pydantic import model_validator

from gym_bridge.config import StrictModel

NUM_BINS = 20
"""A histogram has about half as many bins to a few more."""
MAX_MEASURED = 1e100
"""Numbers beyond this are left out, like infinite ones: their sums and spans overflow."""
TAIL = 3
"""Whole numbers of which the highest is more than so many times the 99th percentile have an open last bin."""


class Distribution(StrictModel):
    """Where numbers lie. Quartiles between two numbers are interpolated."""

    count: int
    """How many numbers there are."""
    mean: float
    """Their arithmetic mean."""
    min: float
    """The lowest."""
    lower_quartile: float
    """A quarter lies below."""
    median: float
    """Half lies below."""
    upper_quartile: float
    """Three quarters lie below."""
    max: float
    """The highest."""


class Histogram(StrictModel):
    """How many numbers lie between neighbouring edges: at or above the lower one and below the upper one, in the last bin of
    numbers that are not whole also at the upper one."""

    whole: bool
    """The numbers are whole; edges then stand at halves where each number has a bin of its own."""
    edges: list[float]
    """Ascending, round, one more than there are bins."""
    scored: list[int]
    """Of the rollouts with a reward, by bin. One more than there are bins when the last stands for all beyond the last edge."""
    used: list[int] | None = None
    """Of those that are in the output, by the same bins; null where no difference is made."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.scored) not in (len(self.edges) - 1, len(self.edges)) or len(self.used or self.scored) != len(self.scored):
            raise ValueError(f"{len(self.edges)} edges do not fit {len(self.scored)} counts")
        return self


class Measure(StrictModel):
    """One quantity, of all rollouts with a reward and of those that are in the output."""

    scored: Distribution | None
    """Over the rollouts with a reward; null when none has a value."""
    used: Distribution | None
    """Over the rollouts in the output; null when none has a value."""
    histogram: Histogram | None
    """Of both; null when no rollout has a value."""


def measure(scored: pl.Series, used: pl.Series) -> Measure:
    """The spread of one column, over the rollouts with a reward and over those used."""
    return Measure(scored=distribution(scored), used=distribution(used), histogram=histogram(scored, used))


def distribution(values: pl.Series) -> Distribution | None:
    """Where `values` lie; nulls, NaN and numbers beyond MAX_MEASURED are passed over. None when nothing is left."""
    numbers = _numbers(values)
    if not numbers.size:
        return None
    low, lower, median, upper, high = (float(one) for one in np.quantile(numbers, (0, 0.25, 0.5, 0.75, 1)))
    return Distribution(
        count=numbers.size,
        mean=float(numbers.mean()),
        min=low,
        lower_quartile=lower,
        median=median,
        upper_quartile=upper,
        max=high,
    )


def histogram(scored: pl.Series, used: pl.Series | None = None) -> Histogram | None:
    """The counts of `scored`, and of `used`, over common bins; None when there is nothing to count."""
    numbers, whole = _numbers(scored), scored.dtype.is_integer()
    if not numbers.size:
        return None
    edges = _whole_edges(numbers) if whole else _edges(float(numbers.min()), float(numbers.max()))
    num_counts = len(edges) if whole and numbers.max() >= edges[-1] else len(edges) - 1
    return Histogram(
        whole=whole,
        edges=edges,
        scored=_counts(numbers, edges, num_counts),
        used=None if used is None else _counts(_numbers(used), edges, num_counts),
    )


def _numbers(values: pl.Series) -> np.ndarray:
    numbers = values.drop_nulls().cast(pl.Float64).to_numpy()
    return numbers[np.abs(numbers) <= MAX_MEASURED]


def _counts(numbers: np.ndarray, edges: Sequence[float], num_counts: int) -> list[int]:
    """`num_counts` is one more than there are bins when the last is open."""
    places = np.searchsorted(np.asarray(edges), numbers, side="right") - 1
    return np.bincount(np.minimum(places, num_counts - 1), minlength=num_counts).tolist()


def _whole_edges(numbers: np.ndarray) -> list[float]:
    low, high = float(numbers.min()), float(numbers.max())
    usual = max(float(np.quantile(numbers, 0.99, method="higher")), low + NUM_BINS // 2)
    high = usual if high > TAIL * usual else high
    if high - low <= NUM_BINS:
        return [low - 0.5 + number for number in range(int(high - low) + 2)]
    step = max(1.0, _round_step((high - low) / NUM_BINS))
    return [step * number for number in range(math.floor(low / step), math.floor(high / step) + 2)]


def _edges(low: float, high: float) -> list[float]:
    magnitude = max(abs(low), abs(high))
    if high - low <= max(1e-9 * magnitude, 1 / MAX_MEASURED):
        widening = magnitude / 2 if magnitude > 1e-9 else 0.5
        return [low - widening, high + widening]
    step = _round_step((high - low) / NUM_BINS)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    # Rounded, so that 3 * 0.1 is the 0.3 that the rewards have. Rounding of the quotient may have lost a hair at either end.
    edges = [round(step * number, digits) for number in range(first, last + 1)]
    return [min(edges[0], low), *edges[1:-1], max(edges[-1], high)]


def _round_step(width: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is no less than `width`."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= width * (1 - 1e-9))
