"""A glance tells what the tolerant reader tells, or nothing."""

import json

import orjson
import pytest
from hypothesis import given

from gym_bridge.io.jsonl import parse_line
from gym_bridge.io.rollout_reader import view_row
from gym_bridge.io.row_glance import GLANCED, glance
from gym_bridge.transforms.row_columns import rollout_columns
from tests.io.test_row_decoder import DECODER, FIXTURES, LINES, ROWS, fastest

PLAIN = {
    "responses_create_params": {"input": "2+2?"},
    "response": {"output": [{"type": "message", "role": "assistant", "content": "4"}]},
    "reward": 1,
    "_ng_task_index": 3,
}


def told(view):
    return view.drop_reason(), view.task, view.verified, rollout_columns(view, GLANCED)


def line(**more) -> bytes:
    return json.dumps(PLAIN | more).encode()


def test_a_plain_rollout_is_told_by_its_scalars():
    ours = {"truncated": True, "timings_s": {"total": 1.5}}
    view = glance(line(agent_ref={"name": "math"}, _ng_rollout_index=2, gym_bridge=ours))
    assert view is not None
    assert (view.reward, view.agent, view.task, view.rollout_index, view.truncated) == (1.0, "math", "math:3", 2, True)
    assert type(view.reward) is float
    assert rollout_columns(view, ["elapsed_s"]) == {"elapsed_s": 1.5}
    assert view.drop_reason() is None


@pytest.mark.parametrize("text", [one for one in LINES if one.startswith(b"{")])
def test_a_real_row_is_told_as_by_the_reader(text):
    view = glance(text)
    assert view is None or told(view) == told(view_row(parse_line(text, path=None)))


def test_most_real_rows_with_an_index_are_told():
    indexed = [one for one in LINES if b'"_ng_task_index"' in one]
    assert sum(glance(one) is not None for one in indexed) > 0.8 * len(indexed) > 0


@pytest.mark.parametrize(
    "other",
    [
        line(_ng_task_index=None),
        line(_ng_task_index="3"),
        line(reward=True),
        line(reward="1.0"),
        line(response={"output": None}),
        line(response={"output": [["x"]]}),
        line(response={"output": ["x"]}),
        line(response={"output": [{"role": "assistant", "tool_calls": [1]}]}),
        line(response=PLAIN["response"] | {"id": "r-failed"}),
        line(responses_create_params={"input": []}),
        line(responses_create_params={"input": ""}),
        line(responses_create_params={"input": [1]}),
        line(_ng_failure_class="timeout"),
        line(_ng_no_persist=True),
        line(gym_bridge={"failure": {"type": "x"}}),
        line(gym_bridge=[]),
        line(truncated="yes"),
        line()[:-1],
        line().replace(b"2+2?", b"\xff"),
        b"\xef\xbb\xbf" + line(),
        b"<PLACEHOLDER ROW>",
        b"[1]",
        b"",
        b'{"other": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_what_is_no_plain_rollout_is_left_to_the_reader(other):
    assert glance(other) is None


@given(ROWS)
def test_any_row_is_told_as_by_the_reader_or_not_at_all(row):
    text = json.dumps({"_ng_task_index": 3} | row, ensure_ascii=False).encode()
    view = glance(text)
    if view is not None:
        assert told(view) == told(view_row(parse_line(text, path=None)))


def test_a_glance_costs_less_than_reading_the_row():
    text = (FIXTURES / "example_single_tool_call.jsonl").read_bytes().splitlines()[0]
    text = orjson.dumps(orjson.loads(text) | {"_ng_task_index": 0})
    assert glance(text) is not None
    assert fastest(lambda: glance(text)) < 0.8 * fastest(lambda: view_row(DECODER.decode(text)))
