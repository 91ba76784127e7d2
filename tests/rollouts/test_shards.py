"""Collectors that connect from elsewhere: what a dead one leaves is played by another, once, and strangers are turned away."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
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
from gym_bridge.rollouts.shards import CODE, MAX_GONE, NONCE_BYTES, ShardPool
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import FailureType
from gym_bridge.schemas.seams import Turn, Usage
from gym_bridge.schemas.tokens import Completion, SamplingParams
from tests.rollouts.stage import called, counter_task, said, serving_counter

PARAMS = SamplingParams(max_tokens=1, stop_token_ids=())


class Asking:
    """A model in a shard that asks the pool's sampler which of two answers to give. Task 3 makes the first attempt fail."""

    def __init__(self, sampler):
        self.sampler = sampler

    async def turn(self, request):
        completion = await self.sampler.sample([request.key.task_index], PARAMS, key=request.key)
        item = called("add", {"count": int(completion.ids[0])}) if request.key.turn == 0 else said(str(os.getpid()))
        return Turn(items=(item,), usage=Usage(input_tokens=5, output_tokens=1))

    async def close(self):
        """Nothing to release."""


def open_player(url, max_attempts, sampler):
    http = HttpClient()
    loop = TurnLoop(endpoint=Asking(sampler), limits=Limits(), seed=0)
    environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20.0)
    retries = Retries(max_attempts=max_attempts, backoff_s=0.01)
    return LocalPlayer(Attempts(environment=environment, timeout_s=20.0), retries=retries, closers=[http.close])


class Twos:
    """Samples the token 2, after a while; raises for the first call of task 3. Counts what is asked."""

    def __init__(self, wait_s=0.0):
        self.wait_s, self.asked, self.version = wait_s, Counter(), 0

    async def sample(self, prompt_ids, params, *, key):
        self.asked[key.task_index, key.rollout_index, key.turn] += 1
        if key.task_index == 3 and key.turn == 0 and self.asked[key.task_index, key.rollout_index, 0] == 1:
            raise ServerError("no", url="http://sampler")
        await asyncio.sleep(self.wait_s)
        return Completion(ids=(2,), logprobs=np.zeros(1, dtype=np.float32), finish_reason="stop", policy_version=0)


@asynccontextmanager
async def shards(board: Path, count: int):
    started = [subprocess.Popen([sys.executable, "-c", CODE, str(board)]) for _ in range(count)]
    try:
        yield started
    finally:
        for one in started:
            one.kill()
            one.wait()


@asynccontextmanager
async def pool(url, board, sampler, *, max_attempts=1, **options):
    made = ShardPool(
        partial(open_player, url, max_attempts), board=board, host="127.0.0.1", sampler=sampler, whole_rows=True, **options
    )
    collector = RolloutCollector(made, concurrency=FixedConcurrency(8))
    try:
        yield made, collector
    finally:
        await collector.close()


def players(rollouts):
    return {one.row["response"]["output"][-1]["content"][0]["text"] for one in rollouts if one.failure is None}


def test_shards_play_everything_once_with_the_pools_sampler_and_give_whole_rows(tmp_path):
    async def run():
        sampler = Twos(wait_s=0.01)
        board = tmp_path / "board"
        async with serving_counter() as (url, _), pool(url, board, sampler) as (made, collector), shards(board, 2):
            planned = plan([counter_task()] * 12, num_repeats=2)
            first = collector.rollouts(planned)
            found = [await anext(first)]
            assert board.stat().st_mode & 0o777 == 0o600
            while made.num_shards < 2:
                await asyncio.sleep(0.05)
            return [*found, *[one async for one in first]], sampler.asked

    rollouts, asked = asyncio.run(run())
    assert sorted(one.key for one in rollouts) == [(task, index) for task in range(12) for index in range(2)]
    assert {one.key.task_index for one in rollouts if one.reward == 1.0} == {*range(12)} - {3}
    assert {one.failure.type for one in rollouts if one.failure} == {FailureType.MODEL}
    assert set(asked.values()) == {1}
    assert all(one.line for one in rollouts)
    assert not (tmp_path / "board").exists()


