"""The agent's turn loop against a real resource server: tools, usage, and a model that misbehaves."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web

from gym_bridge.errors import ContextOverflowError, DataError, ServerError
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.models.chat import ChatEndpoint
from gym_bridge.rollouts.models.model_http import ModelHttp
from gym_bridge.rollouts.models.responses import ResponsesEndpoint
from gym_bridge.rollouts.plan import TaskSettings, plan
from gym_bridge.rollouts.play import Play
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop, conversation_of
from gym_bridge.schemas.rollouts import FailureType, Item, Rollout, RolloutKey, Row
from gym_bridge.schemas.seams import ModelEndpoint, Turn, TurnRequest, Usage
from tests.rollouts.model_stage import answer, model_server
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


async def attempted(endpoint: ModelEndpoint, url: str, row: Row, *, http: HttpClient, params: Mapping[str, Any] = {}) -> Rollout:
    """One attempt at `row` at the resource server `url`."""
    loop = TurnLoop(endpoint=endpoint, limits=Limits(), seed=7)
    environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20.0)
    (planned,) = plan([row], num_repeats=1, settings=TaskSettings(params=params))
    return (await Attempts(environment=environment, timeout_s=20.0).one(planned, 0)).rollout


def played(
    script: Script, *, task: Row | None = None, params: Mapping[str, Any] = {}
) -> tuple[Rollout, CounterServer, ScriptedEndpoint]:
    """One rollout of `script` against the counter."""

    async def run() -> tuple[Rollout, CounterServer, ScriptedEndpoint]:
        endpoint, http = ScriptedEndpoint(script), HttpClient()
        async with serving_counter() as (url, server):
            rollout = await attempted(endpoint, url, task or counter_task(), http=http, params=params)
            await http.close()
            return rollout, server, endpoint

    return asyncio.run(run())


def outputs(rollout: Rollout) -> list[str]:
    """The tool outputs, in order."""
    return [item["output"] for item in rollout.row["response"]["output"] if item["type"] == "function_call_output"]


def ours(rollout: Rollout, *names: str) -> tuple[Any, ...]:
    """Fields of the row's `gym_bridge` object."""
    return tuple(rollout.row["gym_bridge"][name] for name in names)


def test_a_model_that_answers_at_once_is_verified_after_one_turn():
    rollout, server, _ = played(in_order(turn(said("done"))), task=counter_task(expected=3))
    assert rollout.failure is None
    assert rollout.reward == 1.0
    assert rollout.row["response"]["output"] == [said("done")]
    assert ours(rollout, "stop_reason", "truncated", "num_turns", "num_tool_calls") == ("answered", False, 1, 0)
    assert server.seen == ["seed", "verify"]


def test_a_tool_output_stands_after_its_call_and_goes_to_the_model():
    call = called("add", {"count": 2})
    rollout, server, endpoint = played(in_order(turn(call), turn(said("5"))))
    assert rollout.reward == 1.0
    answer = {"type": "function_call_output", "call_id": "c0", "output": '{"value":5}'}
    assert rollout.row["response"]["output"] == [call, answer, said("5")]
    assert endpoint.requests[1].items == ({"role": "user", "content": "count"}, call, answer)
    assert [request.key for request in endpoint.requests] == [(7, 0, 0, 0), (7, 0, 0, 1)]
    assert server.seen == ["seed", "add 2", "verify"]


def test_a_call_beside_a_message_is_made_before_the_rollout_can_end():
    rollout, server, _ = played(in_order(turn(said("let me count"), called("add", {"count": 2})), turn(said("5"))))
    assert rollout.reward == 1.0
    assert ours(rollout, "stop_reason", "num_turns", "num_tool_calls") == ("answered", 2, 1)
    assert server.seen == ["seed", "add 2", "verify"]


