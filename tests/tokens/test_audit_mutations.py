"""Rows of every kind with anything at any place: findings or a GymBridgeError, never another exception."""

import copy
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import GymBridgeError
from gym_bridge.io.token_store import TokenStore
from gym_bridge.tokens.renderers import load_renderer
from tests.tokens.audit_stage import (
    ANSWER,
    USER,
    audit_rows,
    called,
    calling,
    inline,
    output,
    returned,
    rollout,
    said,
    turn,
    write_rows,
)
from tests.tokens.vocabularies import write_qwen3

TOOL = {"name": "add", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
PROVENANCE = {"attempt": 0, "policy_versions": [0], "truncated": False, "num_prompt_messages": 1}
ROWS: list[Any] = [
    {
        "messages": [USER, calling("a"), output("a"), ANSWER],
        "tools": [{"type": "function", "function": TOOL}],
        "gym_bridge": PROVENANCE,
    },
    {"input": "a", "output": "b"},
    {"prompt": [USER], "chosen": "b", "rejected": "c"},
    {
        "context": [USER],
        "completions": [{"rank": rank, "completion": [{**ANSWER, "content": str(rank)}]} for rank in (0, 1)],
        "tools": [],
    },
    {
        "responses_create_params": {"input": [USER], "instructions": "x", "tools": [{"type": "function", **TOOL}]},
        "expected_answer": "4",
    },
    rollout(
        0,
        items=[
            called("a", **inline([5], [6, 2], [-1.0, -1.0])),
            returned("a"),
            said("4", **inline([5, 6, 2], [8, 2], [-1.0, -1.0])),
        ],
        gym_bridge=PROVENANCE,
    ),
]
ODD = [None, True, 0, -1, 2**63, 2**40, 1.5, "", "\0<|im_end|>", [], {}, [[]], [None], {"a": None}, [{}], [1], {"": {}}, 1e308]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a row."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, one in children for place in places(one, (*path, key))]


@st.composite
def mutated_rows(draw) -> list[Any]:
    """A row of some kind, and what became of it."""
    row = draw(st.sampled_from(ROWS))
    rows = [row] * draw(st.integers(0, 1))
    for _ in range(draw(st.integers(1, 3))):
        row = copy.deepcopy(row)
        *way, last = draw(st.sampled_from(places(row)))
        owner = row
        for key in way:
            owner = owner[key]
        owner[last] = draw(st.sampled_from(ODD))
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def stage(tmp_path_factory, renderer):
    """The directory of the rows, with a token store, and renderers: the house's, a family's, the model's own template's."""
    directory = tmp_path_factory.mktemp("mutations")
    TokenStore(directory / "rows.tokens").append([((0, 0, 0), [turn([5], [6, 2], [-1.0, -1.0])])])
    model = write_qwen3(directory / "model")
    return directory, [renderer, *(load_renderer(model, name=name) for name in ("qwen3", "default"))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=mutated_rows(), number=st.integers(0, 2))
def test_whatever_stands_in_a_row_is_a_finding_or_an_error_of_ours(stage, rows, number):
    directory, renderers = stage
    against = write_rows(directory / "eval.jsonl", rows)
    with suppress(GymBridgeError):
        report = audit_rows(directory, renderers[number], *rows, show=3, max_length=30, against=(against,))
        assert report.num_rows == len(rows)
        assert sum(report.counts.values()) == report.num_problems + report.num_notes
        assert report.model_dump_json()
