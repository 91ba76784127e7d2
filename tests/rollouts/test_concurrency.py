"""How many rollouts are in flight when nobody says: a scripted clock, and a server whose rate stops growing."""

import asyncio
import heapq
import math
from collections.abc import Callable, Iterator

import pytest

from gym_bridge.rollouts.attempts import Unit
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import AutoConcurrency, FixedConcurrency
from gym_bridge.rollouts.plan import PlannedRollout
from gym_bridge.rollouts.players import Retried
from gym_bridge.schemas.rollouts import Failure, FailureType, Rollout, RolloutKey

GOOD = Rollout(key=RolloutKey(0, 0), attempt=0, row={"reward": 1.0, "gym_bridge": {}})


def failed(kind: FailureType) -> Rollout:
    """An attempt that failed."""
    return Rollout(key=RolloutKey(0, 0), attempt=0, row={}, failure=Failure(type=kind, message=""))


class Scripted:
    """An AutoConcurrency on a clock of its own."""

    def __init__(self, *, largest: int = 4096, pressure: Callable[[], float] = lambda: 0.0):
        self.now = 0.0
        self.auto = AutoConcurrency(largest=largest, pressure=pressure, clock=lambda: self.now)

    def window(self, rate: float, *, failures: int = 0, kind: FailureType = FailureType.MODEL) -> int:
        """One window in which as many attempts end as may be in flight, evenly, at `rate` a second; the limit after it."""
        begun, count = self.now, max(self.auto.limit, math.ceil(rate))  # a window takes a second at least
        for number in range(count):
            self.now = begun + (number + 1) / rate * (1 + 1e-9)
            self.auto.ended(failed(kind) if number < failures else GOOD)
        return self.auto.limit


def test_it_grows_by_half_while_the_rate_rises():
    script = Scripted()
    assert script.auto.limit == 16
    assert [script.window(rate) for rate in (100, 150, 220, 330)] == [24, 36, 54, 81]


def grown(script: Scripted, rates: list[float]) -> list[int]:
    """Limits after windows at `rates`."""
    return [script.window(rate) for rate in rates]


def test_a_step_that_brought_nothing_is_taken_back_and_tried_again_eight_windows_later():
    script = Scripted()
    assert grown(script, [100, 104]) == [24, 16]
    assert grown(script, [100] * 8) == [16] * 8
    assert script.window(100) == 24


NOT_OF_LOAD = [FailureType.INVALID_ROW, FailureType.CONTEXT_OVERFLOW, FailureType.CANCELLED]


@pytest.mark.parametrize("kind", [kind for kind in FailureType if kind not in NOT_OF_LOAD])
def test_it_backs_off_when_over_a_tenth_of_a_window_failed(kind: FailureType):
    script = Scripted()
    assert script.window(20, failures=2) == 24
    script = Scripted()
    assert script.window(20, failures=3, kind=kind) == 11  # 0.7 of 16
    assert grown(script, [20] * 8) == [11] * 8
    assert script.window(20) == 17


@pytest.mark.parametrize("kind", NOT_OF_LOAD)
def test_failures_that_no_load_can_cause_do_not_count(kind: FailureType):
    assert Scripted().window(20, failures=20, kind=kind) == 24


def test_it_backs_off_before_the_endpoint_is_full_and_never_below_one():
    full = 0.89
    script = Scripted(pressure=lambda: full)
    assert script.window(20) == 24
    full = 0.9
    assert [script.window(20) for _ in range(10)] == [16, 11, 7, 4, 2, 1, 1, 1, 1, 1]


def test_it_never_passes_the_largest_limit_and_a_fixed_one_stays():
    script = Scripted(largest=20)
    assert [script.window(rate) for rate in (100, 200, 400, 800, 50)] == [20, 20, 20, 20, 20]  # slower tasks are no useless step
    assert Scripted(largest=3).auto.limit == 3
    fixed = FixedConcurrency(7)
    for _ in range(100):
        fixed.ended(failed(FailureType.MODEL))
    assert fixed.limit == 7


def test_a_window_lasts_a_second_at_least():
    script = Scripted()
    for _ in range(500):
        script.now += 0.001
        script.auto.ended(GOOD)
    assert script.auto.limit == 16


class Saturating:
    """A server that plays `at_once` rollouts side by side in 0.1 s each, the others wait; time is what its events say."""

    def __init__(self, *, at_once: int):
        self.now, self.in_flight, self.most_in_flight = 0.0, 0, 0
        self._free = [0.0] * at_once
        self._ends: list[tuple[float, int, asyncio.Future[None]]] = []

    async def play(self, unit: Unit, retried: Retried) -> list[Rollout]:
        """Wait for a place, then for its end."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        end = max(self.now, heapq.heappop(self._free)) + 0.1
        heapq.heappush(self._free, end)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._ends, (end, id(over), over))
        await over
        self.in_flight -= 1
        return [GOOD for _ in unit]

    async def watch(self) -> None:
        """Let time pass: to the next end, whenever nothing else is left to be done."""
        while True:
            for _ in range(10):
                await asyncio.sleep(0)
            if self._ends:
                self.now, _, over = heapq.heappop(self._ends)
                over.set_result(None)

    async def close(self) -> None:
        """Nothing to release."""


def test_against_a_server_that_takes_40_at_once_the_limit_ends_between_20_and_120():
    def planned(count: int) -> Iterator[PlannedRollout]:
        return (PlannedRollout(key=RolloutKey(number, 0), row={}) for number in range(count))

    async def run() -> tuple[int, list[int], float]:
        server = Saturating(at_once=40)
        auto = AutoConcurrency(largest=4096, clock=lambda: server.now)
        limits: list[int] = []
        async for _ in RolloutCollector(server, concurrency=auto).rollouts(planned(12_000)):
            limits.append(auto.limit)
        return server.most_in_flight, limits, server.now

    most_in_flight, limits, seconds = asyncio.run(run())
    assert len(limits) == 12_000
    assert 20 <= limits[-1] <= 120
    assert max(limits[6_000:]) <= 120
    assert most_in_flight <= 120
    assert seconds < 12_000 / 400 * 1.25  # at most a quarter slower than 40 in flight from the start to the end
