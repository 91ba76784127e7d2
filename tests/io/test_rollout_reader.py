import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import DataError
from gym_bridge.io.rollout_reader import view_row

ANSWER = {"type": "message", "role": "assistant", "content": "4"}
OTHER = {"type": "message", "role": "assistant", "content": "5"}
ASKED = {"role": "user", "content": "2+2?"}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":2,"b":2}'}
SUM = {"type": "function_call_output", "call_id": "c1", "output": "4"}
TOOL = {"type": "function", "name": "add", "parameters": {}}
TO_ADD = {"type": "function", "function": {"name": "add", "arguments": '{"a":2,"b":2}'}}
ROW = {"responses_create_params": {"input": "2+2?"}, "response": {"output": [ANSWER]}, "reward": 1}


def test_the_oldest_row_is_read():
    view = view_row(ROW)
    assert view.context == ({"role": "user", "content": "2+2?"},)
    assert view.output == (ANSWER,)
    assert view.items == ({"role": "user", "content": "2+2?"}, ANSWER)
    assert (view.tools, view.reward, view.rollout_index, view.truncated, view.drop_reason()) == ((), 1.0, None, False, None)


def test_an_output_at_top_level_is_read():
    assert view_row({"responses_create_params": {"input": "2+2?"}, "output": [ANSWER], "reward": 1.0}).output == (ANSWER,)


def test_instructions_are_the_system_message():
    view = view_row({"responses_create_params": {"instructions": "be brief", "input": "2+2?"}})
    assert view.context == ({"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"})


def test_the_task_is_agent_and_index_where_the_row_has_them():
    assert view_row(ROW | {"_ng_task_index": 3, "agent_ref": {"name": "calculator"}}).task == "calculator:3"
    assert view_row(ROW | {"_ng_task_index": 3}).task == "3"
    assert view_row(ROW | {"_ng_task_index": 3, "_ng_rollout_index": 2}).rollout_index == 2


def test_the_task_without_an_index_is_a_hash_of_the_prompt():
    expected = hashlib.blake2b(b'[[["said","user","2+2?"]],[]]', digest_size=16).hexdigest()[:16]
    assert view_row(ROW).task == expected
    assert view_row(ROW | {"reward": 0.0, "response": {"output": []}}).task == expected
    listed = {"responses_create_params": {"input": [{"role": "user", "content": "2+2?", "id": "msg_1", "status": None}]}}
    assert view_row(ROW | listed).task == expected
    assert view_row(ROW | {"responses_create_params": {"input": "2+3?"}}).task != expected


def test_a_task_id_names_the_task_where_there_is_no_index():
    assert view_row(ROW | {"task_id": "equation-1"}).task == "equation-1"
    assert view_row(ROW | {"task_id": 7, "agent_ref": {"name": "math"}}).task == "math:7"
    assert view_row(ROW | {"task_id": 7, "_ng_task_index": 3}).task == "3"
    for empty in (None, "", True, [1]):
        assert view_row(ROW | {"task_id": empty}).task == view_row(ROW).task


