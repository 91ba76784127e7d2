"""How many rollouts are in flight: a fixed number, or one that follows what the servers can take."""

import math
import time
from collections.abc import Callable
from typing import Protocol

from gym_bridge.schemas.rollouts import FailureType, Rollout

START = 16
GROWTH, RETREAT = 1.5, 0.7
WORTH_IT = 1.05
"""A step up stays when the rate rises by this factor."""
WINDOW_S = 1.0
PATIENCE = 8
"""Windows to wait after a step up that brought nothing, before the next one is tried."""
NO_OVERLOAD = frozenset({FailureType.INVALID_ROW, FailureType.CONTEXT_OVERFLOW, FailureType.CANCELLED})
"""Failures that less load would not have prevented."""
FULL = 0.9


class Concurrency(Protocol):
    """Decides how many rollouts may be in flight."""

    @property
    def limit(self) -> int:
        """Rollouts in flight at most, now."""
        ...

    def ended(self, rollout: Rollout) -> None:
        """Told of every attempt that ended."""
        ...


class FixedConcurrency:
    """Always the same number."""

    def __init__(self, limit: int):
        self.limit = limit

    def ended(self, rollout: Rollout) -> None:
        """Nothing changes."""


class AutoConcurrency:
    """Grows while the rate of finished rollouts rises, and backs off at errors and full queues.

    A window ends once as many attempts as were allowed in flight have ended, and a second has passed. When it brought more
    than 5 % over the rate before, the limit grows by half; when the growth brought nothing it is taken back and tried again
    eight windows later. When over a tenth of a window's attempts failed, or `pressure` says that the endpoint is full, the
    limit shrinks to 0.7 of itself.
    """

    def __init__(self, *, largest: int, pressure: Callable[[], float] = lambda: 0.0, clock: Callable[[], float] = time.monotonic):
        """`pressure` tells how full the endpoint is: 0 empty, 1 full."""
        self.limit = min(START, largest)
        self._largest, self._pressure, self._clock = largest, pressure, clock
        self._before: tuple[int, float] | None = None
        """Limit and rate to which a step up is compared."""
        self._rest = 0
        self._begin_window()

    def ended(self, rollout: Rollout) -> None:
        """Count one attempt; at the end of a window the limit may change."""
        self._num_ended += 1
        self._num_failed += rollout.failure is not None and rollout.failure.type not in NO_OVERLOAD
        elapsed = self._clock() - self._started
        if self._num_ended >= self.limit and elapsed >= WINDOW_S:
            self._adapt(rate=(self._num_ended - self._num_failed) / elapsed)
            self._begin_window()

    def _adapt(self, *, rate: float) -> None:
        if self._num_failed > self._num_ended / 10 or self._pressure() >= FULL:
            self.limit, self._before, self._rest = max(1, int(self.limit * RETREAT)), None, PATIENCE
        elif self._before is not None and rate < WORTH_IT * self._before[1]:
            (self.limit, _), self._before, self._rest = self._before, None, PATIENCE
        elif self._rest:
            self._rest -= 1
        elif self.limit < self._largest:
            self._before = self.limit, rate
            self.limit = min(self._largest, math.ceil(self.limit * GROWTH))
        else:
            self._before = None  # the last step has proved its worth: a rate that falls later tells nothing of it

    def _begin_window(self) -> None:
        self._started, self._num_ended, self._num_failed = self._clock(), 0, 0
