"""The fast decoder tells of the same rollout as a full parse."""

import json
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gym_bridge.errors import DataError
from gym_bridge.io.jsonl import parse_line
from gym_bridge.io.rollout_reader import view_row
from gym_bridge.io.row_decoder import FIELDS, RowDecoder
from gym_bridge.schemas.chat import rollout_messages

FIXTURES = Path(__file__).parents[2] / "fixtures" / "nemo_gym"
LINES = [line for path in sorted(FIXTURES.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
DECODER = RowDecoder()


def told(line, read):
    """All that a row tells, each fact or the error that it is."""
    try:
        view = view_row(read(line))
    except DataError as error:
        return str(error)
    return [fact_or_error(fact, view) for fact in FACTS]


FACTS = [
    lambda view: (view.drop_reason(), view.reward, view.task_index, view.rollout_index, view.truncated, view.num_tool_calls),
    lambda view: view.answer_key(),
    lambda view: view.content_key(),
    lambda view: view.agent,
    lambda view: view.task,
    lambda view: view.tools,
    lambda view: view.num_turns,
    lambda view: orjson.loads(orjson.dumps(view.chat_tools())),
    lambda view: rollout_messages(view.context, view.output or (), media="keep"),
    lambda view: rollout_messages(view.context, view.output or (), arguments="string", tool_calls="flat"),
]


def fact_or_error(fact, view):
    try:
        return fact(view)
    except DataError as error:
        return str(error)


def parsed(line):
    return parse_line(line, path=None)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith(b"{")])
def test_a_real_row_tells_the_same_on_both_paths(line):
    facts = told(line, DECODER.decode)
    assert facts == told(line, parsed)
    assert isinstance(facts, list)


def test_fields_that_nobody_asks_for_are_skipped_and_tools_wait():
    row = DECODER.decode((FIXTURES / "workplace_assistant.jsonl").read_bytes())
    assert set(row) <= set(FIELDS)
    assert isinstance(row["responses_create_params"]["tools"], Raw)
    assert set(row["response"]["output"][0]) == {"arguments", "call_id", "name", "type"}


def test_more_fields_are_whole():
    line = b'{"accuracy": 0.5, "reward_components": {"format": 1}, "other": 1, "response": {"id": "r", "model": "m"}}'
    assert RowDecoder(["accuracy", "reward_components", "response"]).decode(line) == {
        "accuracy": 0.5,
        "reward_components": {"format": 1},
        "response": {"id": "r", "model": "m"},
    }
    assert RowDecoder().decode(line) == {"response": {"id": "r"}}


def test_a_placeholder_is_no_rollout():
    assert view_row(DECODER.decode(b"<PLACEHOLDER ROW>\r\n")).drop_reason() == "not_a_rollout"


@pytest.mark.parametrize(
    "line",
    [
        b'{"reward": 1',
        b'{"reward": 1} x',
        b'{"reward": NaN}',
        b'{"reward": 1e999}',
        b'{"other": NaN}',
        b'{"other": 01}',
        b'{"other": [1,]}',
        b'{"other": "\xff"}',
        b'{"response": {"id": "\xff"}}',
        b'{"other": "\\ud800"}',
        b'{"other": "\x01"}',
        b'{"other": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[1]",
        b"",
    ],
)
def test_a_line_that_is_no_row_is_the_error_of_a_full_parse(line):
    with pytest.raises(DataError) as full:
        parsed(line)
    with pytest.raises(DataError) as fast:
        DECODER.decode(line)
    assert str(fast.value) == str(full.value)


@pytest.mark.parametrize(
    "line",
    [
        b'\xef\xbb\xbf{"reward": 1}',
        b'{"reward": true, "reward": 1}',
        b'{"reward": 1, "reward": true}',
        b'{"reward": 0, "reward": 1}',
        b'{"rew\\u0061rd": 1}',
        b'{"reward": "1.0"}',
        b'{"reward": 1' + b"0" * 30 + b"}",
        b'{"_ng_task_index": 18446744073709551615}',
        b'{"_ng_task_index": 18446744073709551616}',
        b'{"_ng_task_index": 1.0}',
        b'{"response": {"output": []}, "response": {"id": "x-failed"}}',
        b'{"response": {"output": "x"}}',
        '{"task_id": "é", "reward": 1}\r\n'.encode(),
    ],
)
def test_odd_lines_mean_the_same_on_both_paths(line):
    assert told(line, DECODER.decode) == told(line, parsed)


def test_token_ids_are_told_by_their_presence_alone():
    item = b'{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "generation_token_ids": %s}'
    answer = b'{"role": "assistant", "content": "4"}'
    for ids, turns in ((b"[7, 8]", 2), (b"[7]", 2), (b"[0]", 1), (b"[ 0 ]", 1), (b"[]", 1), (b"null", 1), (b"[151644]", 2)):
        line = b'{"responses_create_params": {"input": "?"}, "response": {"output": [%s, %s]}, "reward": 1}' % (item % ids, answer)
        assert view_row(DECODER.decode(line)).num_turns == view_row(parsed(line)).num_turns == turns