@pytest.mark.parametrize(
    ("more", "truncated"),
    [
        ({"gym_bridge": {"truncated": True}}, True),
        ({"gym_bridge": {"truncated": False}}, False),
        ({"response": {"output": [ANSWER], "incomplete_details": {"reason": "max_output_tokens"}}}, True),
        ({"response": {"output": [ANSWER], "incomplete_details": None}}, False),
        ({"response": {"output": [ANSWER], "status": "incomplete"}}, True),
        ({"response": {"output": [ANSWER], "status": "completed"}}, False),
        ({"truncated": True}, True),
        ({"truncated": False}, False),
    ],
)
def test_a_limit_makes_a_rollout_truncated_in_every_dialect(more, truncated):
    assert view_row(ROW | more).truncated is truncated


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ROW | {"_ng_failure_class": "judge_failed", "reward": 0.0}, "failure"),
        ({"_ng_failure_class": "agent_run_error"}, "failure"),
        (ROW | {"gym_bridge": {"failure": {"type": "timeout_exceeded"}}}, "failure"),
        (ROW | {"response": {"id": "task-3-failed", "output": [ANSWER]}}, "failure"),
        (ROW | {"_ng_no_persist": True}, "failure"),
        ({"_ng_failure_class": "agent_request_failed", "response": "502 Bad Gateway", "reward": "none"}, "failure"),
        ({"_ng_failure_class": "kill_shaped", "_ng_task_index": "x", "responses_create_params": []}, "failure"),
        (ROW | {"failure_reason": "JUDGE_NOT_EQUIVALENT", "reward": 0.0}, None),
        (ROW | {"verification_skipped": True}, "not_verified"),
        (ROW | {"verification_skipped": False}, None),
        ({"responses_create_params": {"input": "2+2?"}, "mean/reward": 0.5, "rollout_infos": []}, "not_a_rollout"),
        (ROW | {"mask_sample": True, "failure_kind": "timeout"}, "masked"),
        (ROW | {"mask_sample": True}, "masked"),
        (ROW | {"instance_config": {"mask_sample": True}}, "masked"),
        (ROW | {"mask_sample": False, "instance_config": {"mask_sample": False}}, None),
        ({"responses_create_params": {"input": "2+2?"}}, "not_a_rollout"),
        ({"mean/reward": 0.5}, "not_a_rollout"),
        (ROW | {"reward": None}, "no_reward"),
        (ROW | {"responses_create_params": {"input": []}}, "no_prompt"),
        (ROW | {"reward": -100}, None),
        (ROW | {"reward": 0}, None),
    ],
)
def test_a_row_says_why_it_is_dropped(row, reason):
    assert view_row(row).drop_reason() == reason


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"reward": True}, "reward is True; expected a finite number or null"),
        ({"reward": "1.0"}, "reward is '1.0'; expected a finite number or null"),
        ({"reward": float("nan")}, "reward is nan; expected a finite number or null"),
        ({"reward": float("inf")}, "reward is inf; expected a finite number or null"),
        ({"reward": -math.inf}, "reward is -inf; expected a finite number or null"),
        ({"reward": [1.0]}, "reward is [1.0]; expected a finite number or null"),
        ({"response": {"output": [ANSWER, [ANSWER]]}}, "'output' holds a list; expected objects only"),
        (
            {"response": {"output": [[ANSWER], [OTHER, ANSWER]]}},
            "transition 2 of the output does not begin with the one before it; its history was rewritten",
        ),
        ({"instance_config": "x"}, "'instance_config' is of type str; expected an object"),
        ({"response": {"output": "4"}}, "'output' is of type str; expected a list of objects"),
        ({"response": []}, "'response' is of type list; expected an object"),
        ({"responses_create_params": {"input": 4}}, "'input' is of type int; expected a list of objects"),
        ({"_ng_task_index": "3"}, "_ng_task_index is '3'; expected an integer"),
    ],
)
def test_a_field_of_the_wrong_type_is_an_error(more, message):
    with pytest.raises(DataError) as caught:
        view_row(ROW | more)
    assert str(caught.value) == message


def test_a_failure_has_no_reward_whatever_stands_there():
    assert view_row(ROW | {"_ng_failure_class": "judge_failed"}).reward is None
    assert view_row(ROW | {"verification_skipped": True}).reward is None
    unreadable = ROW | {"_ng_failure_class": "judge_failed", "response": []}
    assert view_row(unreadable).row is unreadable


@pytest.mark.parametrize("given", [[], [ASKED]])
def test_transitions_are_read_as_the_conversation_that_they_end_in(given):
    steps = [[ASKED, CALL, SUM], [ASKED, CALL, SUM, ANSWER]]
    view = view_row({"responses_create_params": {"input": given}, "response": {"output": steps, "tools": [TOOL]}, "reward": 1.0})
    assert (view.context, view.output, view.tools) == ((ASKED,), (CALL, SUM, ANSWER), (TOOL,))


def test_an_examples_answer_in_the_prompt_stays_in_the_prompt_of_transitions():
    given = [ASKED, ANSWER, {"role": "user", "content": "3+3?"}]
    view = view_row({"responses_create_params": {"input": given}, "response": {"output": [[*given, OTHER]]}, "reward": 1.0})
    assert (view.context, view.output) == (tuple(given), (OTHER,))


