"""The resource-server dialect against a server that does everything wrong: each fault is a typed failure, none a reward of 0."""

import asyncio
import re
from typing import Any

import pytest
from aiohttp import web

from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Failure, FailureType, RolloutKey, StopReason
from gym_bridge.schemas.seams import Turn, TurnRequest
from tests.rollouts.dialects import Handler, Server, abort, answering, flood, half, hang, looping, play_in
from tests.rollouts.stage import ScriptedEndpoint, called, in_order, said, serving, turn

TASK = {
    "responses_create_params": {"input": "go", "tools": [{"type": "function", "name": "look", "parameters": {}}]},
    "id": "mine",
}
GOOD: dict[str, Handler] = {
    "/seed_session": answering({}),
    "/look": answering('{"seen": 1}'),
    "/verify": answering({"reward": 0.5, "why": "because"}),
}


def played(*, timeout_s: float = 20.0, row: Any = TASK, **faults: Handler) -> tuple[Played | Failure, Play, Server]:
    """One attempt that looks once and answers, against a server with `faults` in place of its good handlers."""
    server = Server({**GOOD, **{f"/{route}": handler for route, handler in faults.items()}})
    loop = looping(in_order(turn(called("look", {})), turn(said("done"))))
    ended, play = play_in(server, lambda url, http: SeedVerify(url=url, http=http, loop=loop, request_timeout_s=timeout_s), row)
    return ended, play, server


def refused(ended: Played | Failure, expected: FailureType) -> str:
    """The message of a failure of the expected type."""
    assert isinstance(ended, Failure)
    assert ended.type is expected
    return ended.message


def test_a_server_that_does_its_part_gives_the_reward_and_its_own_fields_beside_the_whole_task():
    ended, play, server = played()
    assert isinstance(ended, Played)
    assert ended.stop is StopReason.ANSWERED
    assert ended.row["reward"] == 0.5
    assert (ended.row["id"], ended.row["why"]) == ("mine", "because")
    assert ended.row["responses_create_params"] == TASK["responses_create_params"]
    assert [item["type"] for item in ended.row["response"]["output"]] == ["function_call", "function_call_output", "message"]
    assert set(play.timings_s) == {"seed", "model", "tools", "verify"}
    assert server.paths == ["/seed_session", "/look", "/verify"]


def test_the_server_is_sent_the_whole_task_with_its_indices_and_then_the_response_as_well():
    _, _, server = played()
    (seeded,), (verified,) = server.sent_to("/seed_session"), server.sent_to("/verify")
    assert seeded == {**TASK, "_ng_task_index": 4, "_ng_rollout_index": 2}
    assert {name: value for name, value in verified.items() if name != "response"} == seeded
    assert verified["response"]["id"] == "resp_4_2"


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (answering("boom", 500), "answered 500: boom"),
        (answering({"reward": 1.0}, 404), "answered 404"),
        (answering({"reward": 1.0}, 302), "answered 302"),
        (answering("x" * 10_000, 500), "x ..."),
        (abort, "/verify"),
        (half, "/verify"),
        (answering('{"reward": 1.0'), "no JSON"),
        (answering(b"\xff\xfe"), "no JSON"),
        (answering(""), "no JSON"),
        (answering('{"reward": NaN}'), "no JSON"),
        (answering('{"reward": 1e999}'), "JSON|finite"),
        (answering({"reward": True}), "the reward True"),
        (answering({"reward": "1.0"}), "the reward '1.0'"),
        (answering({"reward": None}), "the reward None"),
        (answering({"reward": [1.0]}), r"the reward \[1.0\]"),
        (answering({}), "the reward None"),
        (answering([1.0]), "list, not an object"),
        (answering("1.0"), "float, not an object"),
        (answering({"detail": [{"loc": ["body", "response", "output", 0]}]}, 422), "answered 422"),
        (flood, "longer than 16777216 bytes"),
    ],
)
def test_a_verifier_that_fails_is_a_verify_error(handler: Handler, message: str):
    ended, _, _ = played(verify=handler)
    assert re.search(message, refused(ended, FailureType.VERIFY))


@pytest.mark.parametrize(
    ("reported", "expected"),
    [("judge_failed", FailureType.JUDGE), ("timeout_exceeded", FailureType.TIMEOUT), ("transient", FailureType.JUDGE)],
)
def test_a_failure_that_the_verifier_reports_is_one_although_its_reply_has_a_reward(reported: str, expected: FailureType):
    reply = {"reward": 0.0, "_ng_failure_class": reported, "_ng_failure_judge_error": "out of quota", "_ng_failure_terminal": True}
    ended, _, _ = played(verify=answering(reply))
    assert refused(ended, expected) == f"the verifier reported {reported!r}: out of quota"
    assert isinstance(ended, Failure)
    assert ended.terminal


