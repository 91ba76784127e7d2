"""Tells where a collection hangs."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable

from gym_bridge.rollouts.play import Play

STALL_S = 60.0

log = logging.getLogger(__name__)


class StallWatchdog:
    """Warns when no rollout in flight has moved for `stall_s` seconds, and names the stages at which they wait."""

    def __init__(self, *, stall_s: float = STALL_S):
        self.stall_s = stall_s
        self._in_flight: dict[int, Play] = {}

    def enter(self, play: Play) -> None:
        """`play` is in flight."""
        self._in_flight[id(play)] = play

    def leave(self, play: Play) -> None:
        """`play` has ended."""
        del self._in_flight[id(play)]

    async def watch(self) -> None:
        """Look until cancelled; one warning a stall."""
        warned_of = 0.0
        while True:
            await asyncio.sleep(self.stall_s / 4)
            moved = max((play.since for play in self._in_flight.values()), default=None)
            if moved is not None and time.monotonic() - moved >= self.stall_s and moved != warned_of:
                warned_of = moved
                log.warning("no rollout moved for %g s: %s", self.stall_s, waiting(self._in_flight.values()))


def waiting(plays: Iterable[Play]) -> str:
    """`12 wait for model, 3 wait for tool add`, the most frequent first."""
    stages = Counter(play.stage for play in plays)
    return ", ".join(
        f"{count} {'wait ' if not place else ''}for {stage}" for place, (stage, count) in enumerate(stages.most_common())
    )
