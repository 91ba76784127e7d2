"""Sessions against a server that does everything wrong: each fault is a typed failure, none is a reward of 0."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.sessions.nemo_gym import MAX_REPLY_BYTES
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import FailureType, Rollout
from gym_bridge.schemas.seams import Turn, TurnRequest
from tests.rollouts.stage import ScriptedEndpoint, called, in_order, said, serving, turn

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TASK = {
    "responses_create_params": {"input": "go", "tools": [{"type": "function", "name": "look", "parameters": {}}]},
    "id": "mine",
}


def answering(text: str | bytes, status: int = 200) -> Handler:
    """A handler with one answer."""

    async def handler(request: web.Request) -> web.StreamResponse:
        body = text.encode() if isinstance(text, str) else text
        return web.Response(body=body, status=status, content_type="application/json")

    return handler


async def reset(request: web.Request) -> web.StreamResponse:
    """Break the connection before an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half(request: web.Request) -> web.StreamResponse:
    """Break the connection within the body."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"reward": 1.0')
    assert request.transport is not None
    request.transport.close()
    return response


async def hang(request: web.Request) -> web.StreamResponse:
    """Answer long after anybody waits."""
    await asyncio.sleep(30)
    return web.Response()


async def flood(request: web.Request) -> web.StreamResponse:
    """Answer a right reward, and then blanks without end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"reward": 1.0}')
    sent = 0
    while sent < 4 * MAX_REPLY_BYTES:
        await response.write(b" " * (1 << 20))
        sent += 1 << 20
    raise AssertionError("the client read it all")


GOOD: dict[str, Handler] = {
    "seed_session": answering("{}"),
    "look": answering('{"seen": 1}'),
    "verify": answering('{"reward": 0.5}'),
}


def played(*, timeout_s: float = 20.0, **faults: Handler) -> Rollout:
    """One attempt that looks once and answers, against a server with `faults` in place of its good handlers."""

    async def run() -> Rollout:
        app = web.Application()
        for route, handler in {**GOOD, **faults}.items():
            app.router.add_post(f"/{route}", handler)
        async with serving(app) as url:
            endpoint = ScriptedEndpoint(in_order(turn(called("look", {})), turn(said("done"))))
            loop = TurnLoop(endpoint=endpoint, max_turns=4, seed=0, params={})
            collector = RolloutCollector(loop, server_url=url + "/", concurrency=1, max_attempts=1, rollout_timeout_s=timeout_s)
            (group,) = [one async for one in collector.groups([TASK], group_size=1)]
            return group.rollouts[0]

    return asyncio.run(run())


def test_a_server_that_does_its_part_gives_the_reward():
    rollout = played()
    assert rollout.failure is None
    assert rollout.reward == 0.5


def refused(rollout: Rollout, expected: FailureType) -> str:
    """The failure's message, after the look at row and reward."""
    assert rollout.failure is not None
    assert rollout.failure.type is expected
    assert rollout.reward is None
    assert rollout.row["reward"] is None
    assert rollout.row["_ng_failure_class"] == str(expected)
    assert rollout.row["id"] == "mine"
    assert rollout.row["gym_bridge"]["failure"]["type"] == str(expected)
    return rollout.failure.message


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (answering("boom", 500), "answered 500: boom"),
        (answering('{"reward": 1.0}', 404), "answered 404"),
        (answering("x" * 10_000, 500), "x ..."),
        (reset, "/verify"),
        (half, "/verify"),
        (answering('{"reward": 1.0'), "no JSON"),
        (answering(b"\xff\xfe"), "no JSON"),
        (answering(""), "no JSON"),
        (answering('{"reward": NaN}'), "no JSON"),
        (answering('{"reward": Infinity}'), "no JSON"),
        (answering('{"reward": 1e999}'), "JSON|finite"),
        (answering('{"reward": true}'), "the reward True"),
        (answering('{"reward": "1.0"}'), "the reward '1.0'"),
        (answering('{"reward": null}'), "the reward None"),
        (answering('{"reward": [1.0]}'), r"the reward \[1.0\]"),
        (answering("{}"), "the reward None"),
        (answering("[1.0]"), "list, not an object"),
        (answering("1.0"), "float, not an object"),
        (flood, "more than 16777216 bytes"),
    ],
)
def test_a_verifier_that_fails_is_a_verify_error(handler: Handler, message: str):
    assert re.search(message, refused(played(verify=handler), FailureType.VERIFY))


