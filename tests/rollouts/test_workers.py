"""Several processes that play: everything comes back, a worker that dies is told, none is left behind."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
import pytest

from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import FixedConcurrency
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.plan import plan
from gym_bridge.rollouts.players import LocalPlayer, Retries
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.rollouts.workers import WorkerPool
from gym_bridge.schemas.rollouts import FailureType, Rollout
from gym_bridge.schemas.seams import Turn, TurnRequest, Usage
from tests.rollouts.stage import called, counter_task, said, serving_counter


class Counting:
    """A model that counts once and says so. Task 3 makes it fail, task 4 kills the worker where it is told to."""

    def __init__(self, *, deadly: bool):
        self.deadly = deadly

    async def turn(self, request: TurnRequest) -> Turn:
        """Call `add`, then answer."""
        if request.key.task_index == 3:
            raise ServerError("no", url="http://model")
        if request.key.task_index == 4 and self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        item = called("add", {"count": 2}) if request.key.turn == 0 else said(str(os.getpid()))
        return Turn(items=(item,), usage=Usage(input_tokens=5, output_tokens=1))

    async def close(self) -> None:
        """Nothing to release."""


def open_player(url: str, sampler: None = None, *, deadly: bool = False, max_attempts: int = 1) -> LocalPlayer:
    """What each worker plays with. It waits for an hour before a second attempt."""
    http = HttpClient()
    loop = TurnLoop(endpoint=Counting(deadly=deadly), limits=Limits(), seed=0)
    environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20.0)
    retries = Retries(max_attempts=max_attempts, backoff_s=3600.0, max_backoff_s=3600.0)
    return LocalPlayer(Attempts(environment=environment, timeout_s=20.0), retries=retries, closers=[http.close])


@asynccontextmanager
async def working(url: str, *, num_workers: int, **options: Any) -> AsyncIterator[RolloutCollector]:
    pool = WorkerPool(partial(open_player, url, **options), num_workers=num_workers)
    collector = RolloutCollector(pool, concurrency=FixedConcurrency(8))
    try:
        yield collector
    finally:
        await collector.close()


def pids_of(rollouts: list[Rollout]) -> set[int]:
    rows = [orjson.loads(one.line or b"") for one in rollouts if one.failure is None]
    return {int(row["response"]["output"][-1]["content"][0]["text"]) for row in rows}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_workers_play_everything_once_and_end():
    async def run() -> list[Rollout]:
        async with serving_counter() as (url, _), working(url, num_workers=2) as collector:
            return [one async for one in collector.rollouts(plan([counter_task()] * 12, num_repeats=2))]

    rollouts = asyncio.run(run())
    assert sorted(one.key for one in rollouts) == [(task, index) for task in range(12) for index in range(2)]
    assert {one.key.task_index: one.reward for one in rollouts} == {task: None if task == 3 else 1.0 for task in range(12)}
    assert {one.failure.type for one in rollouts if one.failure} == {FailureType.MODEL}
    good = next(one for one in rollouts if one.key == (0, 0))
    row = orjson.loads(good.line or b"")
    assert good.line is not None
    assert good.line.endswith(b"\n")
    assert (row["expected"], row["reward"], row["gym_bridge"]["num_tool_calls"]) == (5, 1.0, 1)
    assert good.row["gym_bridge"]["num_input_tokens"] == 10
    pids = pids_of(rollouts)
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert not any(map(is_alive, pids))


def test_a_worker_that_dies_ends_the_collection_with_its_exit_code():
    async def run() -> None:
        async with serving_counter() as (url, _), working(url, num_workers=1, deadly=True) as collector:
            async for _ in collector.rollouts(plan([counter_task()] * 12, num_repeats=1)):
                pass

    with pytest.raises(ServerError, match=r"a worker process died \(exit code -9\)"):
        asyncio.run(asyncio.wait_for(run(), 30))


def test_an_attempt_leaves_its_worker_when_it_ends_and_not_when_its_rollout_does():
    async def run() -> list[Rollout]:
        found: list[Rollout] = []
        async with serving_counter() as (url, _), working(url, num_workers=1, max_attempts=2) as collector:
            async for rollout in collector.rollouts(plan([counter_task()] * 4, num_repeats=1)):
                found.append(rollout)
                if len(found) == 4:
                    collector.call_off()  # task 3 waits for its second attempt
        return found

    found = asyncio.run(asyncio.wait_for(run(), 30))
    assert sorted((one.key.task_index, one.attempt, one.reward) for one in found) == [
        *((task, 0, 1.0) for task in range(3)),
        (3, 0, None),
    ]
    failure = next(one for one in found if one.failure)
    assert orjson.loads(failure.line or b"")["_ng_attempt_index"] == 0


def never(rollouts: Sequence[Rollout]) -> None:
    raise AssertionError("nothing is tried again here")


def test_a_worker_that_dies_idle_is_noticed_by_the_next_unit():
    async def run() -> None:
        async with serving_counter() as (url, _):
            pool = WorkerPool(partial(open_player, url), num_workers=2)
            try:
                first, second = plan([counter_task()], num_repeats=2)
                await pool.play((first,), never)
                for _, process in pool._workers:
                    process.kill()
                    await asyncio.to_thread(process.wait)
                await asyncio.wait_for(pool.play((second,), never), 20)
            finally:
                await pool.close()

    with pytest.raises(ServerError, match=r"a worker process died \(exit code -9\)"):
        asyncio.run(run())


def refuse_to_open(sampler: None) -> LocalPlayer:
    raise ConfigError("--header: expected 'Name: value'")


def test_what_keeps_a_worker_from_opening_is_told_as_it_is():
    async def run() -> None:
        pool = WorkerPool(refuse_to_open, num_workers=1)
        try:
            await asyncio.wait_for(pool.play(tuple(plan([counter_task()], num_repeats=1)), never), 20)
        finally:
            await pool.close()

    with pytest.raises(ConfigError, match="--header: expected"):
        asyncio.run(run())
