"""Agents that play whole rollouts: their row over the task's, and what is read off it."""

import json
from typing import Any

import pytest

from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.agent import Agent, inner_body
from gym_bridge.schemas.rollouts import Failure, FailureType, StopReason
from gym_bridge.schemas.seams import Usage
from tests.rollouts.dialects import Handler, Server, abort, answering, half, hang, play_in
from tests.rollouts.stage import called, said

ROW = {"responses_create_params": {"input": "go"}, "id": "mine", "verifier_metadata": {"answer": 4}}
PLAYED_PARAMS = {"input": [{"role": "user", "content": "go"}], "temperature": None}
USAGE = {
    "input_tokens": 30,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 35,
}


def output_of(call_id: str = "c0") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": "{}"}


def answer(*output: Any, reward: Any = 1.0, response: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """What /run answers."""
    whole = {"id": "r", "object": "response", "model": "m", "output": list(output or [said("done")]), "usage": USAGE}
    return {"responses_create_params": PLAYED_PARAMS, "response": {**whole, **(response or {})}, "reward": reward, **fields}


def run(handler: Handler, *, attempt: int = 0, timeout_s: float = 10) -> tuple[Any, Play, Server]:
    server = Server({"/run": handler})
    ended, play = play_in(server, lambda url, http: Agent(url=url, http=http, timeout_s=timeout_s), ROW, attempt=attempt)
    return ended, play, server


def test_the_agents_row_stands_over_the_tasks_which_keeps_what_was_dropped():
    ended, play, _ = run(answering(answer(said("four"), is_correct=True)))
    assert isinstance(ended, Played)
    assert ended.stop is StopReason.AGENT_ENDED
    assert ended.row == {**ROW, **answer(said("four"), is_correct=True)}
    assert set(play.timings_s) == {"agent"}


@pytest.mark.parametrize(("attempt", "more"), [(0, {}), (2, {"_ng_attempt_index": 2})])
def test_the_task_is_sent_with_its_indices_and_a_further_attempt_with_its_number(attempt: int, more: dict[str, int]):
    _, _, server = run(answering(answer()), attempt=attempt)
    assert server.sent_to("/run") == [{**ROW, "_ng_task_index": 4, "_ng_rollout_index": 2, **more}]


def test_turns_calls_and_usage_are_read_off_the_response():
    thought = {"type": "reasoning", "id": "r", "summary": []}
    said_first = [thought, said("look"), called("f", {}, "c0"), called("f", {}, "c1"), output_of("c0"), output_of("c1")]
    _, play, _ = run(answering(answer(*said_first, thought, thought, said("a"), said("b"))))
    assert (play.num_turns, play.num_tool_calls, play.last_items) == (3, 2, [3, 8, 9])
    assert play.usage == Usage(input_tokens=30, output_tokens=5, cached_tokens=8, reasoning_tokens=2)
    assert play.model == "m"
    assert play.turns == []


@pytest.mark.parametrize("usage", [None, "many", {"prompt_tokens": 3}, {"input_tokens": "3", "input_tokens_details": 4}])
def test_usage_in_another_shape_is_none(usage: Any):
    ended, play, _ = run(answering(answer(response={"usage": usage})))
    assert isinstance(ended, Played)
    assert play.usage == Usage()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answer(response={"incomplete_details": {"reason": "max_output_tokens"}}), StopReason.MAX_OUTPUT_TOKENS),
        (answer(response={"incomplete_details": {"reason": "content_filter"}}), StopReason.CONTENT_FILTER),
        (answer(response={"status": "incomplete"}), StopReason.MAX_OUTPUT_TOKENS),
        (answer(terminated=True, truncated=False), StopReason.TERMINATED),
        (answer(terminated=False, truncated=True), StopReason.ENVIRONMENT_TRUNCATED),
        (answer(called("f", {}), output_of()), StopReason.MAX_TURNS),
        (answer(called("f", {})), StopReason.MAX_TURNS),
        (answer(called("f", {}), output_of(), said("done")), StopReason.AGENT_ENDED),
        (answer(response={"output": []}), StopReason.AGENT_ENDED),
    ],
)
def test_why_it_ended_is_told_from_its_row(reply: Any, expected: StopReason):
    ended, _, _ = run(answering(reply))
    assert isinstance(ended, Played)
    assert ended.stop is expected


def tokens(prompt: Any, generated: Any, logprobs: Any) -> dict[str, Any]:
    return {"prompt_token_ids": prompt, "generation_token_ids": generated, "generation_log_probs": logprobs}


def test_tokens_are_taken_out_of_the_items():
    first, last = called("f", {}), said("done")
    inline = [first | tokens([1, 2], [7, 8], [-0.1, -0.2]), output_of(), last | tokens([1, 2, 7, 8, 20], [9], [-3])]
    ended, play, _ = run(answering(answer(*inline)))
    assert ended.row["response"]["output"] == [first, output_of(), last]
    assert [(turn.prompt_ids, turn.completion_ids, turn.logprobs, turn.starts_segment) for turn in play.turns] == [
        ((1, 2), (7, 8), (-0.1, -0.2), True),
        ((1, 2, 7, 8, 20), (9,), (-3.0,), False),
    ]
    assert play.last_items == [0, 2]