def test_without_an_input_the_prompt_is_what_stands_before_the_model():
    system = {"role": "system", "content": "be brief", "type": "message"}
    view = view_row({"responses_create_params": {"input": []}, "response": {"output": [system, ASKED, ANSWER, ASKED]}, "reward": 1})
    assert (view.context, view.output) == ((system, ASKED), (ANSWER, ASKED))


@pytest.mark.parametrize("params", [{}, {"responses_create_params": {"input": "2+2?"}}])
def test_chat_messages_stand_in_for_an_output(params):
    messages = [ASKED, {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [{"id": "x", **TO_ADD}]}]
    messages += [{"role": "tool", "tool_call_id": "x", "content": "4"}, {"role": "assistant", "content": "4"}]
    view = view_row({**params, "messages": messages, "reward": 1.0})
    assert view.context == (ASKED,)
    assert view.output == (
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        CALL | {"call_id": "x"},
        SUM | {"call_id": "x"},
        {"role": "assistant", "content": "4"},
    )


def test_messages_that_begin_with_the_model_follow_the_input():
    view = view_row({"responses_create_params": {"input": "2+2?"}, "messages": [ANSWER], "reward": 1.0})
    assert (view.context, view.output) == ((ASKED,), (ANSWER,))


def test_calls_without_ids_are_answered_in_their_order():
    calls = [{"type": "function_call", "name": "add", "arguments": "{}"}] * 2
    outputs = [{"type": "function_call_output", "output": text} for text in "ab"]
    taken = {"type": "function_call", "call_id": "call_2", "name": "add", "arguments": "{}"}
    view = view_row({"responses_create_params": {"input": "?"}, "output": [*calls, *outputs, taken], "reward": 1.0})
    assert [item["call_id"] for item in view.output] == ["call_1", "call_3", "call_1", "call_3", "call_2"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a":2,"b":2}'}}]},
        {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 2}}], "content": ""},
    ],
)
def test_every_short_form_of_a_tool_call_is_read(message):
    view = view_row({"responses_create_params": {"input": "?"}, "output": [message, {"role": "tool", "content": "4"}], "reward": 1})
    assert view.output == (CALL | {"call_id": "call_1"}, SUM | {"call_id": "call_1"})


def test_tool_calls_that_are_no_objects_are_refused():
    for calls, told in ((["x"], "holds a str; expected objects only"), ({"a": 1}, "is of type dict; expected a list")):
        row = {"responses_create_params": {"input": "?"}, "output": [{"role": "assistant", "tool_calls": calls}], "reward": 1}
        with pytest.raises(DataError, match=told):
            view_row(row)


@pytest.mark.parametrize(
    ("metadata", "urls"),
    [
        ({"audio_url": "data:audio/wav;base64,UklG"}, ["data:audio/wav;base64,UklG"]),
        ({"audio_data": "data:audio/wav;base64,UklG"}, ["data:audio/wav;base64,UklG"]),
        ({"audio_path": "a.wav"}, ["a.wav"]),
        ({"audio_paths": ["a.wav", "b.wav"]}, ["a.wav", "b.wav"]),
    ],
)
def test_audio_in_the_requests_metadata_stands_before_the_text_that_asks_for_it(metadata, urls):
    view = view_row(ROW | {"responses_create_params": {"input": "What is said?", "metadata": metadata}})
    parts = [{"type": "audio_url", "audio_url": {"url": url}} for url in urls]
    assert view.context == ({"role": "user", "content": [*parts, {"type": "input_text", "text": "What is said?"}]},)
    assert (
        view_row(ROW | {"responses_create_params": {"input": "?", "metadata": {"extra_body": "{}"}}}).context[0]["content"] == "?"
    )


def test_an_agent_has_a_name():
    assert view_row(ROW).agent is None
    assert view_row(ROW | {"agent_ref": {"name": "calculator"}}).agent == "calculator"
    with pytest.raises(DataError, match="name of 'agent_ref' is 3; expected a string"):
        assert view_row(ROW | {"agent_ref": {"name": 3}}).agent


def test_turns_and_calls_are_the_collectors_count_or_ours():
    output = [CALL, SUM, CALL, CALL, SUM, ANSWER]
    view = view_row(ROW | {"response": {"output": output}})
    assert (view.num_turns, view.num_tool_calls) == (3, 3)
    view = view_row(ROW | {"response": {"output": output}, "gym_bridge": {"num_turns": 4, "num_tool_calls": 5}})
    assert (view.num_turns, view.num_tool_calls) == (4, 5)