@pytest.mark.parametrize(("parallel", "most_at_once"), [(None, 3), (True, 3), (False, 1)])
def test_calls_of_one_turn_run_at_once_unless_the_task_forbids_it(parallel: bool | None, most_at_once: int):
    task = counter_task(expected=9)
    if parallel is not None:
        task["responses_create_params"]["parallel_tool_calls"] = parallel
    calls = [called("add", {"count": number}, f"c{number}") for number in (1, 2, 3)]
    rollout, server, _ = played(in_order(turn(*calls), turn(said("9"))), task=task)
    assert rollout.reward == 1.0
    assert server.most_at_once == most_at_once
    written = rollout.row["response"]["output"]
    assert written[:3] == calls
    assert [item["call_id"] for item in written[3:6]] == ["c1", "c2", "c3"]
    assert ours(rollout, "num_tool_calls") == (3,)
    assert rollout.row["response"]["parallel_tool_calls"] is (parallel is not False)
    if parallel is False:
        assert outputs(rollout) == ['{"value":4}', '{"value":6}', '{"value":9}']


NO_TOOLS = [
    *("verify", "seed_session", "../verify", "../x", "aggregate_metrics", "", "add/../verify", "ADD", "add ", "add\n", "add?x=1"),
    *("%76erify", "/add", "//evil.example/add", "http://evil.example/add", "\u0430dd", "ａｄｄ", "add#", "add\x00", "..", "mcp"),
]


@pytest.mark.parametrize("name", NO_TOOLS)
def test_a_name_that_the_task_does_not_offer_never_becomes_a_request(name: str):
    rollout, server, endpoint = played(in_order(turn(called(name, {})), turn(said("?"))))
    assert server.seen == ["seed", "verify"]
    assert rollout.reward == 0.0
    assert [json.loads(one) for one in outputs(rollout)] == [{"error": f"Unknown tool: {name}"}]
    assert endpoint.requests[1].items[-1] == {"type": "function_call_output", "call_id": "c0", "output": outputs(rollout)[0]}
    assert ours(rollout, "num_tool_calls", "num_tool_errors") == (1, 1)


@pytest.mark.parametrize("name", [None, 3, ["add"], {"add": 1}])
def test_a_name_that_is_no_text_is_an_error_output_as_well(name: Any):
    rollout, server, _ = played(in_order(turn(called(name, {})), turn(said("?"))))
    assert server.seen == ["seed", "verify"]
    assert [json.loads(one) for one in outputs(rollout)] == [{"error": f"Unknown tool: {name}"}]
    assert ours(rollout, "num_tool_errors") == (1,)


@pytest.mark.parametrize("name", ["verify", "seed_session", "../seed_session", "a/b", ".", "http://127.0.0.1/verify", "ä"])
def test_a_row_cannot_offer_the_verifier_as_a_tool(name: str):
    task = counter_task()
    task["responses_create_params"]["tools"] = [{"type": "function", "name": name, "parameters": {}}]
    rollout, server, _ = played(in_order(turn(called(name, task)), turn(said("?"))), task=task)
    assert server.seen == ["seed", "verify"]
    assert ours(rollout, "num_tool_errors") == (1,)


def test_only_names_among_the_tasks_tools_are_routes_of_the_server():
    paths: list[str] = []

    async def any_route(request: web.Request) -> web.Response:
        paths.append(request.raw_path)
        return web.json_response({"reward": 1.0})

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", any_route)
        calls = [called(name, {}, f"c{number}") for number, name in enumerate([*NO_TOOLS, "add"])]
        async with serving(app) as url:
            http = HttpClient()
            rollout = await attempted(ScriptedEndpoint(in_order(turn(*calls), turn(said("?")))), url, counter_task(), http=http)
            await http.close()
        assert ours(rollout, "num_tool_calls", "num_tool_errors") == (len(NO_TOOLS) + 1, len(NO_TOOLS))

    asyncio.run(run())
    assert paths == ["/seed_session", "/add", "/verify"]


@pytest.mark.parametrize(
    "arguments",
    ["", '{"count": 2', "[2]", "null", "2", '{"count": NaN}', '{"count": "\\ud800"}', '{"count":' + "[" * 400 + "]" * 400 + "}"],
)
def test_arguments_that_are_no_object_are_told_to_the_model_and_it_goes_on(arguments: str):
    rollout, server, _ = played(in_order(turn(called("add", arguments)), turn(called("add", {"count": 2})), turn(said("5"))))
    assert rollout.failure is None
    assert rollout.reward == 1.0
    first, second = outputs(rollout)
    if arguments:
        assert "Invalid tool call arguments" in json.loads(first)["error"]
    else:
        assert "Field required" in first  # an empty string is an empty object
    assert second == '{"value":5}'
    assert server.seen == ["seed", "add 2", "verify"]
    assert ours(rollout, "num_tool_errors") == (1,)