def test_a_prompt_that_does_not_extend_what_came_before_starts_a_segment():
    inline = [called("f", {}) | tokens([1, 2], [7], [-0.1]), output_of(), said("done") | tokens([1, 2, 6, 20], [9], [-0.3])]
    _, play, _ = run(answering(answer(*inline)))
    assert [turn.starts_segment for turn in play.turns] == [True, True]


@pytest.mark.parametrize(
    "broken",
    [
        tokens([1, 2], [7, 8], [-0.1]),
        tokens([1, 2], [7], [None]),
        tokens([1, 2], [], []),
        tokens([], [7], [-0.1]),
        tokens([1, "2"], [7], [-0.1]),
        tokens([1, 2], [7], "no"),
        tokens([1, -2], [7], [-0.1]),
        tokens([1, 2**31], [7], [-0.1]),
        {"generation_token_ids": [7]},
    ],
)
def test_tokens_that_nothing_was_sampled_from_are_left_where_they_are(broken: dict[str, Any]):
    whole = said("done") | tokens([1, 2, 7, 20], [9], [-0.3])
    ended, play, _ = run(answering(answer(called("f", {}) | broken, output_of(), whole)))
    assert [turn.completion_ids for turn in play.turns] == [(9,)]
    assert play.last_items == [2]
    assert play.num_turns == 2
    assert ended.row["response"]["output"] == [called("f", {}) | broken, output_of(), said("done")]


def failed(handler: Handler, **options: Any) -> Failure:
    ended, _, _ = run(handler, **options)
    assert isinstance(ended, Failure)
    return ended


def passed_on(body: str, *, servers: int = 1) -> str:
    """An error as NeMo Gym's servers pass it on: each makes a JSON string of the bytes that it got."""
    for _ in range(servers):
        body = json.dumps(f"Hit an exception in SimpleAgent___x calling an inner server: {body.encode()!r}")
    return body


REFUSAL = '{"detail":[{"type":"missing","loc":["body","expected_count"],"msg":"Field required"}]}'


def test_a_task_that_the_resources_server_refused_is_an_invalid_row_though_it_comes_as_a_500():
    failure = failed(answering(passed_on(REFUSAL), 500))
    assert (failure.type, failure.status, failure.terminal) == (FailureType.INVALID_ROW, 422, True)
    assert failure.message == f"/run refused the row: {REFUSAL}"


def test_a_task_that_the_agent_refused_is_an_invalid_row():
    assert failed(answering(REFUSAL, 422)).type is FailureType.INVALID_ROW


def test_a_response_that_the_verifier_refused_is_not_the_rows_fault():
    refusal = REFUSAL.replace('"body",', '"body","response",')
    assert failed(answering(passed_on(refusal), 500)).type is FailureType.AGENT


def test_what_a_model_server_refused_is_not_the_rows_fault():
    failure = failed(answering(passed_on(REFUSAL, servers=2), 500))
    assert (failure.type, failure.terminal) == (FailureType.AGENT, False)
    assert failure.message == f"/run answered 500: {REFUSAL}"


def test_the_innermost_error_is_told_whatever_quotes_it_holds():
    assert inner_body(passed_on("it's \"broken\": b'x'", servers=3).encode()) == ("it's \"broken\": b'x'", 3)


@pytest.mark.parametrize(
    "body", ["", "boom", '"boom', "Hit an exception in X calling an inner server: b'\\x'", "\xff", "\"KeyError('a')\""]
)
def test_any_other_body_is_told_as_it_is(body: str):
    text, depth = inner_body(body.encode())
    assert depth == 0
    assert text == (json.loads(body) if body.endswith('"') else body)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (abort, FailureType.AGENT),
        (half, FailureType.AGENT),
        (answering("boom", 500), FailureType.AGENT),
        (answering("[]"), FailureType.AGENT),
        (answering("no json"), FailureType.AGENT),
        (answering({"reward": 1.0}), FailureType.AGENT),
        (answering(answer(response={"output": None})), FailureType.AGENT),
        (answering(answer(reward=None)), FailureType.VERIFY),
        (answering(answer(reward=0.0, _ng_failure_class="judge_failed")), FailureType.JUDGE),
        (answering(answer(reward=0.0, _ng_failure_class="timeout_exceeded")), FailureType.TIMEOUT),
        (answering(answer(reward=0.0, _ng_no_persist=True)), FailureType.AGENT),
    ],
)
def test_an_agent_that_gives_no_reward_is_a_typed_failure(handler: Handler, expected: FailureType):
    assert failed(handler).type is expected


def test_an_agent_that_hangs_is_a_timeout():
    assert failed(hang, timeout_s=0.3).type is FailureType.TIMEOUT


def test_an_answer_without_params_keeps_the_tasks_own():
    ended, _, _ = run(answering(answer() | {"responses_create_params": None}))
    assert ended.row["responses_create_params"] == ROW["responses_create_params"]
