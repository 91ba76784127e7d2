from pathlib import Path
from typing import Any

import orjson
import pytest

from gym_bridge.io.rollout_reader import view_row
from gym_bridge.io.row_decoder import RowDecoder
from gym_bridge.schemas.columns import GROUP_COLUMNS, ROLLOUT_COLUMNS
from gym_bridge.transforms.expressions import check_names, parse_expression
from gym_bridge.transforms.row_columns import fields_read, known_names, rollout_columns

FIXTURES = Path(__file__).parents[2] / "fixtures" / "nemo_gym"

OURS = {
    "responses_create_params": {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "12"}, {"type": "input_image", "image_url": "data:"}]},
        ],
        "tools": [{"type": "function", "name": "add"}, {"type": "function", "name": "sub"}],
    },
    "response": {
        "model": "tiny",
        "status": "completed",
        "usage": {"input_tokens": 5, "output_tokens": 6},
        "output": [
            {"type": "function_call", "call_id": "1", "name": "sub", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "1"},
            {"type": "function_call", "call_id": "2", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "2", "output": "3"},
            {"type": "function_call", "call_id": "3", "name": "sub", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "3", "output": "oops"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "four"}]},
        ],
    },
    "reward": 0.5,
    "reward_components": {"accuracy": 1.0, "format": 0.0},
    "agent_ref": {"type": "responses_api_agents", "name": "math"},
    "_ng_task_index": 3,
    "_ng_rollout_index": 1,
    "gym_bridge": {
        "stop_reason": "answered",
        "truncated": False,
        "num_turns": 4,
        "num_tool_calls": 3,
        "num_tool_errors": 1,
        "num_input_tokens": 50,
        "num_output_tokens": 60,
        "attempt": 2,
        "policy_versions": [7, 7, 8, 8],
        "timings_s": {"total": 1.25, "model": 1.0},
    },
    "format": "a field wins over a part of reward_components",
    "difficulty": {"level": 4, "tags": ["algebra", "short"], "steps": [1, 2]},
    "verified": True,
    "extracted_answer": None,
    "pass@1": 0.5,
}


def columns(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return rollout_columns(view_row(row), names)


def test_every_column_of_a_rollout_of_ours_has_its_value():
    assert columns(OURS, *ROLLOUT_COLUMNS) == {
        "reward": 0.5,
        "task_index": 3,
        "rollout_index": 1,
        "agent": "math",
        "model": "tiny",
        "policy_version": 7,
        "attempt": 2,
        "status": "completed",
        "stop_reason": "answered",
        "truncated": False,
        "failed": False,
        "failure": None,
        "masked": False,
        "num_turns": 4,
        "num_tool_calls": 3,
        "num_tool_errors": 1,
        "tools_used": ["sub", "add"],
        "num_tools": 2,
        "num_prompt_messages": 2,
        "prompt_chars": len("Be brief.") + len("12"),
        "answer_chars": 4,
        "num_input_tokens": 50,
        "num_output_tokens": 60,
        "elapsed_s": 1.25,
    }


def test_only_the_asked_columns_are_computed():
    assert columns(OURS, "reward", "num_tools") == {"reward": 0.5, "num_tools": 2}
    assert columns(OURS) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("verified", True),
        ("accuracy", 1.0),
        ("format", "a field wins over a part of reward_components"),
        ("reward_components.format", 0.0),
        ("difficulty.level", 4),
        ("difficulty.tags", ["algebra", "short"]),
        ("gym_bridge.timings_s.model", 1.0),
        ("response.usage.output_tokens", 6),
        ("difficulty", None),
        ("difficulty.steps", None),
        ("difficulty.level.deeper", None),
        ("extracted_answer", None),
        ("nothing", None),
        ("nothing.at.all", None),
    ],
)
def test_other_names_are_looked_up_in_the_row(name: str, expected: Any):
    assert columns(OURS, name) == {name: expected}


