"""Who plays units of rollouts to their end: all attempts at them, in this process."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from gym_bridge.errors import ServerError
from gym_bridge.rollouts.attempts import Attempted, Attempts, Unit
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.plan import PlannedRollout
from gym_bridge.schemas.rollouts import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A planned rollout with all attempts at it; the last one is its end."""

    planned: PlannedRollout
    attempts: list[Rollout]


class Player(Protocol):
    """Plays any number of units at once."""

    async def play(self, unit: Unit) -> list[Ended]:
        """All attempts at a unit. Raises ServerError when a server is gone: attempts at it tell nothing of the rollout."""
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

    def wait_s(self, attempt: int) -> float:
        """Seconds after the failure of `attempt`, counted from 0, with jitter."""
        return min(self.max_backoff_s, self.backoff_s * 2 ** min(attempt, 30)) * random.uniform(0.5, 1.5)


class LocalPlayer:
    """Plays in this process. `close` releases the connections of the environment and of the endpoint, through `closers`."""

    def __init__(self, attempts: Attempts, *, retries: Retries = Retries(), closers: Iterable[Callable[[], Awaitable[None]]] = ()):
        self._attempts, self._retries, self._closers = attempts, retries, tuple(closers)
        self._one_succeeded = False

    async def play(self, unit: Unit) -> list[Ended]:
        """As `Player.play`. Being turned away by a server ends the play only before the first success."""
        ended = [Ended(planned=one, attempts=[]) for one in unit]
        first = max(one.first_attempt for one in unit)
        for attempt in range(first, self._retries.max_attempts):
            last = attempt + 1 >= self._retries.max_attempts
            attempted = await self._attempts.unit(unit, attempt)
            self._raise_block(attempted, last=last, num_attempts=attempt + 1 - first)
            for one, outcome in zip(ended, attempted, strict=True):
                one.attempts.append(outcome.rollout)
            failures = [one.rollout.failure for one in attempted if one.rollout.failure is not None]
            self._one_succeeded |= not failures
            if not failures or last or any(failure.terminal for failure in failures):
                break
            await asyncio.sleep(self._retries.wait_s(attempt))
        return ended

    async def watch(self) -> None:
        """Warn of stalls."""
        await self._attempts.watchdog.watch()

    async def close(self) -> None:
        """Release connections."""
        for closer in self._closers:
            await closer()

    def _raise_block(self, attempted: list[Attempted], *, last: bool, num_attempts: int) -> None:
        for one in attempted:
            if one.block is not None and (last if one.block.blocks == "gone" else not self._one_succeeded):
                raise _server_error(one.block, num_attempts)


def _server_error(block: RolloutError, num_attempts: int) -> ServerError:
    url, failure = str(block.url), block.failure
    told = "gone: " if block.blocks == "gone" else ""
    return ServerError(told + failure.message.removeprefix(f"{url}: "), url=url, status=failure.status, attempts=num_attempts)
