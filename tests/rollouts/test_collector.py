"""The collector: groups, attempts, rows, its bounds, and how it ends."""

import asyncio
import gc
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gym_bridge.errors import DataError, ServerError
from gym_bridge.io.progress import Progress
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.collecting import collect_into
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import FixedConcurrency
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.models.model_http import EndpointError
from gym_bridge.rollouts.plan import PlannedRollout, plan
from gym_bridge.rollouts.players import LocalPlayer, Retries
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.stopping import StopRules
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Failure, FailureType, Group, Rollout, RolloutKey, Row
from gym_bridge.schemas.seams import ModelEndpoint, Turn, TurnRequest
from tests.rollouts.stage import (
    CounterServer,
    Script,
    ScriptedEndpoint,
    called,
    counter_task,
    in_order,
    said,
    serving,
    serving_counter,
    turn,
)


def collector_of(
    endpoint: ModelEndpoint,
    url: str,
    *,
    concurrency: int = 8,
    max_attempts: int = 3,
    timeout_s: float = 20.0,
    patience_s: float = 0.1,
    backoff_s: float = 0.01,
    **options: Any,
) -> RolloutCollector:
    """A collector that waits 10 ms before a second attempt."""
    http = HttpClient()
    loop = TurnLoop(endpoint=endpoint, limits=Limits(max_turns=4), seed=0)
    environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=timeout_s)
    player = LocalPlayer(
        Attempts(environment=environment, timeout_s=timeout_s),
        retries=Retries(max_attempts=max_attempts, backoff_s=backoff_s, max_backoff_s=backoff_s),
        patience_s=patience_s,
        closers=[http.close],
    )
    return RolloutCollector(player, concurrency=FixedConcurrency(concurrency), **options)


@asynccontextmanager
async def collecting(endpoint: ModelEndpoint, url: str, **options: Any) -> AsyncIterator[RolloutCollector]:
    """A collector that is closed at the end."""
    collector = collector_of(endpoint, url, **options)
    try:
        yield collector
    finally:
        await collector.close()


def groups_of(script: Script, tasks: Sequence[Row], *, group_size: int = 1, **options: Any) -> list[Group]:
    """Groups of `tasks` against the counter."""

    async def run() -> list[Group]:
        async with serving_counter() as (url, _), collecting(ScriptedEndpoint(script), url, **options) as collector:
            return [one async for one in collector.groups(tasks, group_size=group_size)]

    return asyncio.run(run())


def rollouts_of(app: web.Application, planned: Sequence[PlannedRollout], script: Script, **options: Any) -> list[Rollout]:
    """Everything that comes out for `planned` against `app`."""

    async def run() -> list[Rollout]:
        async with serving(app) as url, collecting(ScriptedEndpoint(script), url, **options) as collector:
            return [one async for one in collector.rollouts(planned)]

    return asyncio.run(run())


def verifier(verdict: Callable[[Row, int], Any]) -> web.Application:
    """A server whose /verify answers `verdict(row, how often it was asked before)`; a status instead of a dict is an error."""
    asked = 0

    async def seed(request: web.Request) -> web.Response:
        return web.json_response({})

    async def verify(request: web.Request) -> web.Response:
        nonlocal asked
        found = verdict(await request.json(), asked)
        asked += 1
        return web.Response(status=found) if isinstance(found, int) else web.json_response(found)

    app = web.Application()
    app.router.add_post("/seed_session", seed)
    app.router.add_post("/verify", verify)
    return app


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_groups_are_whole_and_ordered_whatever_ends_first():
    async def slow_first(request: TurnRequest) -> Turn:
        await asyncio.sleep(0.02 * (3 - request.key.rollout_index) + 0.05 * (2 - request.key.task_index))
        return turn(said("3"))

    groups = groups_of(slow_first, [counter_task() for _ in range(3)], group_size=4, concurrency=12)
    assert [group.task_index for group in groups] == [2, 1, 0]
    for group in groups:
        assert [one.key for one in group.rollouts] == [(group.task_index, index) for index in range(4)]


