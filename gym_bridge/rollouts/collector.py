"""Plays many rollouts side by side; every one ends as a row with a reward or as a typed failure."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from gym_bridge.rollouts.attempts import Unit
from gym_bridge.rollouts.concurrency import Concurrency
from gym_bridge.rollouts.plan import PlannedRollout, plan
from gym_bridge.rollouts.players import MAX_REFUSALS, Player
from gym_bridge.rollouts.task_feed import TaskFeed
from gym_bridge.schemas.rollouts import Group, Rollout, Row
from gym_bridge.schemas.seams import AttemptTold

STARTS_AT_ONCE = 16
"""Units that start in one turn of the event loop: 10,000 at once kept it from all else for seconds."""


class RolloutCollector:
    """The collector over a player: which rollouts are in flight, and in what order they come out.

    `cohorts` starts, fails and retries the rollouts of a task together, for verifiers that answer only once all siblings have
    arrived. `preflight` plays the first one alone, and the next two when it fails, so that a wrong setting costs little.
    `beside` runs beside the play, until it is cancelled.
    """

    def __init__(
        self,
        player: Player,
        *,
        concurrency: Concurrency,
        cohorts: bool = False,
        preflight: bool = False,
        beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    ):
        self._player, self._concurrency, self._beside = player, concurrency, beside
        self._cohorts, self._preflight = cohorts, preflight
        self._num_ended, self._one_succeeded = 0, False
        self._draining = False
        self._flight: _InFlight | None = None

    async def groups(
        self, tasks: Iterable[Row], *, group_size: int, told: AttemptTold | None = None
    ) -> AsyncGenerator[Group, None]:
        """The group of every task, in order of completion; failed members are in it. `told` hears of every attempt as it ends.

        A task's rollouts are numbered from its `_ng_rollout_index`, or from 0. `tasks` may be a `TaskFeed`; then the groups go on
        until the generator is closed. Raises ServerError when a server is gone.
        """
        last: dict[int, list[Rollout]] = defaultdict(list)
        retried: dict[int, list[Rollout]] = defaultdict(list)
        feed = tasks if isinstance(tasks, TaskFeed) else None
        planned = plan(tasks, num_repeats=group_size) if feed is None else feed.planned(group_size)
        async with aclosing(self._ended(planned, feed)) as attempts:
            async for attempt in attempts:
                group = attempt.unit[0].group
                (last if attempt.is_last else retried)[group] += attempt.rollouts
                if told is not None:
                    told(attempt.rollouts, len(attempt.unit) if attempt.is_last else 0)
                if len(last[group]) == group_size:
                    yield _group(last.pop(group), retried.pop(group, []))

    async def attempts(self, planned: Iterable[PlannedRollout]) -> AsyncGenerator[Sequence[Rollout], None]:
        """Every attempt at what is planned, when it ends; those at the members of a cohort come out together.

        `planned` is read as rollouts finish. Raises ServerError when a server is gone or turns us away.
        """
        async with aclosing(self._ended(planned)) as attempts:
            async for attempt in attempts:
                if attempt.rollouts:
                    yield attempt.rollouts

    async def rollouts(self, planned: Iterable[PlannedRollout]) -> AsyncGenerator[Rollout, None]:
        """The same, one by one."""
        async with aclosing(self.attempts(planned)) as attempts:
            async for attempt in attempts:
                for rollout in attempt:
                    yield rollout

    def drain(self) -> None:
        """Start no further rollout; those in flight end as they will."""
        self._draining = True

    def call_off(self) -> None:
        """Start no further rollout, and call off those in flight; what has ended still comes out."""
        self._draining = True
        if self._flight is not None:
            self._flight.call_off()

    async def close(self) -> None:
        """Release connections."""
        await self._player.close()

    async def _ended(
        self, planned: Iterable[PlannedRollout | None], feed: TaskFeed | None = None
    ) -> AsyncGenerator["_EndedAttempt", None]:
        units, flight = _Units(planned, cohorts=self._cohorts), _InFlight(self._player)
        self._flight = flight
        if feed is not None:
            feed.wake = flight.wake
        beside_it = [asyncio.create_task(one()) for one in (self._player.watch, *self._beside)]
        for task in beside_it:
            task.add_done_callback(flight.see)
        try:
            while True:
                num_started = self._start(units, flight)
                if not flight.running and feed is None:
                    return
                if num_started == STARTS_AT_ONCE and flight.ended.empty():
                    await asyncio.sleep(0)
                    continue
                for attempt in await flight.next_ended():
                    self._see(attempt)
                    yield attempt
                if flight.error is not None:
                    raise flight.error
        finally:
            for task in (*beside_it, *flight.running):
                task.cancel()
            await asyncio.gather(*beside_it, *flight.running, return_exceptions=True)

    def _start(self, units: "_Units", flight: "_InFlight") -> int:
        """Start what may be started, at most STARTS_AT_ONCE units; returns how many."""
        for count in range(0 if self._draining else STARTS_AT_ONCE):
            unit = units.take(room=self._limit() - flight.num_rollouts, alone=not flight.running)
            if unit is None:
                return count
            flight.start(unit)
        return 0 if self._draining else STARTS_AT_ONCE

    def _limit(self) -> int:
        alone = self._preflight and not self._one_succeeded and self._num_ended < MAX_REFUSALS
        return 1 if alone else self._concurrency.limit

    def _see(self, attempt: "_EndedAttempt") -> None:
        self._num_ended += attempt.is_last
        for rollout in attempt.rollouts:
            self._one_succeeded |= rollout.failure is None
            self._concurrency.ended(rollout)


@dataclass(frozen=True, slots=True)
class _EndedAttempt:
    """An attempt at a unit, with a rollout for each member; the last one ends the unit, and has none when it was called off."""

    unit: Unit
    rollouts: Sequence[Rollout]
    is_last: bool


class _InFlight:
    """The units that are being played, and the attempts at them that have ended since somebody asked."""

    def __init__(self, player: Player):
        self._player = player
        self.running: dict[asyncio.Task[Sequence[Rollout]], Unit] = {}
        self.ended: asyncio.Queue[_EndedAttempt | asyncio.Task[Sequence[Rollout]] | None] = asyncio.Queue()
        self.num_rollouts = 0
        self.error: BaseException | None = None
        """What ended the play."""

    def start(self, unit: Unit) -> None:
        """Play a unit."""
        retried = partial(self._retried, unit)
        task = asyncio.create_task(self._player.play(unit, retried))
        task.add_done_callback(self.ended.put_nowait)
        self.running[task] = unit
        self.num_rollouts += len(unit)

    async def next_ended(self) -> list[_EndedAttempt]:
        """The attempt that ended next; beside one that ends the play by its `error` all that have ended, for they would be lost.

        None where `wake` was called.
        """
        found = [await self.ended.get()]
        attempts = self._taken(found)
        while self.error is not None and not self.ended.empty():
            attempts += self._taken([self.ended.get_nowait()])
        return attempts

    def wake(self) -> None:
        """There may be more to start."""
        self.ended.put_nowait(None)

    def see(self, beside: asyncio.Task[None]) -> None:
        """What ran beside the play has ended: an error of it ends the play."""
        if not beside.cancelled() and (error := beside.exception()) is not None:
            self.error = self.error or error
            self.wake()

    def _retried(self, unit: Unit, rollouts: Sequence[Rollout]) -> None:
        self.ended.put_nowait(_EndedAttempt(unit, rollouts, is_last=False))

    def _taken(self, found: Sequence[_EndedAttempt | asyncio.Task[Sequence[Rollout]] | None]) -> list[_EndedAttempt]:
        """Attempts out of the queue; the units that they end are in flight no more."""
        return [self._attempt(one) for one in found if one is not None]

    def _attempt(self, ended: _EndedAttempt | asyncio.Task[Sequence[Rollout]]) -> _EndedAttempt:
        if isinstance(ended, _EndedAttempt):
            return ended
        unit = self.running.pop(ended)
        self.num_rollouts -= len(unit)
        error = None if ended.cancelled() else ended.exception()
        self.error = self.error or error
        rollouts = [] if ended.cancelled() or error is not None else ended.result()
        return _EndedAttempt(unit, rollouts, is_last=True)

    def call_off(self) -> None:
        """Cancel what has not ended."""
        for task in self.running:
            task.cancel()


class _Units:
    """The planned rollouts as units, of which the next one can be seen before it is taken."""

    def __init__(self, planned: Iterable[PlannedRollout | None], *, cohorts: bool):
        """`planned` may give None while it is dry."""
        units = _by_group(planned) if cohorts else (None if one is None else (one,) for one in planned)
        self._source: Iterator[Unit | None] = iter(units)
        self._next: deque[Unit] = deque()

    def take(self, *, room: int, alone: bool) -> Unit | None:
        """The next unit where it fits into `room`; a cohort larger than that is played once nothing else runs (`alone`)."""
        if room < 1 and not alone:
            return None
        if not self._next:
            unit = next(self._source, None)
            if unit is None:
                return None
            self._next.append(unit)
        return self._next.popleft() if alone or len(self._next[0]) <= room else None


def _by_group(planned: Iterable[PlannedRollout | None]) -> Iterator[Unit | None]:
    cohort: list[PlannedRollout] = []
    for one in planned:
        if cohort and (one is None or one.group != cohort[0].group):
            yield tuple(cohort)
            cohort = []
        if one is None:
            yield None
        else:
            cohort.append(one)
    if cohort:
        yield tuple(cohort)


def _group(members: list[Rollout], retried: list[Rollout]) -> Group:
    return Group(
        task_index=members[0].key.task_index,
        rollouts=tuple(sorted(members, key=lambda one: one.key)),
        retried=tuple(sorted(retried, key=lambda one: (one.key, one.attempt))),
    )
