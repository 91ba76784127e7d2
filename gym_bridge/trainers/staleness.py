"""Admission of groups by age, so that none is thrown away for being stale. B = groups of a batch, k = max_staleness, in batches.

A group that starts after b batches may train in batches b to b + k. At most (k + 1) B groups are between start and training, so
that each can be trained in time; of those that are whole, a batch takes the oldest, and waits for what would be too old later.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Age:
    """A group between its start and its training."""

    number: int
    """Its place in the order of starts."""
    started: int
    """Batches that had been trained when it started."""
    whole: bool = False
    """All of its rollouts have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StalenessWindow:
    """The bound of a run."""

    batch_size: int
    max_staleness: int

    def room(self, under_way: int) -> int:
        """How many groups may start beside those `under_way` to their training, those of the coming batch among them."""
        return max(0, (self.max_staleness + 1) * self.batch_size - under_way)

    def choose(self, ages: Collection[Age], *, batch: int, count: int) -> list[int] | None:
        """Numbers of the `count` groups that join batch number `batch`, which then is full; None while it must wait for others.

        `ages` are the groups that are in no batch yet. Fewer than `count` are chosen where all are whole and there are no more.
        """
        whole = sorted((one for one in ages if one.whole), key=lambda one: (one.started, one.number))
        chosen = whole[:count]
        if len(chosen) < min(count, len(ages)):
            return None
        left = [one for one in ages if one not in chosen]
        return [one.number for one in chosen] if self._can_train(left, batch + 1) else None

    def _can_train(self, left: Sequence[Age], batch: int) -> bool:
        """True when every group can be trained in time, `batch` being the next."""
        deadlines = sorted(one.started + self.max_staleness for one in left)
        return all(
            place < (deadline - batch + 1) * self.batch_size for place, deadline in enumerate(deadlines)
        )  # groups up to a deadline fit into the batches up to it