def test_a_failed_member_stays_in_its_group():
    def script(request: TurnRequest) -> Turn:
        if request.key.rollout_index == 1:
            raise ServerError("no", url="http://model", status=500)
        return turn(said("3"))

    (group,) = groups_of(script, [counter_task(expected=3)], group_size=3)
    assert [one.reward for one in group.rollouts] == [1.0, None, 1.0]
    assert [one.key.rollout_index for one in group.verified] == [0, 2]
    assert group.rollouts[1].attempt == 2


def test_a_rollout_that_was_tried_again_is_one_member_of_its_group():
    tries = 0

    def script(request: TurnRequest) -> Turn:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise ServerError("busy", url="http://model", status=503)
        return turn(said("3"))

    (group,) = groups_of(script, [counter_task(expected=3)], group_size=2, concurrency=1, max_attempts=4)
    assert [(one.key.rollout_index, one.attempt, one.reward) for one in group.rollouts] == [(0, 3, 1.0), (1, 0, 1.0)]
    assert [(one.key.rollout_index, one.attempt, one.reward) for one in group.retried] == [
        (0, attempt, None) for attempt in range(3)
    ]


def test_a_task_that_comes_twice_gets_further_rollout_indices_and_a_group_of_its_own():
    tasks = [counter_task(_ng_task_index=5), counter_task(_ng_task_index=5, _ng_rollout_index=1)]
    groups = groups_of(in_order(turn(said("3"))), tasks, group_size=2)
    assert sorted(tuple(one.key for one in group.rollouts) for group in groups) == [((5, 0), (5, 1)), ((5, 2), (5, 3))]


def test_a_plan_keeps_the_indices_of_materialized_rows():
    rows = [{"_ng_task_index": 4, "_ng_rollout_index": index} for index in (0, 1)] + [{}]
    assert [one.key for one in plan(rows, num_repeats=1)] == [(4, 0), (4, 1), (2, 0)]
    assert [one.key for one in plan([{}, {}], num_repeats=2)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [one.key for one in plan([{"_ng_task_index": None}], num_repeats=1)] == [(0, 0)]


@pytest.mark.parametrize("index", ["3", 1.0, True])
def test_an_index_that_is_no_whole_number_is_refused(index: object):
    with pytest.raises(DataError, match="_ng_task_index of a task is"):
        list(plan([{"_ng_task_index": index}], num_repeats=1))


def test_a_retry_has_a_fresh_session_and_every_failed_attempt_comes_out_before_it():
    cookies: list[str | None] = []

    async def seed(request: web.Request) -> web.Response:
        cookies.append(request.cookies.get("visit"))
        response = web.json_response({})
        response.set_cookie("visit", "yes")
        return response

    async def verify(request: web.Request) -> web.Response:
        return web.json_response({"reward": 1.0}) if len(cookies) == 3 else web.Response(status=500)

    app = web.Application()
    app.router.add_post("/seed_session", seed)
    app.router.add_post("/verify", verify)
    planned = list(plan([counter_task()], num_repeats=1))
    rollouts = rollouts_of(app, planned, in_order(turn(said("x"))))
    assert cookies == [None, None, None]
    assert [(one.attempt, one.failure and one.failure.type, one.reward) for one in rollouts] == [
        (0, FailureType.VERIFY, None),
        (1, FailureType.VERIFY, None),
        (2, None, 1.0),
    ]
    assert [one.row.get("_ng_attempt_index") for one in rollouts] == [0, 1, None]
    assert rollouts[2].row["gym_bridge"]["attempt"] == 2


def test_an_attempt_comes_out_when_it_ends_and_not_when_its_rollout_does():
    async def run() -> list[Rollout]:
        failing = verifier(lambda row, asked: 503 if row["_ng_task_index"] else {"reward": 1})
        async with serving(failing) as url:
            collector = collector_of(ScriptedEndpoint(in_order(turn(said("x")))), url, backoff_s=3600.0)
            found: list[Rollout] = []
            async for attempt in collector.attempts(plan([counter_task()] * 3, num_repeats=1)):
                found += attempt
                if len(found) == 3:
                    collector.call_off()  # two wait for an hour before their second attempt
            await collector.close()
            return found

    found = asyncio.run(asyncio.wait_for(run(), 20))
    assert sorted((one.key.task_index, one.attempt, one.reward) for one in found) == [(0, 0, 1.0), (1, 0, None), (2, 0, None)]


def test_attempts_before_a_server_went_away_are_not_lost():
    found: list[tuple[RolloutKey, int]] = []

    def script(request: TurnRequest) -> Turn:
        if found:
            raise GoneError("connection refused", url="http://model:1")
        raise ServerError("no", url="http://model", status=500)

    async def run() -> None:
        async with serving_counter() as (url, _), collecting(ScriptedEndpoint(script), url) as collector:
            async for rollout in collector.rollouts(plan([counter_task()], num_repeats=1)):
                found.append((rollout.key, rollout.attempt))

    with pytest.raises(ServerError, match="gone: connection refused"):
        asyncio.run(run())
    assert found == [((0, 0), 0)]


def test_attempts_end_at_max_attempts_and_count_those_of_earlier_runs():
    row = counter_task()
    failing = verifier(lambda row, asked: 500)
    fresh, tried = PlannedRollout(key=RolloutKey(0, 0), row=row), PlannedRollout(key=RolloutKey(0, 1), row=row, first_attempt=2)
    done = PlannedRollout(key=RolloutKey(0, 2), row=row, first_attempt=3)
    rollouts = rollouts_of(failing, [fresh, tried, done], in_order(turn(said("x"))))
    assert sorted((one.key.rollout_index, one.attempt) for one in rollouts) == [(0, 0), (0, 1), (0, 2), (1, 2)]
    assert all(one.failure is not None for one in rollouts)


def test_a_row_that_the_server_refuses_is_not_tried_again():
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"detail": []}, status=422)

    app = web.Application()
    app.router.add_post("/seed_session", refuse)
    (rollout,) = rollouts_of(app, list(plan([counter_task()], num_repeats=1)), in_order(turn(said("x"))))
    assert rollout.failure is not None
    assert rollout.failure.type is FailureType.INVALID_ROW