def test_a_failure_class_of_the_wrong_type_is_a_failure_all_the_same():
    ended, _, _ = played(verify=answering({"reward": 0.0, "_ng_failure_class": ["x"]}))
    assert "['x']" in refused(ended, FailureType.JUDGE)


@pytest.mark.parametrize("handler", [answering("boom", 500), abort, half, flood, answering("[]")])
def test_a_session_that_cannot_be_opened_is_a_seed_error(handler: Handler):
    ended, play, _ = played(seed_session=handler)
    refused(ended, FailureType.SEED)
    assert play.num_turns == 0


@pytest.mark.parametrize("reply", [{"detail": [{"loc": ["body", "start"]}]}, {"detail": "start"}, "start"])
def test_a_row_that_the_server_does_not_take_is_an_invalid_row(reply: Any):
    ended, _, _ = played(seed_session=answering(reply, 422))
    assert "start" in refused(ended, FailureType.INVALID_ROW)
    assert isinstance(ended, Failure)
    assert (ended.status, ended.terminal) == (422, True)


@pytest.mark.parametrize("handler", [abort, half, flood])
def test_a_tool_without_a_whole_answer_is_a_tool_error(handler: Handler):
    ended, play, _ = played(look=handler)
    refused(ended, FailureType.TOOL)
    assert play.num_turns == 1


def test_the_body_of_a_failing_tool_is_given_to_the_model_and_counted():
    ended, play, _ = played(look=answering("no such place", 500))
    assert isinstance(ended, Played)
    assert ended.row["response"]["output"][1]["output"] == "no such place"
    assert (play.num_tool_calls, play.num_tool_errors) == (1, 1)


@pytest.mark.parametrize("route", ["seed_session", "look", "verify"])
def test_a_server_that_hangs_is_a_timeout(route: str):
    ended, _, _ = played(timeout_s=0.3, **{route: hang})
    assert f"/{route}: no answer within 0.3 s" in refused(ended, FailureType.TIMEOUT)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"responses_create_params": None},
        {"responses_create_params": "x"},
        {"responses_create_params": {}},
        {"responses_create_params": {"input": 3}},
        {"responses_create_params": {"input": ["x"]}},
        {"responses_create_params": {"input": "x", "tools": "look"}},
        {"responses_create_params": {"input": "x", "tools": ["look"]}},
    ],
)
def test_a_row_that_no_conversation_can_be_made_of_is_invalid_and_reaches_no_server(row: Any):
    ended, _, server = played(row=row)
    refused(ended, FailureType.INVALID_ROW)
    assert isinstance(ended, Failure)
    assert ended.terminal
    assert server.paths == []


def test_fifty_rollouts_at_once_keep_their_sessions_apart():
    tasks = list(ArithmeticServer.tasks(num_tasks=50, seed=3, split="train", kind="tool"))

    async def script(request: TurnRequest) -> Turn:
        a, b = tasks[request.key.task_index]["operands"]
        await asyncio.sleep(0.001 * (request.key.task_index % 7))
        return turn(said(str(a + b))) if request.key.turn else turn(called("add", {"a": a, "b": b}))

    async def run() -> tuple[list[Played], int]:
        endpoint, http = ScriptedEndpoint(script), HttpClient()
        loop = TurnLoop(endpoint=endpoint, limits=Limits(max_turns=3), seed=0)
        async with serving(application(ArithmeticServer())) as url:
            environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=30)
            plays = [environment.play(task, RolloutKey(number, 0), Play()) for number, task in enumerate(tasks)]
            ended = await asyncio.gather(*plays)
            await http.close()
        return ended, endpoint.most_in_flight

    ended, most_in_flight = asyncio.run(run())
    assert most_in_flight > 10
    # The verifier wants this session's own operands added: with one cookie jar for all, most would get 0.
    assert [one.row["reward"] for one in ended] == [1.0] * 50


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
        http = HttpClient()
        async with serving(app) as url:
            loop = looping(in_order(turn(called("look", {})), turn(said("done"))))
            environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=5)
            for number in range(2):
                await environment.play(TASK, RolloutKey(0, number), Play())
            await http.close()

    asyncio.run(run())
    assert jars == [
        *[("/seed_session", None), ("/look", "1"), ("/verify", "1")],
        *[("/seed_session", None), ("/look", "4"), ("/verify", "4")],
    ]