def test_usage_is_read_in_each_of_its_forms():
    row = {"response": {"output": [], "usage": {"prompt_tokens": 7, "completion_tokens": 0}}, "reward": 1}
    assert columns(row, "num_input_tokens", "num_output_tokens") == {"num_input_tokens": 7, "num_output_tokens": 0}
    row = {"response": {"output": [], "usage": None}, "reward": 1}
    assert columns(row, "num_input_tokens", "num_output_tokens") == {"num_input_tokens": None, "num_output_tokens": None}


def test_a_row_of_nemo_gym_tells_why_it_was_cut_off():
    row = {"response": {"output": [], "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "reward": 0}
    told = columns(row, "stop_reason", "truncated", "status", "answer_chars")
    assert told == {"stop_reason": "max_output_tokens", "truncated": True, "status": "incomplete", "answer_chars": None}


@pytest.mark.parametrize(
    ("row", "failure"),
    [
        ({"gym_bridge": {"failure": {"type": "tool_error"}}, "_ng_failure_class": "transient"}, "tool_error"),
        ({"_ng_failure_class": "judge_failed"}, "judge_failed"),
        ({"response": {"id": "resp_1-failed", "output": []}}, "unknown"),
    ],
)
def test_a_failure_has_its_type(row: dict[str, Any], failure: str):
    assert columns(row, "failed", "failure") == {"failed": True, "failure": failure}


def test_known_names_are_the_columns_then_what_the_row_holds():
    names = known_names(OURS)
    assert names[: len(ROLLOUT_COLUMNS)] == list(ROLLOUT_COLUMNS)
    assert len(set(names)) == len(names)
    assert {"accuracy", "reward_components.accuracy", "format", "difficulty.level", "difficulty.tags", "extracted_answer"} <= {
        *names
    }
    assert not {"difficulty", "difficulty.steps", "pass@1", "response.output"} & {*names}


def test_known_names_end_in_rows_that_nest_without_end():
    row: dict[str, Any] = {"a": 1}
    for _ in range(2000):
        row = {"a": row, "b": 1}
    assert known_names(row)[len(ROLLOUT_COLUMNS) :] == ["a.a.a.a.a.b", "a.a.a.a.b", "a.a.a.b", "a.a.b", "a.b", "b"]


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_known_name_of_a_real_row_can_be_asked_for_and_written(path: Path):
    for line in path.read_bytes().splitlines():
        if not line.startswith(b"{"):
            continue
        row = orjson.loads(line)
        names = known_names(row)
        expression = parse_expression(f"{' is None or '.join(names[:60])} is None")
        check_names(expression, names)
        assert set(rollout_columns(view_row(row), names)) == set(names)
        assert_a_decoder_keeps(row, names)


def assert_a_decoder_keeps(row: dict[str, Any], names: list[str]) -> None:
    line, whole = orjson.dumps(row), rollout_columns(view_row(row), names)
    for name in names:
        view = view_row(RowDecoder(fields_read([name])).decode(line))
        assert rollout_columns(view, [name]) == {name: whole[name]}


def test_a_decoder_that_is_told_the_fields_to_read_loses_no_value():
    failed = {**OURS, "reward": None, "_ng_attempt_index": 1, "gym_bridge": {"failure": {"type": "tool_error"}}}
    for row in (OURS, failed):
        assert_a_decoder_keeps(row, known_names(row))
    assert fields_read(["reward", "num_turns", "truncated"]) == set()
    assert fields_read(["accuracy"]) == {"accuracy", "reward_components"}
    assert fields_read(["difficulty.level", "model"]) == {"difficulty", "reward_components", "response"}


def test_columns_are_listed_under_their_names_with_a_sentence_each():
    for name, column in [*ROLLOUT_COLUMNS.items(), *GROUP_COLUMNS.items()]:
        assert column.name == name
        assert name.isidentifier()
        assert column.about.endswith(".")
    assert set(GROUP_COLUMNS) == {
        *("num_rollouts", "pass_rate", "mean_reward", "min_reward", "max_reward", "std_reward", "spread"),
        *("num_failed", "num_truncated", "agent", "task_index"),
    }
