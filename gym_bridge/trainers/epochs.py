"""Offline data: the rows of one file or of several, weighted, in epochs of seeded order."""

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from gym_bridge.errors import ConfigError
from gym_bridge.policy.packing import plan_microbatches
from gym_bridge.schemas.policy_settings import PolicySettings
from gym_bridge.schemas.seams import TrainStep
from gym_bridge.tokens.sample_files import Unit
from gym_bridge.trainers.counted_steps import CountedSteps


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The units of one file among those of all files."""

    first: int
    count: int
    weight: float = 1.0
    """Passes over them in one epoch."""

    def of_epoch(self, epoch: int, *, seed: str) -> list[int]:
        """Which units an epoch has, a unit twice where it has it twice.

        The file is read round and round in one seeded order, and each epoch goes on where the one before ended: so a file of
        weight 1/4 gives another quarter each time, and all of it in four epochs.
        """
        order = list(range(self.first, self.first + self.count))
        random.Random(seed).shuffle(order)
        return [order[place % self.count] for place in self.places(epoch)]

    def places(self, epoch: int) -> range:
        """The part of that endless reading which an epoch has."""
        rows_per_epoch = Fraction(self.weight).limit_denominator(10**6) * self.count
        return range(int(epoch * rows_per_epoch), int((epoch + 1) * rows_per_epoch))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a training reads: units of one file or of several."""

    units: Sequence[Unit]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, *files: Sequence[Unit], weights: Sequence[float] | None = None) -> "Dataset":
        """The units of the files, one file after the other; without weights each is read once an epoch."""
        counts = [len(one) for one in files]
        firsts = list(accumulate(counts, initial=0))[:-1]
        rows = zip(firsts, counts, weights or [1.0] * len(files), strict=True)
        parts = tuple(Part(first=first, count=count, weight=weight) for first, count, weight in rows)
        return cls(units=[unit for file in files for unit in file], parts=parts)

    def with_units(self, units: Sequence[Unit]) -> "Dataset":
        """The same files with other units in the same places."""
        assert len(units) == len(self.units)
        return Dataset(units=units, parts=self.parts)

    def num_in_epoch(self, epoch: int) -> int:
        """How many units an epoch has."""
        return sum(len(part.places(epoch)) for part in self.parts)

    def ends_of_epochs(self, *, batch_size: int, epochs: int) -> list[int]:
        """How many steps have been taken when each epoch ends. Raises ConfigError when the weights leave no row in any epoch."""
        ends = list(accumulate(-(-self.num_in_epoch(epoch) // batch_size) for epoch in range(epochs)))
        if not ends[-1]:
            raise ConfigError("the weights of data.train leave no row in any epoch; raise them")
        return ends

    def of_epoch(self, epoch: int, *, seed: int) -> list[int]:
        """Which units an epoch has, in its order."""
        chosen = [one for number, part in enumerate(self.parts) for one in part.of_epoch(epoch, seed=f"{seed}-file-{number}")]
        chosen.sort()
        random.Random(f"{seed}-{epoch}").shuffle(chosen)
        return chosen


class EpochSource(CountedSteps):
    """Steps over `epochs` passes through a dataset, each pass in its own seeded order; the last step of a pass may be smaller."""

    counted = "num_sequences"
    """Metric that tells how many units a step has."""

    def __init__(self, data: Dataset, *, batch_size: int, epochs: int, seed: int, policy: PolicySettings, num_shares: int = 1):
        """`num_shares`: processes among which the microbatches are dealt out. Raises ConfigError when the weights leave no row in
        any epoch."""
        self.data, self.batch_size, self.seed, self.policy, self.num_shares = data, batch_size, seed, policy, num_shares
        self._begins = [0, *data.ends_of_epochs(batch_size=batch_size, epochs=epochs)]
        super().__init__(self._begins[-1])
        self._epoch: tuple[int, list[int]] = (-1, [])

    def next(self) -> TrainStep | None:
        """The next batch; None after the last epoch."""
        chosen = self.batch()
        if not chosen:
            return None
        epoch = bisect_right(self._begins, self._step) - 1
        begins, ends = self._begins[epoch], self._begins[epoch + 1]
        microbatches = plan_microbatches(
            [self.data.units[index] for index in chosen],
            max_tokens=self.policy.microbatch_tokens,
            share_prefixes=self.policy.prefix_sharing,
            multiple_of=self.num_shares,
        )
        metrics = {"epoch": epoch + (self._step - begins) / (ends - begins), self.counted: len(chosen)}
        return TrainStep(microbatches=microbatches, metrics=metrics)

    def batch(self) -> list[int]:
        """Which units the next step has; none after the last epoch."""
        if self._step >= self.total_steps:
            return []
        epoch = bisect_right(self._begins, self._step) - 1
        if self._epoch[0] != epoch:
            self._epoch = epoch, self.data.of_epoch(epoch, seed=self.seed)
        place = (self._step - self._begins[epoch]) * self.batch_size
        return self._epoch[1][place : place + self.batch_size]