TEXT = st.text(alphabet='ab"\\é\u2028\U0001f600', max_size=4)
NULL = st.none()
PARTS = st.lists(
    st.fixed_dictionaries({"text": TEXT}, optional={"type": st.sampled_from(["output_text", "input_text", "refusal", "odd"])})
    | st.just({"type": "input_image", "image_url": "u"}),
    max_size=2,
)
CONTENT = TEXT | NULL | PARTS
IDS = st.sampled_from(["c1", "c2", None])
EXTRAS = {
    "id": TEXT | NULL,
    "status": st.sampled_from(["completed", None]),
    "generation_token_ids": st.sampled_from([[], [0], [7], None]),
}
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "bot"]), "content": CONTENT},
    optional=EXTRAS | {"type": st.just("message") | NULL, "reasoning_content": TEXT | NULL, "tool_call_id": IDS},
)
CALLS = st.fixed_dictionaries(
    {"type": st.just("function_call"), "name": TEXT, "arguments": st.sampled_from(["{}", '{"n": 1}', "{", 3, {"n": 1}])},
    optional=EXTRAS | {"call_id": IDS},
)
OUTPUTS = st.fixed_dictionaries({"type": st.just("function_call_output"), "output": CONTENT}, optional=EXTRAS | {"call_id": IDS})
THOUGHTS = st.fixed_dictionaries({"type": st.just("reasoning"), "summary": PARTS | NULL}, optional=EXTRAS | {"content": CONTENT})
CHAT = st.fixed_dictionaries(
    {"role": st.just("assistant"), "tool_calls": st.just([{"function": {"name": "f", "arguments": "{}"}}])},
    optional={"content": TEXT | NULL},
)
ITEMS = st.lists(MESSAGES | CALLS | OUTPUTS | THOUGHTS | CHAT | st.just({"type": "web_search_call", "id": "w"}), max_size=4)
METADATA = st.sampled_from([None, {}, {"audio_url": "u"}, {"n": 1}])
REWARDS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3) | st.sampled_from([True, None, "1.0", 2**70])
TOOLS = st.sampled_from([[], None, [{"type": "function", "name": "f", "strict": None}], [{"type": "web_search"}], {}, [1]])
FLAGS = st.sampled_from([True, False, None, "yes", 0])
PARAMS = st.fixed_dictionaries(
    {"input": TEXT | ITEMS | NULL}, optional={"tools": TOOLS, "instructions": TEXT | NULL, "metadata": METADATA}
)
RESPONSES = st.fixed_dictionaries(
    {"output": ITEMS | st.lists(ITEMS, max_size=2) | NULL},
    optional={
        "id": st.sampled_from(["r", "r", "r", "r-failed", 3]),
        "tools": TOOLS,
        "status": st.sampled_from(["completed", "incomplete", None, 5]),
        "incomplete_details": st.sampled_from([None, {}, {"reason": "x"}, "x"]),
        "usage": st.sampled_from([None, {"input_tokens": 1, "output_tokens_details": {}}, 3]),
    },
)
ODD_FIELDS = {
    "reward": REWARDS,
    "output": ITEMS | NULL,
    "messages": ITEMS | NULL,
    "_ng_task_index": st.sampled_from([0, 3, None, "3", True, 2**64]),
    "_ng_rollout_index": st.sampled_from([0, None, 1.0]),
    "agent_ref": st.sampled_from([None, {"name": "a"}, {"type": "t"}, {"name": 3}, "a"]),
    "gym_bridge": st.sampled_from([None, {"truncated": True}, {"failure": {"type": "x"}}, {"num_turns": 3}, []]),
    "task_id": st.sampled_from(["t", 4, None, True, 2**64]),
    "_ng_failure_class": st.sampled_from(["judge_failed", None, True]),
    "instance_config": st.sampled_from([None, {"mask_sample": True}, {"mask_sample": 1}, "x"]),
    "mask_sample": FLAGS,
    "truncated": FLAGS,
    "verification_skipped": FLAGS,
    "_ng_no_persist": FLAGS,
    "extra": TEXT | ITEMS,
    "response": NULL,
}
ODD = st.sampled_from(sorted(ODD_FIELDS)).flatmap(lambda name: ODD_FIELDS[name].map(lambda value: (name, value)))
PLAIN = st.fixed_dictionaries({"responses_create_params": PARAMS, "response": RESPONSES, "reward": st.just(1.0)})
ROWS = st.builds(lambda row, odd: row | dict(odd), PLAIN, st.lists(ODD, max_size=2))


@given(ROWS)
def test_any_row_tells_the_same_on_both_paths(row):
    line = json.dumps(row, ensure_ascii=False).encode()
    assert told(line, DECODER.decode) == told(line, parsed)


def fastest(act, times=30):
    """Least seconds of this thread that `act` took."""
    spent = []
    for _ in range(times):
        begin = time.thread_time()
        act()
        spent.append(time.thread_time() - begin)
    return min(spent)


def test_token_ids_cost_less_than_a_full_parse():
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "prompt_token_ids": list(range(30_000))}
    item["generation_token_ids"] = list(range(5_000))
    line = orjson.dumps({"responses_create_params": {"input": "?"}, "response": {"output": [item]}, "reward": 1.0})
    assert fastest(lambda: DECODER.decode(line)) < fastest(lambda: orjson.loads(line))
