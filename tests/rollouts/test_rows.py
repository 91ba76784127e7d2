"""Rows as they go to disk: NeMo Gym's keys, the whole task, and what happened under `gym_bridge` alone."""

from typing import Any

from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.rows import failure_row, finished_row, response_object
from gym_bridge.schemas.rollouts import Failure, FailureType, RolloutKey, StopReason
from gym_bridge.schemas.seams import Turn, Usage
from tests.rollouts.stage import called, said

KEY = RolloutKey(3, 1)


def played() -> Play:
    """Two turns, one tool call that failed, and 1.5 s of waiting for the model."""
    play = Play(attempt=2)
    for item in (called("add", {}), said("5")):
        usage = Usage(input_tokens=10, output_tokens=3, cached_tokens=4, reasoning_tokens=1)
        play.add(Turn(items=(item,), usage=usage, model="m"))
    play.num_tool_calls = play.num_tool_errors = 1
    play.timings_s = {"model": 1.5}
    play.waits_s = [("model", 1.0), ("model", 0.5)]
    return play


OURS: dict[str, Any] = {
    "num_turns": 2,
    "num_tool_calls": 1,
    "num_tool_errors": 1,
    "num_input_tokens": 20,
    "num_output_tokens": 6,
    "attempt": 2,
    "policy_versions": [],
    "timings_s": {"total": 2.25, "model": 1.5},
    "waits_s": [("model", 1.0), ("model", 0.5)],
}


def test_a_response_holds_all_turns_and_says_with_what_they_were_asked():
    response = response_object(KEY, played(), {"tools": [{"name": "add"}], "tool_choice": "required", "parallel_tool_calls": False})
    assert response.pop("created_at") > 1_700_000_000
    assert response == {
        "id": "resp_3_1",
        "object": "response",
        "model": "m",
        "status": "completed",
        "incomplete_details": None,
        "output": [called("add", {}), said("5")],
        "parallel_tool_calls": False,
        "tool_choice": "required",
        "tools": [{"name": "add"}],
        "usage": {
            "input_tokens": 20,
            "input_tokens_details": {"cached_tokens": 8},
            "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 26,
        },
    }


def test_what_a_task_leaves_out_is_the_wires_default():
    response = response_object(KEY, Play(), {"tools": None, "parallel_tool_calls": None})
    assert [response[name] for name in ("tools", "tool_choice", "parallel_tool_calls", "output")] == [[], "auto", True, []]


def test_a_finished_row_keeps_the_task_and_its_indices_whatever_the_verifier_said():
    row = {"id": "mine", "reward": 0.5, "_ng_task_index": 77, "gym_bridge": {"theirs": 1}}
    finished = finished_row(Played(row=row, stop=StopReason.MAX_TURNS), played(), KEY, attempt=2, elapsed_s=2.25)
    assert finished == {
        "id": "mine",
        "reward": 0.5,
        "_ng_task_index": 3,
        "_ng_rollout_index": 1,
        "agent_ref": {"type": "responses_api_agents", "name": "gym_bridge"},
        "gym_bridge": {"stop_reason": "max_turns", "truncated": True, **OURS},
    }


def test_a_failure_row_keeps_the_task_has_no_reward_and_says_how_far_it_came():
    play = played()
    with play.waiting_for("verify"):
        pass
    del play.timings_s["verify"], play.waits_s[-1]
    failure = Failure(type=FailureType.VERIFY, message="/verify answered 503: busy", status=503)
    row = {"id": "mine", "agent_ref": {"name": "mine"}, "reward": 1.0}
    assert failure_row(row, failure, play, KEY, attempt=2, elapsed_s=2.25) == {
        "id": "mine",
        "reward": None,
        "_ng_task_index": 3,
        "_ng_rollout_index": 1,
        "_ng_attempt_index": 2,
        "_ng_failure_class": "verify_error",
        "agent_ref": {"name": "mine"},
        "gym_bridge": {
            "failure": {
                "type": "verify_error",
                "message": "/verify answered 503: busy",
                "status": 503,
                "stage": "verify",
                "terminal": False,
            },
            **OURS,
        },
    }


def test_time_is_added_up_by_stage_also_when_the_stage_fails():
    play = Play()
    for name in ("tool add", "tool sub"):
        try:
            with play.waiting_for(name, counted_as="tools"):
                raise LookupError
        except LookupError:
            assert play.stage == name
    assert play.timings_s.keys() == {"tools"}
    before = play.timings_s["tools"]
    with play.waiting_for("tool add", counted_as="tools"):
        pass
    assert play.timings_s["tools"] > before > 0
