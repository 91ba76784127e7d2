import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import DataError
from gym_bridge.io.rollout_reader import view_row

ANSWER = {"type": "message", "role": "assistant", "content": "4"}
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
    expected = hashlib.blake2b(b'[{"content":"2+2?","role":"user"}]', digest_size=8).hexdigest()
    assert view_row(ROW).task == expected
    assert view_row(ROW | {"reward": 0.0, "response": {"output": []}}).task == expected
    listed = {"responses_create_params": {"input": [{"role": "user", "content": "2+2?"}]}}
    assert view_row(ROW | listed).task == expected
    assert view_row(ROW | {"responses_create_params": {"input": "2+3?"}}).task != expected


@pytest.mark.parametrize(
    ("more", "truncated"),
    [
        ({"gym_bridge": {"truncated": True}}, True),
        ({"gym_bridge": {"truncated": False}}, False),
        ({"response": {"output": [ANSWER], "incomplete_details": {"reason": "max_output_tokens"}}}, True),
        ({"response": {"output": [ANSWER], "incomplete_details": None}}, False),
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
        ({"response": {"output": [[ANSWER]]}}, "'output' holds a list; expected objects only"),
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


KEYS = ["reward", "response", "output", "agent_ref", "_ng_task_index", "gym_bridge", "mask_sample", "instance_config", "input"]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*KEYS, "responses_create_params"]), JUNK, max_size=5))
def test_any_object_is_viewed_or_refused(row):
    try:
        view = view_row(row)
    except DataError:
        return
    assert view.drop_reason() is not None or (view.reward is not None and view.output is not None and view.context)