def test_a_broken_judge_is_judge_failed_although_its_reply_has_a_reward():
    reply = '{"reward": 0.0, "_ng_failure_class": "judge_failed", "_ng_failure_judge_error": "x"}'
    assert "judge_failed" in refused(played(verify=answering(reply)), FailureType.JUDGE)


@pytest.mark.parametrize("handler", [answering("boom", 500), reset, half, flood])
def test_a_session_that_cannot_be_opened_is_a_seed_error(handler: Handler):
    refused(played(seed_session=handler), FailureType.SEED)


def test_a_row_that_the_server_does_not_take_is_an_invalid_row():
    rollout = played(seed_session=answering('{"detail": [{"loc": ["start"]}]}', 422))
    assert "start" in refused(rollout, FailureType.INVALID_ROW)
    assert rollout.failure is not None
    assert rollout.failure.status == 422


@pytest.mark.parametrize("handler", [reset, half, flood])
def test_a_tool_without_a_whole_answer_is_a_tool_error(handler: Handler):
    rollout = played(look=handler)
    refused(rollout, FailureType.TOOL)
    assert rollout.row["gym_bridge"]["num_turns"] == 1


@pytest.mark.parametrize("route", ["seed_session", "look", "verify"])
def test_a_server_that_hangs_is_a_timeout(route: str):
    refused(played(timeout_s=0.3, **{route: hang}), FailureType.TIMEOUT)


def test_a_row_without_input_is_invalid_and_reaches_no_server():
    async def run() -> list[Rollout]:
        loop = TurnLoop(endpoint=ScriptedEndpoint(in_order(turn(said("x")))), max_turns=1, seed=0, params={})
        collector = RolloutCollector(loop, server_url="http://127.0.0.1:9", concurrency=4, max_attempts=3, rollout_timeout_s=5)
        tasks = [{}, {"responses_create_params": None}, {"responses_create_params": {}}, {"responses_create_params": "x"}]
        return [one for task in tasks async for group in collector.groups([task], group_size=1) for one in group.rollouts]

    rollouts = asyncio.run(run())
    assert [one.failure.type for one in rollouts if one.failure] == [FailureType.INVALID_ROW] * 4
    assert {one.attempt for one in rollouts} == {0}


def test_fifty_rollouts_at_once_keep_their_sessions_apart():
    tasks = list(ArithmeticServer.tasks(num_tasks=50, seed=3, split="train", kind="tool"))

    async def script(request: TurnRequest) -> Turn:
        a, b = tasks[request.key.task_index]["operands"]
        await asyncio.sleep(0.001 * (request.key.task_index % 7))
        return turn(said(str(a + b))) if request.key.turn else turn(called("add", {"a": a, "b": b}))

    async def run() -> tuple[list[Rollout], int]:
        endpoint = ScriptedEndpoint(script)
        async with serving(application(ArithmeticServer())) as url:
            loop = TurnLoop(endpoint=endpoint, max_turns=3, seed=0, params={})
            collector = RolloutCollector(loop, server_url=url, concurrency=50, max_attempts=1, rollout_timeout_s=30)
            groups = [one async for one in collector.groups(tasks, group_size=1)]
        return [one for group in groups for one in group.rollouts], endpoint.most_in_flight

    rollouts, most_in_flight = asyncio.run(run())
    assert most_in_flight > 10
    # The verifier wants this session's own operands added: with one cookie jar for all, most would get 0.
    assert [one.reward for one in rollouts] == [1.0] * 50


def test_cookies_of_the_server_come_back_within_a_rollout_and_never_in_another():
    jars: list[tuple[str, str | None]] = []

    async def noting(request: web.Request) -> web.Response:
        jars.append((request.path, request.cookies.get("visit")))
        response = web.json_response({"reward": 1.0})
        if request.path == "/seed_session":
            response.set_cookie("visit", str(len(jars)))
        return response

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/{route}", noting)
        async with serving(app) as url:
            endpoint: Any = ScriptedEndpoint(in_order(turn(called("look", {})), turn(said("done"))))
            loop = TurnLoop(endpoint=endpoint, max_turns=4, seed=0, params={})
            collector = RolloutCollector(loop, server_url=url, concurrency=1, max_attempts=1, rollout_timeout_s=5)
            assert len([one async for one in collector.groups([TASK], group_size=2)]) == 1

    asyncio.run(run())
    assert jars == [
        *[("/seed_session", None), ("/look", "1"), ("/verify", "1")],
        *[("/seed_session", None), ("/look", "4"), ("/verify", "4")],
    ]