def test_a_server_that_is_gone_raises_after_all_attempts():
    url = f"http://127.0.0.1:{free_port()}"

    async def run() -> None:
        async with collecting(ScriptedEndpoint(in_order(turn(said("x")))), url) as collector:
            async for _ in collector.groups([counter_task()], group_size=2):
                raise AssertionError("no group can come")

    with pytest.raises(ServerError, match="gone") as raised:
        asyncio.run(run())
    assert (raised.value.url, raised.value.attempts) == (url, 3)


@pytest.mark.parametrize("url", ["localhost:9", "http://127.0.0.1:99999999", "nowhere"])
def test_an_address_that_is_none_raises_as_well(url: str):
    async def run() -> None:
        async with collecting(ScriptedEndpoint(in_order(turn(said("x")))), url, max_attempts=1) as collector:
            async for _ in collector.groups([counter_task()], group_size=1):
                raise AssertionError("no group can come")

    with pytest.raises(ServerError, match="gone"):
        asyncio.run(run())


class GoneError(EndpointError):
    """No connection could be made."""

    unreachable = True


def test_a_model_that_is_gone_is_named_and_what_ended_beside_it_comes_out_first():
    found: list[RolloutKey] = []

    async def script(request: TurnRequest) -> Turn:
        await asyncio.sleep(0.1 * request.key.task_index)
        if request.key.task_index == 1:
            raise GoneError("connection refused", url="http://model:1")
        return turn(said("3"))

    async def run() -> None:
        async with serving_counter() as (url, _), collecting(ScriptedEndpoint(script), url, max_attempts=1) as collector:
            async for rollout in collector.rollouts(plan([counter_task()] * 4, num_repeats=1)):
                found.append(rollout.key)
                await asyncio.sleep(0.6)  # the others end meanwhile, the failing one first

    with pytest.raises(ServerError, match="gone: connection refused") as raised:
        asyncio.run(run())
    assert raised.value.url == "http://model:1"
    assert sorted(found) == [(0, 0), (2, 0), (3, 0)]