def test_a_failing_tools_body_is_given_to_the_model_and_counted():
    rollout, server, endpoint = played(in_order(turn(called("break_down", {})), turn(said("5"))))
    assert rollout.failure is None
    (body,) = outputs(rollout)
    assert "no such thing" in body
    assert endpoint.requests[1].items[-1]["output"] == body
    assert ours(rollout, "num_tool_calls", "num_tool_errors") == (1, 1)
    assert server.seen == ["seed", "break_down", "verify"]


def test_a_turn_of_reasoning_alone_is_followed_by_another_one():
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
    rollout, _, endpoint = played(in_order(turn(thought), turn(said("3"))), task=counter_task(expected=3))
    assert ours(rollout, "stop_reason", "num_turns") == ("answered", 2)
    assert endpoint.requests[1].items == ({"role": "user", "content": "count"}, thought)
    assert rollout.row["response"]["output"] == [thought, said("3")]
    assert rollout.reward == 1.0


def test_usage_is_the_sum_over_all_turns():
    def script(request: TurnRequest) -> Turn:
        item = said("5") if request.key.turn else called("add", {"count": 2})
        return Turn(items=(item,), usage=Usage(input_tokens=10, output_tokens=3, cached_tokens=4, reasoning_tokens=2))

    rollout, _, _ = played(script)
    assert rollout.row["response"]["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 8},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 26,
    }
    assert ours(rollout, "num_input_tokens", "num_output_tokens") == (20, 6)


