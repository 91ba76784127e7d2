"""What ends a rollout: each limit alone, the order in which they are checked, and what becomes of a rollout that one stopped."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits, RepeatedTurns
from gym_bridge.rollouts.plan import plan
from gym_bridge.rollouts.play import Play
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Item, Rollout, StopReason
from gym_bridge.schemas.seams import Turn, TurnRequest
from tests.rollouts.stage import Script, ScriptedEndpoint, called, counter_task, in_order, said, serving_counter, turn

ADD = called("add", {"count": 1})
numbers = itertools.count()


def add(count: int) -> Turn:
    """A turn that calls `add`."""
    return turn(called("add", {"count": count}))


def counting(request: TurnRequest) -> Turn:
    """Never answers, and never says the same."""
    return add(request.key.turn)


def thought(text: str) -> Item:
    """A reasoning item with an id of its own."""
    return {"type": "reasoning", "id": f"rs_{next(numbers)}", "summary": [{"type": "summary_text", "text": text}]}


def stopped(script: Script, **limits: Any) -> tuple[Rollout, list[str]]:
    """One rollout of `script` against the counter, and what the counter saw."""

    async def run() -> tuple[Rollout, list[str]]:
        http = HttpClient()
        async with serving_counter() as (url, server):
            loop = TurnLoop(endpoint=ScriptedEndpoint(script), limits=Limits(**limits), seed=0)
            environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20.0)
            (planned,) = plan([counter_task()], num_repeats=1)
            attempted = await Attempts(environment=environment, timeout_s=20.0).one(planned, 0)
            await http.close()
            return attempted.rollout, server.seen

    return asyncio.run(run())


def reason_of(rollout: Rollout) -> tuple[str, bool]:
    """Stop reason and whether the row is marked truncated."""
    return rollout.row["gym_bridge"]["stop_reason"], rollout.row["gym_bridge"]["truncated"]


CASES: dict[str, tuple[Script, dict[str, int], list[str]]] = {
    "max_output_tokens": (in_order(turn(ADD, incomplete="max_output_tokens")), {}, []),
    "content_filter": (in_order(turn(said(""), incomplete="content_filter")), {}, []),
    "max_total_tokens": (
        in_order(turn(ADD, tokens_in=3, tokens_out=3), turn(ADD, tokens_in=8)),
        {"max_total_tokens": 10},
        ["add 1"],
    ),
    "max_tool_calls": (counting, {"max_tool_calls": 2}, ["add 0", "add 1"]),
    "repeated_turn": (in_order(turn(called("break_down", {}))), {"max_repeated_turns": 3}, ["break_down"] * 3),
    "max_turns": (counting, {"max_turns": 3}, ["add 0", "add 1", "add 2"]),
}


@pytest.mark.parametrize("reason", CASES)
def test_what_each_limit_stops_is_verified_kept_and_marked_truncated(reason: str):
    script, limits, tools = CASES[reason]
    rollout, seen = stopped(script, **limits)
    assert rollout.failure is None
    assert reason_of(rollout) == (reason, True)
    assert rollout.truncated
    assert seen == ["seed", *tools, "verify"]
    assert rollout.reward == float(3 + sum(int(one.split()[1]) for one in tools if one != "break_down") == 5)


def test_the_stage_of_a_cut_off_response_is_told_in_it():
    rollout, _ = stopped(CASES["max_output_tokens"][0])
    response = rollout.row["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    rollout, _ = stopped(counting, max_turns=1)
    assert (rollout.row["response"]["status"], rollout.row["response"]["incomplete_details"]) == ("completed", None)


def test_a_limit_of_tool_calls_makes_no_part_of_a_turns_calls():
    three = [called("add", {"count": 1}, f"c{number}") for number in range(3)]
    rollout, seen = stopped(in_order(turn(*three[:2]), turn(*three)), max_tool_calls=4)
    assert reason_of(rollout) == ("max_tool_calls", True)
    assert seen == ["seed", "add 1", "add 1", "verify"]
    rollout, _ = stopped(in_order(turn(*three[:2]), turn(*three[:2]), turn(said("7"))), max_tool_calls=4)
    assert reason_of(rollout) == ("answered", False)  # as many as allowed are allowed


def test_turns_of_reasoning_alone_end_at_the_repeated_turn_or_at_the_last_turn():
    rollout, seen = stopped(lambda request: turn(thought("hm")), max_turns=50, max_repeated_turns=4)
    assert (*reason_of(rollout), rollout.row["gym_bridge"]["num_turns"]) == ("repeated_turn", True, 4)
    assert seen == ["seed", "verify"]
    rollout, _ = stopped(lambda request: turn(thought(f"hm {request.key.turn}")), max_turns=6)
    assert (*reason_of(rollout), rollout.row["gym_bridge"]["num_turns"]) == ("max_turns", True, 6)
    rollout, _ = stopped(lambda request: turn(), max_turns=50)  # a reply without any item
    assert (*reason_of(rollout), rollout.row["gym_bridge"]["num_turns"]) == ("repeated_turn", True, 4)


def test_turns_that_differ_in_what_tools_answered_are_not_alike():
    rollout, _ = stopped(in_order(add(1)), max_turns=6)  # the same call, and another value each time
    assert reason_of(rollout) == ("max_turns", True)


def test_repeated_turns_are_those_that_are_alike_but_for_their_ids():
    repeated = RepeatedTurns()
    answer = {"type": "function_call_output", "output": "x"}
    counts = [repeated.see([called("add", {}, f"c{number}"), {**answer, "call_id": f"c{number}"}]) for number in range(3)]
    assert counts == [1, 2, 3]
    assert repeated.see([called("add", {})]) == 1
    assert repeated.see([called("add", {"count": 1})]) == 1
    with_tokens = {**said("a"), "prompt_token_ids": [1], "generation_token_ids": [2], "generation_log_probs": [0.5]}
    assert [repeated.see([with_tokens]), repeated.see([{**said("a"), "id": "other"}])] == [1, 2]


ANSWER, CALL = turn(said("5"), tokens_in=90, tokens_out=10), turn(ADD, tokens_in=90, tokens_out=10)
CUT = turn(said("5"), ADD, tokens_in=90, tokens_out=10, incomplete="max_output_tokens")


@pytest.mark.parametrize(
    ("given", "limits", "reason"),
    [
        (CUT, {"max_total_tokens": 1, "max_tool_calls": 0}, StopReason.MAX_OUTPUT_TOKENS),
        (ANSWER, {"max_total_tokens": 1}, StopReason.ANSWERED),
        (CALL, {"max_total_tokens": 100, "max_tool_calls": 0}, StopReason.MAX_TOTAL_TOKENS),
        (CALL, {"max_total_tokens": 101, "max_tool_calls": 0}, StopReason.MAX_TOOL_CALLS),
        (CALL, {"max_total_tokens": 101, "max_tool_calls": 1}, None),
        (turn(thought("hm")), {"max_tool_calls": 0}, None),
    ],
)
def test_two_limits_that_strike_with_one_call_are_told_in_the_documented_order(
    given: Turn, limits: Mapping[str, int], reason: StopReason | None
):
    calls = [item for item in given.items if item["type"] == "function_call"]
    assert Limits(**limits, max_turns=1).after_call(given, calls, Play(num_turns=1)) is reason


@pytest.mark.parametrize(
    ("num_turns", "num_repeated", "reason"),
    [(8, 4, StopReason.REPEATED_TURN), (8, 3, StopReason.MAX_TURNS), (7, 3, None), (7, 4, StopReason.REPEATED_TURN)],
)
def test_a_repeated_turn_is_told_before_the_last_turn(num_turns: int, num_repeated: int, reason: StopReason | None):
    assert Limits().after_tools(Play(num_turns=num_turns), num_repeated=num_repeated) is reason


def test_an_answer_on_the_last_turn_is_an_answer():
    assert reason_of(stopped(in_order(turn(said("3"))), max_turns=1)[0]) == ("answered", False)


def test_a_message_without_calls_is_no_end_where_the_environment_answers_it():
    assert Limits().after_call(ANSWER, [], Play(), answers=False) is None


def test_the_last_allowed_turn_is_played_out_with_its_tools():
    rollout, seen = stopped(in_order(add(1)), max_turns=2)
    assert rollout.reward == 1.0
    assert seen == ["seed", "add 1", "add 1", "verify"]


def test_only_what_the_model_the_task_or_an_agent_ended_is_no_truncation():
    assert [reason for reason in StopReason if not reason.truncated] == ["answered", "terminated", "agent_ended"]