def test_what_fails_beside_the_play_ends_it():
    async def failing() -> None:
        await asyncio.sleep(0.1)
        raise ServerError("nobody comes up", url="beside")

    async def run() -> None:
        async def script(request: TurnRequest) -> Turn:
            await asyncio.sleep(30)
            return turn(said("3"))

        async with serving_counter() as (url, _), collecting(ScriptedEndpoint(script), url, beside=[failing]) as collector:
            async for _ in collector.rollouts(plan([counter_task()], num_repeats=1)):
                raise AssertionError("no rollout can come")

    with pytest.raises(ServerError, match="nobody comes up"):
        asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_rollouts_are_in_flight_than_allowed_and_the_plan_is_read_as_they_finish(concurrency: int):
    taken = 0

    def planned():
        nonlocal taken
        for one in plan([counter_task()] * 9, num_repeats=1):
            taken += 1
            yield one

    async def script(request: TurnRequest) -> Turn:
        await asyncio.sleep(0.02)
        return turn(said("3"))

    async def run() -> int:
        endpoint = ScriptedEndpoint(script)
        ended = 0
        async with serving_counter() as (url, _), collecting(endpoint, url, concurrency=concurrency) as collector:
            async for _ in collector.rollouts(planned()):
                assert taken <= ended + 2 * concurrency
                ended += 1
        assert ended == 9
        return endpoint.most_in_flight

    assert asyncio.run(run()) == concurrency


def test_a_row_has_nemo_gyms_keys_and_all_of_the_task_although_verify_drops_them():
    task = counter_task(id="mine", verifier_metadata={"a": [1]}, _ng_task_index=7, agent_ref={"name": "mine"})
    forgetful = verifier(lambda row, asked: {"reward": 1, "library_reward": 0.5, "response": {}, "responses_create_params": {}})
    (rollout,) = rollouts_of(forgetful, list(plan([task], num_repeats=1)), in_order(turn(said("x"))))
    row = rollout.row
    assert {key: row[key] for key in ("id", "verifier_metadata", "start", "expected", "library_reward", "agent_ref")} == {
        "id": "mine",
        "verifier_metadata": {"a": [1]},
        "start": 3,
        "expected": 5,
        "library_reward": 0.5,
        "agent_ref": {"name": "mine"},
    }
    assert (row["_ng_task_index"], row["_ng_rollout_index"], row["reward"]) == (7, 0, 1.0)
    assert isinstance(row["reward"], float)
    assert row["responses_create_params"] == task["responses_create_params"]
    assert row["response"]["output"] == [said("x")]
    assert row["response"]["tools"] == CounterServer.tools()
    assert {"id", "created_at", "model", "object", "output", "parallel_tool_calls", "tool_choice", "tools"} <= set(row["response"])
    ours = row["gym_bridge"]
    assert set(ours) == {
        *("stop_reason", "truncated", "num_turns", "num_tool_calls", "num_tool_errors", "attempt", "policy_versions", "timings_s"),
        *("num_input_tokens", "num_output_tokens", "waits_s"),
    }
    assert set(ours["timings_s"]) == {"total", "seed", "model", "verify"}
    assert [stage for stage, _ in ours["waits_s"]] == ["seed", "model", "verify"]


def test_a_row_without_an_agent_gets_ours():
    (group,) = groups_of(in_order(turn(said("3"))), [counter_task()])
    assert group.rollouts[0].row["agent_ref"] == {"type": "responses_api_agents", "name": "gym_bridge"}


def test_a_row_out_of_a_failures_file_is_no_failure_once_it_is_verified():
    task = counter_task(expected=3, _ng_failure_class="model_error", _ng_attempt_index=2, reward=None)
    (group,) = groups_of(in_order(turn(said("3"))), [task])
    row = group.rollouts[0].row
    assert row["reward"] == 1.0
    assert not {"_ng_failure_class", "_ng_attempt_index"} & set(row)


def test_an_error_of_ours_in_one_rollout_does_not_end_the_others():
    def script(request: TurnRequest) -> Turn:
        return turn({"type": "function_call", "name": "add"}) if request.key.task_index == 0 else turn(said("3"))

    groups = groups_of(script, [counter_task(), counter_task(expected=3)])
    assert sorted((group.task_index, group.rollouts[0].reward) for group in groups if group.verified) == [(1, 1.0)]
    (broken,) = (group.rollouts[0] for group in groups if not group.verified)
    assert broken.failure is not None


