"""Groups that the policy plays as it learns: the collector runs in a thread of its own, while the trainer steps or waits."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.io.signals import interrupts_deferred
from gym_bridge.rollouts.task_feed import TaskFeed
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, Group, Rollout, RolloutKey
from gym_bridge.schemas.seams import Collector
from gym_bridge.schemas.settings import GRPOAlgorithm, OverlapSettings
from gym_bridge.tokens.logged_groups import logged_groups
from gym_bridge.trainers.experience import is_masked
from gym_bridge.trainers.group_stream import PlayedGroup
from gym_bridge.trainers.loop_thread import LoopThread
from gym_bridge.trainers.staleness import Age, StalenessWindow
from gym_bridge.trainers.task_stream import Draw, TaskStream


@dataclass(slots=True, kw_only=True)
class _UnderWay:
    """A group between its start and its training."""

    draw: Draw
    first: RolloutKey
    """Of its rollouts."""
    started: int
    """Batches that had been trained when it started."""
    version: int
    played: Group | None = None
    """Once all of its rollouts have ended."""
    taken: bool = False
    """It belongs to the batch that is being gathered."""


class FlightCount:
    """How many rollouts are in flight; `told` hears of it whenever that changes, in the thread that changes it."""

    def __init__(self, told: Callable[[int], None] = lambda _: None):
        self._told, self._count, self._lock = told, 0, threading.Lock()
        self._busy_s, self._since = 0.0, time.perf_counter()

    def add(self, count: int) -> None:
        """So many have started, or, where it is negative, ended."""
        with self._lock:
            self._account()
            self._count += count
            self._told(self._count)

    def busy_s(self) -> float:
        """Seconds in which some rollout was in flight since this was last asked."""
        with self._lock:
            self._account()
            busy, self._busy_s = self._busy_s, 0.0
        return busy

    def _account(self) -> None:
        now = time.perf_counter()
        self._busy_s += now - self._since if self._count else 0.0
        self._since = now


class OnlineGroups:
    """A `GroupStream` over a collector. As many groups are under way as `overlap.max_staleness` lets train in time.

    With a staleness of 0 a batch is played whole, and nothing while the trainer steps. Every attempt at a rollout goes to the log
    when it ends.
    """

    def __init__(
        self,
        tasks: TaskStream,
        collector: Collector,
        log: RolloutLog,
        *,
        algorithm: GRPOAlgorithm,
        overlap: OverlapSettings,
        thread: LoopThread,
        version: int = 0,
        in_flight: FlightCount | None = None,
    ):
        self.tasks, self.collector, self.log = tasks, collector, log
        self._group_size, self._overlap = algorithm.group_size, overlap
        self._in_flight = in_flight or FlightCount()
        self._window = StalenessWindow(batch_size=algorithm.tasks_per_step, max_staleness=overlap.max_staleness)
        self._thread, self._version, self._batch = thread, version, 0
        self._under_way: dict[int, _UnderWay] = {}
        self._numbers: dict[RolloutKey, int] = {}
        self._next_index: dict[int, int] = {}
        self._num_started = 0
        self._changed = threading.Condition()
        self._feed: TaskFeed | None = None
        self._play_result: Future[None] | None = None
        self._playing: asyncio.Task[None] | None = None
        self._ended = False
        self._waited_s = 0.0

    def take(self, count: int) -> list[PlayedGroup]:
        """The next `count` groups, as soon as they are whole and the others can wait; a task set never ends.

        Raises what ended the collector.
        """
        self._admit(count)
        began = time.perf_counter()
        with self._changed:
            while (chosen := self._choose(count)) is None:
                self._raise_failure()
                self._changed.wait()
            for number in chosen:
                self._under_way[number].taken = True
        self._waited_s += time.perf_counter() - began
        self._thread.run(self._sync())  # before the update that trains on them
        return [self._played(self._under_way[number]) for number in chosen]

    def stepped(self, version: int) -> None:
        """An update was made; what was taken is trained on, or dropped for good."""
        self._version = version
        with self._changed:
            taken = [number for number, one in self._under_way.items() if one.taken]
            trained = [self._under_way.pop(number) for number in taken]
        for one in trained:
            assert one.played is not None, "only whole groups are taken"
            del self._numbers[one.first]
            self.tasks.note(one.draw, [float(member.row["reward"]) for member in one.played.verified if not is_masked(member.row)])
        self._batch += bool(trained)

    def settle(self) -> None:
        """Weights are about to change: wait until no rollout is under way, unless they may change in the middle of one."""
        if self._overlap.in_flight_updates:
            return
        with self._changed:
            while any(one.played is None for one in self._under_way.values()):
                self._raise_failure()
                self._changed.wait()

    def metrics(self) -> dict[str, float]:
        """Seconds that the trainer waited for groups, and in which rollouts were in flight; groups that stand ready; pools."""
        with self._changed:
            ready = sum(one.played is not None and not one.taken for one in self._under_way.values())
        waited, self._waited_s = self._waited_s, 0.0
        counts = {"num_groups_ready": ready, "num_groups_under_way": len(self._under_way)}
        return {"rollouts_s": waited, "in_flight_s": self._in_flight.busy_s(), **counts, **self.tasks.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """Tasks, batches, and the groups that are whole and not trained on; those half played are played again."""
        with self._changed:
            whole = [one for one in self._under_way.values() if one.played is not None]
            pending = [one.draw for one in self._under_way.values() if one.played is None]
        self._thread.run(self._sync())  # the checkpoint counts on the whole ones
        groups = [
            {"draw": one.draw.state(), "first": list(one.first), "started": one.started, "version": one.version} for one in whole
        ]
        return {"tasks": self.tasks.state_dict(pending), "batch": self._batch, "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last update of `state`; whole groups come from the log again.

        Raises DataError when the log does not hold them.
        """
        self.tasks.load_state_dict(state["tasks"])
        self._batch = int(state["batch"])
        firsts = [RolloutKey(*one["first"]) for one in state["groups"]]
        groups = logged_groups(self.log, firsts, group_size=self._group_size)
        for first, one in zip(firsts, state["groups"], strict=True):
            draw = self.tasks.draw_of(one["draw"])
            started, version = int(one["started"]), int(one["version"])
            self._put(_UnderWay(draw=draw, first=first, started=started, version=version, played=groups[first]))

    def close(self) -> None:
        """End the play, and note in the log how every rollout ended; the thread and the collector belong to who opened them."""
        if self._feed is None:
            return
        self._thread.run(self._stop())
        self.log.close(self.log.ledger(self._requested()))

    def _admit(self, wanted: int) -> None:
        """Start as many groups as the bound leaves room for; the batch that is being gathered wants so many more, and of those that
        were taken for it keeps the rest of its size."""
        if self._feed is None:
            self._feed = TaskFeed()
            self._play_result = self._thread.start(self._play(self._feed))
        rows = []
        with interrupts_deferred(), self._changed:  # a task that is drawn is in the list of those under way
            to_come = sum(not one.taken for one in self._under_way.values())
            for _ in range(self._window.room(to_come + self._window.batch_size - wanted)):
                draw = self.tasks.next()
                first = RolloutKey(draw.row[TASK_INDEX], self._first_index(draw.row[TASK_INDEX]))
                self._put(_UnderWay(draw=draw, first=first, started=self._batch, version=self._version))
                rows.append({**draw.row, ROLLOUT_INDEX: first.rollout_index})
        self._in_flight.add(len(rows) * self._group_size)
        self._thread.call(self._feed.put, rows)

    def _put(self, one: _UnderWay) -> None:
        self._under_way[self._num_started] = one
        self._numbers[one.first] = self._num_started
        self._num_started += 1

    def _first_index(self, task_index: int) -> int:
        """The first rollout index of the task that no group has had."""
        first = max(self._next_index.get(task_index, 0), self.log.next_rollout_index(task_index))
        self._next_index[task_index] = first + self._group_size
        return first

    async def _play(self, feed: TaskFeed) -> None:
        self._playing = asyncio.current_task()
        try:
            async for group in self.collector.groups(feed, group_size=self._group_size, told=self._told):
                with self._changed:
                    number = self._numbers[group.rollouts[0].key]
                    self._under_way[number].played = group
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _told(self, rollouts: Sequence[Rollout], num_ended: int) -> None:
        self.log.append_group(rollouts)
        self._in_flight.add(-num_ended)

    async def _stop(self) -> None:
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.gather(self._playing, return_exceptions=True)

    def _requested(self) -> Iterator[RolloutKey]:
        """Every rollout that was ever asked for in this run."""
        yield from self.log.outcomes
        for one in self._under_way.values():
            for member in range(self._group_size):
                key = RolloutKey(one.first.task_index, one.first.rollout_index + member)
                if not self.log.is_done(key) and not self.log.num_failed_attempts(key):
                    yield key

    async def _sync(self) -> None:
        self.log.sync()

    def _choose(self, count: int) -> list[int] | None:
        ages = [
            Age(number=number, started=one.started, whole=one.played is not None)
            for number, one in self._under_way.items()
            if not one.taken
        ]
        return self._window.choose(ages, batch=self._batch, count=count)

    def _raise_failure(self) -> None:
        """Raises what ended the play."""
        if self._ended and self._play_result is not None:
            self._play_result.result()

    def _played(self, one: _UnderWay) -> PlayedGroup:
        assert one.played is not None, "only whole groups are taken"
        return PlayedGroup(group=one.played, environment=one.draw.environment, version=one.version)
