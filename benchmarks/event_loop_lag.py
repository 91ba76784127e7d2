"""How late an event loop runs what is due."""

import asyncio
import math
import time
from collections.abc import Sequence

EVERY_S = 0.010


class LagSampler:
    """Samples every event loop that runs while it is on: a timer every 10 ms notes how late it came."""

    def __init__(self) -> None:
        self.lags_s: list[float] = []
        self._is_on = True

    def switch_on(self) -> None:
        """From here on. The loop is made deep inside what is measured, so that its class is changed, for good."""
        run_forever = asyncio.SelectorEventLoop.run_forever

        def sampled(loop: asyncio.SelectorEventLoop) -> None:
            loop.call_later(EVERY_S, self._sample, loop, time.perf_counter() + EVERY_S)
            run_forever(loop)

        asyncio.SelectorEventLoop.run_forever = sampled

    def switch_off(self) -> None:
        """Sample no more."""
        self._is_on = False

    def _sample(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now = time.perf_counter()
        if self._is_on:
            self.lags_s.append(max(0.0, now - due))
            loop.call_later(EVERY_S, self._sample, loop, now + EVERY_S)


def weighted_percentile(lags_s: Sequence[float], percent: float) -> float:
    """The lag under which the loop spent `percent` of the wall time: a sample counts for the time since the one before.

    An unweighted percentile would count a stall of a second as one sample among the hundred of an idle second.
    """
    ordered = sorted(lags_s)
    total = sum(ordered) + EVERY_S * len(ordered)
    spent = 0.0
    for lag in ordered:
        spent += lag + EVERY_S
        if spent >= total * percent / 100:
            return lag
    return math.nan