def test_leaving_early_cancels_what_runs_and_closes_every_socket():
    cancelled = 0

    async def script(request: TurnRequest) -> Turn:
        nonlocal cancelled
        if request.key.task_index == 0:
            return turn(said("3"))
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return turn(said("3"))

    async def run() -> None:
        endpoint = ScriptedEndpoint(script)
        async with serving_counter() as (url, _), collecting(endpoint, url) as collector:
            async with aclosing(collector.groups([counter_task()] * 5, group_size=1)) as groups:
                async for group in groups:
                    assert group.task_index == 0
                    await asyncio.sleep(0.2)
                    break
            assert endpoint.in_flight == 0

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        asyncio.run(run())
        gc.collect()
    assert cancelled == 4


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_cancelling_the_collection_closes_every_socket():
    async def script(request: TurnRequest) -> Turn:
        if request.key.turn:
            await asyncio.sleep(30)
        return turn(called("add", {"count": 1}))

    async def collect(endpoint: ScriptedEndpoint, url: str) -> None:
        planned = plan([counter_task()] * 8, num_repeats=1)
        async with collecting(endpoint, url) as collector, aclosing(collector.rollouts(planned)) as rollouts:
            async for _ in rollouts:
                raise AssertionError("none can end")

    async def run() -> int:
        endpoint = ScriptedEndpoint(script)
        async with serving_counter() as (url, _):
            collecting = asyncio.create_task(collect(endpoint, url))
            while len(endpoint.requests) < 16:
                await asyncio.sleep(0.01)
            collecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await collecting
        return endpoint.in_flight

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        assert asyncio.run(run()) == 0
        gc.collect()


class Cohorts:
    """A verifier that answers a task's rollouts only once `size` of them have arrived; `fails` of the first attempts fail first."""

    def __init__(self, size: int, *, fails: int = 0):
        self.size, self.fails, self.arrived = size, fails, 0
        self.whole = asyncio.Event()

    def application(self) -> web.Application:
        async def seed(request: web.Request) -> web.Response:
            return web.json_response({})

        async def verify(request: web.Request) -> web.Response:
            if self.fails:
                self.fails -= 1
                return web.Response(status=500)
            self.arrived += 1
            whole = self.whole
            if self.arrived == self.size:
                self.arrived, self.whole = 0, asyncio.Event()
                whole.set()
            try:
                await whole.wait()
            except asyncio.CancelledError:
                self.arrived -= 1
                raise
            return web.json_response({"reward": 1.0})

        app = web.Application()
        app.router.add_post("/seed_session", seed)
        app.router.add_post("/verify", verify)
        return app


