"""The agent's turn loop against a real resource server: tools, limits, and a model that misbehaves."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from gym_bridge.errors import ServerError
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.turn_loop import Play, TurnLoop
from gym_bridge.schemas.rollouts import FailureType, Item, Rollout, RolloutKey, StopReason
from gym_bridge.schemas.seams import Turn, TurnRequest
from tests.rollouts.stage import (
    CounterServer,
    Script,
    ScriptedEndpoint,
    called,
    counter_task,
    in_order,
    said,
    serving_counter,
    turn,
)


def played(
    script: Script, *, task: dict[str, Any] | None = None, max_turns: int = 8, params: dict[str, Any] | None = None
) -> tuple[Rollout, CounterServer, ScriptedEndpoint]:
    """One rollout of `script` against the counter."""

    async def run() -> tuple[Rollout, CounterServer, ScriptedEndpoint]:
        endpoint = ScriptedEndpoint(script)
        async with serving_counter() as (url, server):
            loop = TurnLoop(endpoint=endpoint, max_turns=max_turns, seed=7, params=params or {})
            collector = RolloutCollector(loop, server_url=url, concurrency=1, max_attempts=1, rollout_timeout_s=20)
            (group,) = [one async for one in collector.groups([task or counter_task()], group_size=1)]
            return group.rollouts[0], server, endpoint

    return asyncio.run(run())


def outputs(rollout: Rollout) -> list[str]:
    """The tool outputs, in order."""
    return [item["output"] for item in rollout.row["response"]["output"] if item["type"] == "function_call_output"]


def test_a_model_that_answers_at_once_is_verified_after_one_turn():
    rollout, server, _ = played(in_order(turn(said("done"))), task=counter_task(expected=3))
    assert rollout.failure is None
    assert rollout.reward == 1.0
    assert rollout.row["response"]["output"] == [said("done")]
    assert (rollout.row["gym_bridge"]["stop_reason"], rollout.row["gym_bridge"]["truncated"]) == ("answered", False)
    assert (rollout.row["gym_bridge"]["num_turns"], rollout.row["gym_bridge"]["num_tool_calls"]) == (1, 0)
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
    assert rollout.row["gym_bridge"]["num_tool_calls"] == 3
    if parallel is False:
        assert outputs(rollout) == ['{"value":4}', '{"value":6}', '{"value":9}']


@pytest.mark.parametrize("name", ["verify", "seed_session", "../verify", "../x", "aggregate_metrics", "", "add/../verify", "ADD"])
def test_a_name_that_the_task_does_not_offer_never_becomes_a_request(name: str):
    rollout, server, _ = played(in_order(turn(called(name, {})), turn(said("?"))))
    assert server.seen == ["seed", "verify"]
    assert rollout.reward == 0.0
    assert [json.loads(one) for one in outputs(rollout)] == [{"error": f"Unknown tool: {name}"}]
    assert rollout.row["gym_bridge"]["num_tool_errors"] == 1


@pytest.mark.parametrize("name", ["verify", "seed_session", "../seed_session", "a/b", "."])
def test_a_row_cannot_offer_the_verifier_as_a_tool(name: str):
    task = counter_task()
    task["responses_create_params"]["tools"] = [{"type": "function", "name": name, "parameters": {}}]
    rollout, server, _ = played(in_order(turn(called(name, task)), turn(said("?"))), task=task)
    assert server.seen == ["seed", "verify"]
    assert rollout.row["gym_bridge"]["num_tool_errors"] == 1


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
    assert rollout.row["gym_bridge"]["num_tool_errors"] == 1


def test_a_failing_tools_body_is_given_to_the_model_and_counted():
    rollout, _, endpoint = played(in_order(turn(called("break_down", {})), turn(said("5"))))
    assert rollout.failure is None
    (body,) = outputs(rollout)
    assert "no such thing" in body
    assert endpoint.requests[1].items[-1]["output"] == body
    assert rollout.row["gym_bridge"]["num_tool_errors"] == 1


def test_the_last_allowed_turn_is_played_out_then_the_rollout_is_verified_as_truncated():
    rollout, server, endpoint = played(in_order(turn(called("add", {"count": 1}))), max_turns=2)
    assert rollout.reward == 1.0
    assert rollout.truncated
    assert rollout.row["gym_bridge"]["stop_reason"] == "max_turns"
    assert len(endpoint.requests) == 2
    assert server.seen == ["seed", "add 1", "add 1", "verify"]


def test_an_answer_on_the_last_turn_is_an_answer():
    rollout, _, _ = played(in_order(turn(said("3"))), max_turns=1)
    assert rollout.row["gym_bridge"]["stop_reason"] == "answered"


def test_a_cut_off_turn_stops_before_its_tools_and_before_max_turns():
    cut = turn(called("add", {"count": 2}), incomplete="max_output_tokens")
    rollout, server, _ = played(in_order(cut), max_turns=1)
    assert (rollout.row["gym_bridge"]["stop_reason"], rollout.truncated) == ("max_output_tokens", True)
    assert server.seen == ["seed", "verify"]
    assert rollout.row["response"]["status"] == "incomplete"
    assert rollout.row["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_usage_is_the_sum_over_all_turns():
    script = in_order(turn(called("add", {"count": 2}), tokens_in=10, tokens_out=3), turn(said("5"), tokens_in=20, tokens_out=4))
    usage = played(script)[0].row["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (30, 7, 37)


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

    rollout, _, _ = played(script)
    assert rollout.failure is not None
    assert (rollout.failure.type, rollout.failure.status) == (FailureType.MODEL, 503)
    assert rollout.row["gym_bridge"]["num_turns"] == 1
    assert rollout.reward is None


class HalfDeadSession:
    """A session in which one tool gives no answer, at once, and another takes its time."""

    def __init__(self):
        self.finished: list[str] = []

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, int]:
        """Fail or wait."""
        if name == "dead":
            raise RolloutError(FailureType.TOOL, "gone")
        await asyncio.sleep(0.1)
        self.finished.append(name)
        return "", 200


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_tool_without_an_answer_ends_the_rollout_and_leaves_no_call_behind(parallel: bool):
    tools: list[Item] = [{"type": "function", "name": name} for name in ("dead", "slow")]
    row = {"responses_create_params": {"input": "x", "tools": tools, "parallel_tool_calls": parallel}}
    endpoint = ScriptedEndpoint(in_order(turn(called("dead", {}, "a"), called("slow", {}, "b"))))

    async def run() -> list[str]:
        session = HalfDeadSession()
        loop = TurnLoop(endpoint=endpoint, max_turns=2, seed=0, params={})
        with pytest.raises(RolloutError, match="gone"):
            await loop.play(row, RolloutKey(0, 0), session, Play())
        await asyncio.sleep(0.2)
        return session.finished

    assert asyncio.run(run()) == []


def test_only_an_answer_is_no_truncation():
    assert [reason for reason in StopReason if not reason.truncated] == [StopReason.ANSWERED]