def test_tools_are_the_tasks_or_else_those_of_the_response():
    other = {"type": "function", "name": "subtract"}
    asked = {"input": "?", "tools": [TOOL]}
    assert view_row(ROW | {"responses_create_params": asked, "response": {"output": [], "tools": [other]}}).tools == (TOOL,)
    assert view_row(ROW | {"response": {"output": [], "tools": [other]}}).tools == (other,)
    assert view_row(ROW).tools == ()
    assert view_row(ROW).chat_tools() is None
    assert view_row(ROW | {"responses_create_params": asked}).chat_tools() == [
        {"type": "function", "function": {"name": "add", "parameters": {}}}
    ]
    for tools in ({"a": 1}, ["x"]):
        with pytest.raises(DataError, match="'tools' "):
            assert view_row(ROW | {"responses_create_params": {"input": "?", "tools": tools}}).tools


@pytest.mark.parametrize(
    ("params", "same"),
    [
        ({"input": [ASKED | {"type": "message", "id": "m", "status": "completed"}], "tools": [TOOL]}, True),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "2+2?"}]}], "tools": [TOOL | {"strict": None}]},
            True,
        ),
        ({"input": "2+2?", "tools": [{"type": "function", "function": {"name": "add"}}], "temperature": 1.0}, True),
        ({"input": "2+2?", "tools": []}, False),
        ({"input": [{"role": "system", "content": "2+2?"}], "tools": [TOOL]}, False),
        ({"input": [ASKED, {"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}], "tools": [TOOL]}, False),
    ],
)
def test_equal_tasks_have_equal_content_keys_however_they_are_written(params, same):
    key = view_row(ROW | {"responses_create_params": {"input": "2+2?", "tools": [TOOL]}}).content_key()
    other = view_row(ROW | {"responses_create_params": params, "agent_ref": {"name": "b"}, "_ng_task_index": 9}).content_key()
    assert len(key) == 16
    assert (other == key) is same


@pytest.mark.parametrize(
    ("output", "same"),
    [
        ([CALL | {"call_id": "z", "id": "fc", "status": None}, SUM | {"call_id": "z", "id": None}, ANSWER | {"id": "m"}], True),
        ([CALL, SUM, {"role": "assistant", "content": [{"type": "output_text", "text": "4", "annotations": []}]}], True),
        ([{"type": "reasoning", "id": "rs", "summary": []}, CALL, SUM, ANSWER], True),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, CALL, SUM, ANSWER], False),
        ([CALL | {"arguments": "{}"}, SUM, ANSWER], False),
        ([CALL | {"name": "sum"}, SUM, ANSWER], False),
        ([CALL, SUM | {"output": "5"}, ANSWER], False),
        ([CALL, SUM, OTHER], False),
        ([CALL, SUM, ANSWER, {"type": "web_search_call", "id": "w", "action": {}}], False),
    ],
)
def test_equal_answers_have_equal_answer_keys_whatever_their_ids(output, same):
    key = view_row(ROW | {"response": {"output": [CALL, SUM, ANSWER]}}).answer_key()
    assert (view_row(ROW | {"response": {"output": output}}).answer_key() == key) is same


KEYS = ["reward", "response", "output", "agent_ref", "_ng_task_index", "gym_bridge", "mask_sample", "instance_config", "input"]
KEYS += ["messages", "role", "content", "tool_calls", "type", "call_id", "tools", "metadata", "verification_skipped", "task_id"]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*KEYS, "responses_create_params"]), JUNK, max_size=5))
def test_any_object_is_viewed_or_refused(row):
    try:
        view = view_row(row)
        keys = view.content_key(), view.answer_key(), view.task, view.num_tool_calls
        turns = view.num_turns
    except DataError:
        return
    assert len(keys[0]) == len(keys[1]) == 16
    assert turns >= 0
    assert view.drop_reason() is not None or (view.reward is not None and view.output is not None and view.context)


def test_a_number_that_json_cannot_hold_has_no_key():
    view = view_row(ROW | {"response": {"output": [{"type": "web_search_call", "action": 2**70}]}})
    with pytest.raises(DataError, match="an item holds what JSON cannot"):
        view.answer_key()