def cohort_rollouts(cohorts: Cohorts, *, num_tasks: int, first_attempts: Sequence[int] = (), **options: Any) -> list[Rollout]:
    """Everything that comes out; the members of the first task have been tried `first_attempts` times."""

    async def run() -> list[Rollout]:
        runner = web.AppRunner(cohorts.application(), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with collecting(ScriptedEndpoint(in_order(turn(said("x")))), url, cohorts=True, **options) as collector:
                planned = list(plan([counter_task()] * num_tasks, num_repeats=cohorts.size))
                planned[: len(first_attempts)] = [
                    replace(one, first_attempt=first) for one, first in zip(planned, first_attempts, strict=False)
                ]
                return [one async for one in collector.rollouts(planned)]
        finally:
            await runner.cleanup()

    return asyncio.run(run())


@pytest.mark.parametrize("concurrency", [1, 4, 9])
def test_cohorts_never_deadlock_whatever_the_concurrency(concurrency: int):
    rollouts = cohort_rollouts(Cohorts(4), num_tasks=3, concurrency=concurrency)
    assert sorted(one.key for one in rollouts) == [(task, index) for task in range(3) for index in range(4)]
    assert all(one.reward == 1.0 for one in rollouts)


def test_a_cohort_whose_member_fails_is_tried_again_whole():
    rollouts = cohort_rollouts(Cohorts(3, fails=1), num_tasks=1)
    first, second = rollouts[:3], rollouts[3:]
    assert [(one.key.rollout_index, one.attempt, one.reward) for one in second] == [(index, 1, 1.0) for index in range(3)]
    assert sorted(str(one.failure.type) for one in first if one.failure) == ["cancelled", "cancelled", "verify_error"]


def test_a_resumed_cohort_has_the_attempts_left_to_the_member_that_was_tried_most():
    rollouts = cohort_rollouts(Cohorts(3, fails=1), num_tasks=1, first_attempts=(0, 2, 1))
    assert sorted((one.key.rollout_index, one.attempt) for one in rollouts) == [(0, 2), (1, 2), (2, 2)]
    assert all(one.failure is not None for one in rollouts)
    assert not cohort_rollouts(Cohorts(3), num_tasks=1, first_attempts=(0, 3, 1))


def test_the_rows_of_a_cohort_reach_the_disk_together(tmp_path: Path):
    num_rows: list[int] = []

    class Watched(RolloutLog):
        def sync(self) -> None:
            super().sync()
            num_rows.append(sum(1 for _ in self.rows()))

    async def run() -> None:
        planned = plan([counter_task()] * 30, num_repeats=3)
        endpoint, app = ScriptedEndpoint(in_order(turn(said("x")))), verifier(lambda row, asked: {"reward": 1})
        with Watched(tmp_path / "r.jsonl", identity={}) as log, Progress("x", total=None, quiet=True) as progress:
            async with serving(app) as url, collecting(endpoint, url, cohorts=True) as collector:
                await collect_into(log, collector, planned, rules=StopRules(), progress=progress)

    asyncio.run(run())
    assert num_rows[-1] == 90
    assert any(0 < count < 90 for count in num_rows)
    assert all(count % 3 == 0 for count in num_rows)


def test_draining_starts_nothing_more_and_keeps_what_is_in_flight():
    async def run() -> list[RolloutKey]:
        found: list[RolloutKey] = []
        endpoint = ScriptedEndpoint(in_order(turn(said("3"))))
        async with serving_counter() as (url, _), collecting(endpoint, url, concurrency=3) as collector:
            async for rollout in collector.rollouts(plan([counter_task()] * 50, num_repeats=1)):
                found.append(rollout.key)
                collector.drain()
        return found

    assert sorted(asyncio.run(run())) == [(0, 0), (1, 0), (2, 0)]


def test_the_preflight_plays_the_first_rollout_alone_and_keeps_it():
    async def script(request: TurnRequest) -> Turn:
        started.append((request.key.task_index, len(ended)))
        await asyncio.sleep(0.01)
        return turn(said("3"))

    started: list[tuple[int, int]] = []
    ended: list[RolloutKey] = []

    async def run() -> None:
        endpoint = ScriptedEndpoint(script)
        async with serving_counter() as (url, _), collecting(endpoint, url, preflight=True) as collector:
            async for rollout in collector.rollouts(plan([counter_task()] * 6, num_repeats=1)):
                ended.append(rollout.key)

    asyncio.run(run())
    assert started[0] == (0, 0)
    assert all(num_ended >= 1 for _, num_ended in started[1:])
    assert sorted(ended) == [(task, 0) for task in range(6)]


def test_being_turned_away_before_any_success_stops_with_the_inner_body():
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"detail": "no such environment"}, status=404)

    app = web.Application()
    app.router.add_post("/seed_session", refuse)
    with pytest.raises(ServerError, match=r"/seed_session answered 404.*no such environment") as raised:
        rollouts_of(app, list(plan([counter_task()] * 30, num_repeats=1)), in_order(turn(said("x"))), preflight=True)
    assert (raised.value.status, raised.value.attempts) == (404, 1)


def test_a_task_without_an_input_fails_alone_and_is_not_tried_again():
    planned = list(plan([{"responses_create_params": {"tools": []}}, counter_task(expected=3)], num_repeats=1))
    rollouts = rollouts_of(verifier(lambda row, asked: {"reward": 1}), planned, in_order(turn(said("x"))))
    failed = next(one for one in rollouts if one.failure)
    assert failed.failure is not None
    assert (failed.key, failed.failure.type, failed.failure.terminal) == ((0, 0), FailureType.INVALID_ROW, True)
    assert failed.row["reward"] is None
    assert [one.key for one in rollouts if not one.failure] == [(1, 0)]


