"""Rows as NeMo RL's dataset classes want them, and each thing that those would stumble over."""

import json
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.schemas.nemo_rl_rows import RowKind, row_kind, row_problems

EXPECTED = Path(__file__).parents[2] / "fixtures" / "expected"

KINDS = {**{kind.value: kind for kind in RowKind}, "grpo": RowKind.RESPONSE}
USER = {"role": "user", "content": "2+2?"}
ASSISTANT = {"role": "assistant", "content": "4"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
GOOD: dict[RowKind, dict[str, Any]] = {
    RowKind.SFT: {"messages": [USER, ASSISTANT], "tools": [{"type": "function", "function": {"name": "add"}}]},
    RowKind.RESPONSE: {"input": "2+2?", "output": "4"},
    RowKind.DPO: {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    RowKind.PREFERENCE: {
        "context": [USER],
        "completions": [{"rank": 0, "completion": [ASSISTANT]}, {"rank": 1, "completion": [{**ASSISTANT, "content": "5"}]}],
    },
    RowKind.TASKS: {"responses_create_params": {"input": [USER]}, "agent_ref": {"name": "math_agent"}, "expected_answer": "4"},
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_row_is_known_by_its_columns_and_a_good_one_has_no_problem(kind: RowKind):
    assert row_kind(GOOD[kind]) is kind
    assert row_problems(GOOD[kind], kind) == []


@pytest.mark.parametrize("file", sorted(EXPECTED.glob("*.jsonl")), ids=lambda file: file.stem)
def test_the_rows_that_transform_writes_pass(file: Path):
    kind = KINDS[file.stem.rpartition(".")[2]]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows
    assert [(row_kind(row), row_problems(row, kind)) for row in rows] == [(kind, [])] * len(rows)


def test_a_rollout_and_a_row_of_nothing_known_have_no_kind():
    assert row_kind({"responses_create_params": {"input": "x"}, "response": {"output": []}, "reward": 1.0}) is None
    assert row_kind({"question": "x", "answer": "y"}) is None
    assert row_kind({}) is None


def test_a_placeholder_is_a_task_that_is_not_ready():
    row = {"dataset": "d", "_hf_placeholder": {"row": 3}}
    assert row_kind(row) is RowKind.TASKS
    assert row_problems(row, RowKind.TASKS) == ["an unresolved _hf_placeholder; run gym-bridge prep on the file"]


def completions(*ranks: Any, last: str = "assistant") -> list[dict[str, Any]]:
    return [{"rank": rank, "completion": [{"role": last, "content": "x"}]} for rank in ranks]


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        (RowKind.SFT, {"messages": [ASSISTANT, USER]}, "'messages' ends with the role 'user'"),
        (RowKind.SFT, {"messages": []}, "'messages' is no list of messages"),
        (RowKind.SFT, {"messages": [USER, {"role": "assistant"}]}, "messages.1: content is NoneType; expected a string"),
        (
            RowKind.SFT,
            {"messages": [{"role": "developer", "content": "x"}, ASSISTANT]},
            "messages.0: the role 'developer' is none of",
        ),
        (RowKind.SFT, {"messages": [{**ASSISTANT, "tool_calls": [{"name": "f"}]}]}, "tool_calls need a function's name and its"),
        (RowKind.SFT, {"tools": "add"}, "'tools' is no list of objects"),
        (RowKind.RESPONSE, {"output": 4}, "'output' is int; NeMo RL needs a string"),
        (RowKind.RESPONSE, {"messages": []}, "a column 'messages' takes the place of 'input' and 'output'"),
        (RowKind.DPO, {"rejected": None}, "'rejected' is NoneType; NeMo RL needs a string"),
        (RowKind.DPO, {"chosen": [ASSISTANT]}, "'chosen' is list; NeMo RL needs a string"),
        (RowKind.DPO, {"prompt": 7}, "'prompt' is no list of messages"),
        (RowKind.PREFERENCE, {"completions": completions(0)}, "'completions' needs exactly two objects"),
        (RowKind.PREFERENCE, {"completions": completions(0, 1, 2)}, "'completions' needs exactly two objects"),
        (RowKind.PREFERENCE, {"completions": completions(1, 1)}, "both completions have rank 1; NeMo RL takes no ties"),
        (RowKind.PREFERENCE, {"completions": completions(0, True)}, "the ranks [0, True] are not both integers"),
        (
            RowKind.PREFERENCE,
            {"completions": completions(0, 1, last="user")},
            "'completions.0.completion' ends with the role 'user'",
        ),
        (RowKind.PREFERENCE, {"context": "2+2?"}, "'context' is no list of messages"),
        (RowKind.TASKS, {"responses_create_params": {}}, "responses_create_params.input is neither a text nor a list of items"),
        (RowKind.TASKS, {"responses_create_params": None}, "no object 'responses_create_params'"),
        (RowKind.TASKS, {"agent_ref": {"type": "responses_api_agents"}}, "no agent_ref.name"),
    ],
)
def test_what_nemo_rl_would_stumble_over_is_named(kind: RowKind, change: dict[str, Any], problem: str):
    (found, *_) = row_problems(GOOD[kind] | change, kind)
    assert problem in found


def test_a_task_whose_environment_speaks_first_has_an_empty_input():
    assert row_problems(GOOD[RowKind.TASKS] | {"responses_create_params": {"input": []}}, RowKind.TASKS) == []


def test_an_assistant_that_only_calls_tools_needs_no_content():
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, ASSISTANT]}
    assert row_problems(row, RowKind.SFT) == []
