"""The stall watchdog: it names what a hanging collection waits for, once a stall, and is silent while something moves."""

import asyncio
import logging
from typing import Any

import pytest

from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.plan import plan
from gym_bridge.rollouts.play import Play
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.rollouts.watchdog import StallWatchdog, waiting
from gym_bridge.schemas.seams import Turn, TurnRequest
from tests.rollouts.dialects import Server, answering, hang
from tests.rollouts.stage import ScriptedEndpoint, called, counter_task, serving, turn

STALL_S = 0.04
LOGGER = "gym_bridge.rollouts.watchdog"


class Warnings(logging.Handler):
    """Gathers warnings, and can be waited for."""

    def __init__(self):
        super().__init__()
        self.said: list[str] = []
        self.came = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.said.append(record.getMessage())
        self.came.set()

    async def __aenter__(self) -> "Warnings":
        logging.getLogger(LOGGER).addHandler(self)
        return self

    async def __aexit__(self, *error: object) -> None:
        logging.getLogger(LOGGER).removeHandler(self)


def test_the_stages_are_named_the_most_frequent_first():
    plays = [Play(stage=stage) for stage in ("tool add", "model", "verify", "model", "model", "verify")]
    assert waiting(plays) == "3 wait for model, 2 for verify, 1 for tool add"


@pytest.mark.parametrize("stage", ["model", "tool add"])
def test_rollouts_that_hang_are_told_with_the_stage_at_which_they_do(stage: str):
    async def script(request: TurnRequest) -> Turn:
        if stage == "model":
            await asyncio.Event().wait()
        return turn(called("add", {"count": 1}))

    async def run() -> list[str]:
        http, watchdog = HttpClient(), StallWatchdog(stall_s=STALL_S)
        server = Server({"/seed_session": answering({}), "/add": hang})
        async with serving(server.application()) as url, Warnings() as warnings:
            loop = TurnLoop(endpoint=ScriptedEndpoint(script), limits=Limits(), seed=0)
            environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20.0)
            attempts = Attempts(environment=environment, timeout_s=20.0, watchdog=watchdog)
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(watchdog.watch())]
            tasks += [asyncio.create_task(attempts.one(one, 0)) for one in plan([counter_task()] * 3, num_repeats=1)]
            async with asyncio.timeout(20):
                while not any(line.endswith(f"3 wait for {stage}") for line in warnings.said):
                    await warnings.came.wait()
                    warnings.came.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await http.close()
            return warnings.said

    assert asyncio.run(run())[-1] == f"no rollout moved for 0.04 s: 3 wait for {stage}"


async def watched(watchdog: StallWatchdog, *, seconds: float) -> list[str]:
    """What the watchdog warns of within `seconds`."""
    async with Warnings() as warnings:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watchdog.watch(), seconds)
        return warnings.said


def test_a_stall_is_told_once_and_the_next_one_again():
    async def run() -> None:
        watchdog, play = StallWatchdog(stall_s=STALL_S), Play()
        watchdog.enter(play)
        with play.waiting_for("verify"):
            assert await watched(watchdog, seconds=8 * STALL_S) == ["no rollout moved for 0.04 s: 1 wait for verify"]
        with play.waiting_for("model"):
            assert await watched(watchdog, seconds=8 * STALL_S) == ["no rollout moved for 0.04 s: 1 wait for model"]
        watchdog.leave(play)
        assert await watched(watchdog, seconds=4 * STALL_S) == []

    asyncio.run(run())


def test_one_rollout_that_moves_is_enough():
    async def run() -> list[str]:
        watchdog, hanging, moving = StallWatchdog(stall_s=1.0), Play(), Play()
        hanging.since -= 1000
        watchdog.enter(hanging)
        watchdog.enter(moving)
        return await watched(watchdog, seconds=0.5)

    assert asyncio.run(run()) == []