def test_a_server_that_is_away_for_a_while_costs_no_attempt():
    port = free_port()
    away = asyncio.Event()

    async def script(request: TurnRequest) -> Turn:
        if request.key.task_index == 1:
            away.set()
            await back.wait()
        return turn(said("3"))

    back = asyncio.Event()

    async def run() -> list[Rollout]:
        app = verifier(lambda row, asked: {"reward": 1})
        url = f"http://127.0.0.1:{port}"

        async def serve_then_restart() -> None:
            for last in (False, True):
                runner = web.AppRunner(app if not last else verifier(lambda row, asked: {"reward": 1}), shutdown_timeout=0.1)
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", port).start()
                started.set()
                await (asyncio.Event() if last else away).wait()
                await runner.cleanup()
                back.set()
                await asyncio.sleep(0.3)

        started = asyncio.Event()
        serving = asyncio.create_task(serve_then_restart())
        await started.wait()
        try:
            options = {"concurrency": 1, "max_attempts": 2, "patience_s": 20.0}
            async with collecting(ScriptedEndpoint(script), url, **options) as collector:
                return [one async for one in collector.rollouts(plan([counter_task()] * 4, num_repeats=1))]
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    rollouts = asyncio.run(asyncio.wait_for(run(), 30))
    assert sorted((one.key.task_index, one.attempt, one.reward) for one in rollouts) == [(task, 0, 1.0) for task in range(4)]


def test_a_server_asked_to_be_left_alone_is():
    asked: list[float] = []

    async def seed(request: web.Request) -> web.Response:
        return web.json_response({})

    async def verify(request: web.Request) -> web.Response:
        asked.append(asyncio.get_running_loop().time())
        if len(asked) == 1:
            return web.Response(status=503, headers={"Retry-After": "1"})
        return web.json_response({"reward": 1.0})

    app = web.Application()
    app.router.add_post("/seed_session", seed)
    app.router.add_post("/verify", verify)
    rollouts = rollouts_of(app, list(plan([counter_task()], num_repeats=1)), in_order(turn(said("x"))))
    assert [one.reward for one in rollouts] == [None, 1.0]
    assert asked[1] - asked[0] >= 0.9


def test_one_task_that_a_server_turns_away_does_not_end_the_collection():
    refused = verifier(lambda row, asked: 404 if row["_ng_task_index"] == 0 else {"reward": 1})
    planned = list(plan([counter_task()] * 5, num_repeats=1))
    rollouts = rollouts_of(refused, planned, in_order(turn(said("x"))), preflight=True)
    assert {one.key.task_index: one.reward for one in rollouts} == {0: None, 1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}


def test_the_tokens_of_called_off_members_are_counted():
    rollouts = cohort_rollouts(Cohorts(3, fails=1), num_tasks=1)
    called_off = [one for one in rollouts if one.failure and str(one.failure.type) == "cancelled"]
    assert [one.row["gym_bridge"]["num_input_tokens"] for one in called_off] == [10, 10]


def test_calling_off_keeps_what_has_ended_and_cancels_the_rest():
    async def script(request: TurnRequest) -> Turn:
        await asyncio.sleep(30 if request.key.task_index >= 3 else 0.01 * request.key.task_index)
        return turn(said("3"))

    async def run() -> list[RolloutKey]:
        found: list[RolloutKey] = []
        endpoint = ScriptedEndpoint(script)
        async with serving_counter() as (url, _), collecting(endpoint, url) as collector:
            async for rollout in collector.rollouts(plan([counter_task()] * 20, num_repeats=1)):
                found.append(rollout.key)
                if len(found) == 1:
                    await asyncio.sleep(0.3)  # two more end meanwhile
                    collector.call_off()
        assert endpoint.in_flight == 0
        return found

    assert sorted(asyncio.run(asyncio.wait_for(run(), 20))) == [(0, 0), (1, 0), (2, 0)]


def test_the_wait_before_another_attempt_is_by_the_type_of_the_failure():
    retries = Retries(backoff_s=1.0, max_backoff_s=8.0)

    def waits(*kinds: FailureType, attempt: int = 0) -> tuple[float, float]:
        failures = [Failure(type=kind, message="") for kind in kinds]
        found = [retries.wait_s(attempt, failures) for _ in range(200)]
        return min(found), max(found)

    assert waits(FailureType.TIMEOUT) == (0.0, 0.0)
    low, high = waits(FailureType.MODEL)
    assert 0.5 <= low < 0.7 < 1.3 < high <= 1.5
    low, high = waits(FailureType.JUDGE, FailureType.CANCELLED)
    assert 2.0 <= low < 2.8 < 5.2 < high <= 6.0
    assert waits(FailureType.MODEL, attempt=2000)[0] >= 4.0
    assert waits(FailureType.MODEL, attempt=2000)[1] <= 12.0