CHAT = {
    "model": "m",
    "choices": [{"message": {"role": "assistant", "content": "3"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 30,
        "completion_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {"reasoning_tokens": 7},
    },
}
RESPONSES = {
    "model": "m",
    "status": "completed",
    "output": [said("3")],
    "usage": {
        "input_tokens": 30,
        "output_tokens": 12,
        "input_tokens_details": {"cached_tokens": 16},
        "output_tokens_details": {"reasoning_tokens": 7},
    },
}


@pytest.mark.parametrize(("kind", "reply"), [(ChatEndpoint, CHAT), (ResponsesEndpoint, RESPONSES)])
def test_cached_and_reasoning_tokens_come_through_from_both_wires(kind: Any, reply: dict[str, Any]):
    async def run() -> Rollout:
        http = HttpClient()
        async with serving_counter() as (url, _), model_server(answer(reply)) as model:
            endpoint = kind(ModelHttp(model.url, client=http, api_key=None, timeout_s=20), "m")
            rollout = await attempted(endpoint, url, counter_task(expected=3), http=http)
            await http.close()
            return rollout

    rollout = asyncio.run(run())
    assert rollout.reward == 1.0
    assert rollout.row["response"]["usage"] == {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 16},
        "output_tokens": 12,
        "output_tokens_details": {"reasoning_tokens": 7},
        "total_tokens": 42,
    }


def test_a_text_input_is_one_user_message_and_the_runs_parameters_lie_over_the_tasks():
    task = {"responses_create_params": {"input": "hi", "temperature": 0.2, "top_p": 0.5}}
    rollout, _, endpoint = played(in_order(turn(said("yo"))), task=task, params={"temperature": 0.9})
    (request,) = endpoint.requests
    assert request.items == ({"role": "user", "content": "hi"},)
    assert (request.params["temperature"], request.params["top_p"]) == (0.9, 0.5)
    assert rollout.row["responses_create_params"] == {"input": "hi", "temperature": 0.9, "top_p": 0.5}


def test_a_failing_endpoint_is_a_model_error_that_keeps_what_was_played():
    def script(request: TurnRequest) -> Turn:
        if request.key.turn:
            raise ServerError("overloaded", url="http://model", status=503)
        return turn(called("add", {"count": 2}))

    rollout, server, _ = played(script)
    assert rollout.failure is not None
    assert (rollout.failure.type, rollout.failure.terminal) == (FailureType.MODEL, False)
    assert ours(rollout, "num_turns", "num_tool_calls", "num_input_tokens") == (1, 1, 10)
    assert rollout.row["gym_bridge"]["failure"]["stage"] == "model"
    assert rollout.row["reward"] is None
    assert server.seen == ["seed", "add 2"]


def test_a_parameter_that_the_endpoint_cannot_be_asked_faults_the_task():
    def script(request: TurnRequest) -> Turn:
        raise DataError("parameter 'x' is none of the Responses API")

    rollout, _, _ = played(script)
    assert rollout.failure is not None
    assert (rollout.failure.type, rollout.failure.terminal) == (FailureType.INVALID_ROW, True)


@pytest.mark.parametrize("wire", ["in process", "http"])
def test_a_context_that_overflows_on_the_first_call_is_a_terminal_failure_and_later_a_truncated_rollout(wire: str):
    refusal = answer({"error": {"message": "maximum context length is 4096", "code": "context_length_exceeded"}}, status=400)
    called_first = answer({"model": "m", "status": "completed", "output": [called("add", {"count": 2})]})

    async def run(num_turns: int) -> tuple[Rollout, list[str]]:
        def script(request: TurnRequest) -> Turn:
            if request.key.turn >= num_turns:
                raise ContextOverflowError("the prompt leaves no room")
            return turn(called("add", {"count": 2}))

        http = HttpClient()
        async with serving_counter() as (url, server), model_server(*[called_first] * num_turns, refusal) as model:
            over_http = ResponsesEndpoint(ModelHttp(model.url, client=http, api_key=None, timeout_s=20), "m")
            endpoint = ScriptedEndpoint(script) if wire == "in process" else over_http
            rollout = await attempted(endpoint, url, counter_task(), http=http)
            await http.close()
            return rollout, server.seen

    rollout, seen = asyncio.run(run(0))
    assert rollout.failure is not None
    assert (rollout.failure.type, rollout.failure.terminal) == (FailureType.CONTEXT_OVERFLOW, True)
    assert seen == ["seed"]
    rollout, seen = asyncio.run(run(1))
    assert (rollout.failure, rollout.reward) == (None, 1.0)
    assert ours(rollout, "stop_reason", "truncated", "num_turns") == ("context_overflow", True, 1)
    assert seen == ["seed", "add 2", "verify"]


class HalfDeadSession:
    """A session in which one tool gives no answer, at once, and another waits until it is called off."""

    def __init__(self):
        self.ended: list[str] = []

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """Fail or wait."""
        if name == "dead":
            raise RolloutError(FailureType.TOOL, "gone")
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(name)
        return "", False


@pytest.mark.parametrize(("parallel", "ended"), [(True, ["slow"]), (False, [])])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_tool_without_an_answer_ends_the_rollout_and_leaves_no_call_behind(parallel: bool, ended: list[str]):
    tools: list[Item] = [{"type": "function", "name": name} for name in ("dead", "slow")]
    params = {"input": "x", "tools": tools, "parallel_tool_calls": parallel}
    calls = turn(called("slow", {}, "a"), called("dead", {}, "b")) if parallel else turn(called("dead", {}), called("slow", {}))

    async def run() -> list[str]:
        session = HalfDeadSession()
        loop = TurnLoop(endpoint=ScriptedEndpoint(in_order(calls)), limits=Limits(), seed=0)
        before = asyncio.all_tasks()
        with pytest.raises(RolloutError, match="gone"):
            await loop.play(conversation_of(params, RolloutKey(0, 0)), session, Play())
        assert asyncio.all_tasks() == before
        return session.ended

    assert asyncio.run(asyncio.wait_for(run(), 20)) == ended


def test_a_name_that_the_model_made_up_stands_in_no_stage():
    play, stages = Play(), []

    class Session:
        """Notes what the rollout waits for."""

        async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
            """Nothing much."""
            stages.append(play.stage)
            return "", False

    calls = [called("\x1b[2J", {}), called("add", {"count": 1}, "c1"), called("x" * 9999, {}, "c2")]
    loop = TurnLoop(endpoint=ScriptedEndpoint(in_order(turn(*calls), turn(said("1")))), limits=Limits(), seed=0)
    asyncio.run(loop.play(conversation_of({"input": "x", "tools": CounterServer.tools()}, RolloutKey(0, 0)), Session(), play))
    assert (stages, play.num_tool_errors) == (["tool add"], 2)