def test_what_a_dead_shard_leaves_is_played_again_by_those_that_come_and_told_once(tmp_path):
    told = Counter()

    async def run():
        sampler = Twos(wait_s=0.05)
        board = tmp_path / "board"
        async with (
            serving_counter() as (url, _),
            pool(url, board, sampler, max_attempts=2) as (made, collector),
            shards(board, 2) as started,
        ):
            found = []
            async for one in collector.rollouts(plan([counter_task()] * 20, num_repeats=2)):
                found.append(one)
                told[one.key, one.attempt] += 1
                if len(found) == 10:
                    started[0].send_signal(signal.SIGKILL)
                    async with asyncio.timeout(20):
                        while made.num_shards > 1:
                            await asyncio.sleep(0.01)
                    started.append(subprocess.Popen([sys.executable, "-c", CODE, str(board)]))
                if len(found) == 30:
                    started[1].send_signal(signal.SIGKILL)
            return found

    rollouts = asyncio.run(asyncio.wait_for(run(), 60))
    assert set(told.values()) == {1}
    last = {one.key: one for one in rollouts}
    assert sorted(last) == [(task, index) for task in range(20) for index in range(2)]
    assert [(one.key, one.attempt, one.failure) for one in last.values() if one.reward != 1.0] == []
    assert {one.attempt for one in last.values() if one.key.task_index == 3} == {1}


def open_deadly_player(url, max_attempts, sampler):
    class Deadly(Asking):
        async def turn(self, request):
            os.kill(os.getpid(), signal.SIGKILL)

    http = HttpClient()
    loop = TurnLoop(endpoint=Deadly(sampler), limits=Limits(), seed=0)
    return LocalPlayer(Attempts(environment=SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20.0), timeout_s=20.0))


def test_a_rollout_that_ends_every_collector_is_not_played_without_end(tmp_path):
    async def run():
        board = tmp_path / "board"
        async with serving_counter() as (url, _):
            made = ShardPool(partial(open_deadly_player, url, 1), board=board, host="127.0.0.1", sampler=Twos())
            collector = RolloutCollector(made, concurrency=FixedConcurrency(1))
            try:
                async with shards(board, MAX_GONE):
                    return [one async for one in collector.rollouts(plan([counter_task()], num_repeats=1))]
            finally:
                await collector.close()

    with pytest.raises(ServerError, match=r"5 collectors have ended while they played \(0, 0\)"):
        asyncio.run(asyncio.wait_for(run(), 60))


def test_without_any_shard_the_play_ends_and_says_where_they_are_expected(tmp_path):
    async def run():
        async with serving_counter() as (url, _), pool(url, tmp_path / "board", Twos(), patience_s=0.2) as (_, collector):
            return [one async for one in collector.rollouts(plan([counter_task()], num_repeats=1))]

    with pytest.raises(ServerError, match=r"board: no collector for 0.2 s"):
        asyncio.run(run())


def refuse_to_open(url, max_attempts, sampler):
    raise ConfigError("no renderer for this model")


def test_what_keeps_a_shard_from_playing_is_told_as_it_is(tmp_path):
    async def run():
        made = ShardPool(partial(refuse_to_open, "", 1), board=tmp_path / "board", host="127.0.0.1")
        collector = RolloutCollector(made, concurrency=FixedConcurrency(8))
        try:
            async with shards(tmp_path / "board", 1):
                return [one async for one in collector.rollouts(plan([counter_task()], num_repeats=1))]
        finally:
            await collector.close()

    with pytest.raises(ConfigError, match="no renderer for this model"):
        asyncio.run(asyncio.wait_for(run(), 30))


def test_who_does_not_know_the_secret_gets_nothing_and_is_read_nothing(tmp_path):
    async def run():
        async with serving_counter() as (url, _), pool(url, tmp_path / "board", Twos()) as (made, collector):
            playing = asyncio.create_task(anext(collector.rollouts(plan([counter_task()], num_repeats=1))))
            while made._server is None:
                await asyncio.sleep(0.01)
            port = made._server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(bytes(NONCE_BYTES) + bytes(32))
            received = await reader.read()
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            return received, made.num_shards

    received, num_shards = asyncio.run(run())
    assert len(received) == NONCE_BYTES + 32  # its number, and its answer to ours: no frame
    assert num_shards == 0
