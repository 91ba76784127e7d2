"""Who plays units of rollouts to their end: all attempts at them, in this process."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gym_bridge.errors import ServerError
from gym_bridge.rollouts.attempts import Attempted, Attempts, Unit
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.schemas.rollouts import Failure, FailureType, Rollout

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
MAX_REFUSALS = 3
BACKOFF_FACTORS = {FailureType.TIMEOUT: 0.0, FailureType.CANCELLED: 0.0, FailureType.JUDGE: 4.0}
MAX_RETRY_AFTER_S = 600.0


Retried = Callable[[Sequence[Rollout]], None]
"""Told of an attempt at a unit that is to be tried again, once it ends: a rollout for each member."""


class Player(Protocol):
    """Plays any number of units at once."""

    async def play(self, unit: Unit, retried: Retried) -> Sequence[Rollout]:
        """The last attempt at a unit, a rollout for each member; none where earlier runs made all. Those before go to `retried`.

        Raises ServerError when a server is gone: attempts at it tell nothing of the rollout.
        """
        ...

    async def watch(self) -> None:
        """Runs beside the play until it is cancelled."""
        ...

    async def close(self) -> None:
        """Release what was opened, in the event loop that played."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a rollout that fails is tried, always whole and in a fresh session."""

    max_attempts: int = 3
    backoff_s: float = 0.5
    """About how long the second attempt waits; each further one waits twice as long, at most `max_backoff_s`."""
    max_backoff_s: float = 30.0

    def wait_s(self, attempt: int, failures: Iterable[Failure] = ()) -> float:
        """Seconds after the failure of `attempt`, counted from 0, with jitter; by type, the longest of `failures` counts.

        A timeout has waited already; a judge that failed is most often one that is overrun, and gets four times as long.
        """
        factor = max((BACKOFF_FACTORS.get(failure.type, 1.0) for failure in failures), default=1.0)
        return factor * min(self.max_backoff_s, self.backoff_s * 2 ** min(attempt, 30)) * random.uniform(0.5, 1.5)


class LocalPlayer:
    """Plays in this process. `close` releases the connections of the environment and of the endpoint, through `closers`.

    A server that cannot be reached ends the play after all attempts, or, once a rollout has succeeded, when it stays away for
    `patience_s` seconds; attempts at a server that is away are not counted. One that turns us away ends it before the first
    success, when `MAX_REFUSALS` units have met it.
    """

    def __init__(
        self,
        attempts: Attempts,
        *,
        retries: Retries = Retries(),
        patience_s: float = PATIENCE_S,
        closers: Iterable[Callable[[], Awaitable[None]]] = (),
    ):
        self._attempts, self._retries, self._patience_s, self._closers = attempts, retries, patience_s, tuple(closers)
        self._one_succeeded = False
        self._num_refusals = 0
        self._away_since: float | None = None

    def trust(self) -> None:
        """A rollout has succeeded elsewhere, or earlier: what turns us away now is not a wrong setting."""
        self._one_succeeded = True

    async def play(self, unit: Unit, retried: Retried) -> Sequence[Rollout]:
        """As `Player.play`."""
        attempt = first = max(one.first_attempt for one in unit)
        num_away = 0
        while attempt < self._retries.max_attempts:
            attempted = await self._attempts.unit(unit, attempt)
            gone = next((one.error for one in attempted if one.error is not None and one.error.blocks == "gone"), None)
            if gone is not None:
                num_away += 1
                self._bear(gone, num_away=num_away, num_left=self._retries.max_attempts - first)
                await asyncio.sleep(self._retries.wait_s(num_away - 1))
                continue
            self._away_since = None
            attempt += 1
            rollouts = [one.rollout for one in attempted]
            if self._is_over(attempted) or attempt == self._retries.max_attempts:
                return rollouts
            retried(rollouts)
            failures = [one.failure for one in rollouts if one.failure is not None]
            await asyncio.sleep(max(self._retries.wait_s(attempt - 1, failures), _asked_for_s(attempted)))
        return []

    async def watch(self) -> None:
        """Warn of stalls."""
        await self._attempts.watchdog.watch()

    async def close(self) -> None:
        """Release connections."""
        for closer in self._closers:
            await closer()

    def _bear(self, gone: RolloutError, *, num_away: int, num_left: int) -> None:
        """Raises ServerError when a server has been away for too long."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            log.warning("%s is away: %s", gone.url, gone.failure.message)
        patience_ends = now - self._away_since >= self._patience_s if self._one_succeeded else num_away >= num_left
        if patience_ends:
            message = gone.failure.message.removeprefix(f"{gone.url}: ")
            raise ServerError(f"gone: {message}", url=str(gone.url), status=gone.failure.status, attempts=num_away)

    def _is_over(self, attempted: list[Attempted]) -> bool:
        """Whether there is nothing to try again. Raises ServerError for the last refusal that we take."""
        failures = [one.rollout.failure for one in attempted if one.rollout.failure is not None]
        self._one_succeeded |= not failures
        refused = next((one.error for one in attempted if one.error is not None and one.error.blocks == "refused"), None)
        if refused is None or self._one_succeeded:
            return not failures or any(failure.terminal for failure in failures)
        self._num_refusals += 1
        if self._num_refusals >= MAX_REFUSALS:
            message = refused.failure.message.removeprefix(f"{refused.url}: ")
            raise ServerError(message, url=str(refused.url), status=refused.failure.status)
        return True


def _asked_for_s(attempted: list[Attempted]) -> float:
    """How long the servers of an attempt ask to be left alone."""
    asked = [one.error.retry_after_s or 0.0 for one in attempted if one.error is not None]
    return min(MAX_RETRY_AFTER_S, max(asked, default=0.0))
