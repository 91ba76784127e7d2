from pathlib import Path

import orjson
import pytest

from gym_bridge.io.rollout_reader import view_row
from gym_bridge.transforms.response import response_row
from gym_bridge.transforms.sft import sft_row

FIXTURES = Path(__file__).parents[2] / "fixtures" / "nemo_gym"
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"n":1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "1"}
ANSWER = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is 1."}]}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 1."}]
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"n": 1}}}


def rollout(*output, **params):
    return view_row({"responses_create_params": {"input": PROMPT, **params}, "response": {"output": list(output)}, "reward": 1.0})


def test_a_response_row_is_the_prompt_and_the_final_text():
    assert response_row(rollout(CALL, OUTPUT, ANSWER)) == {"input": "Be brief.\n\nAdd 1.", "output": "It is 1."}


@pytest.mark.parametrize("output", [[], [CALL], [CALL, OUTPUT], [THOUGHT], [ANSWER | {"content": " \n"}]])
def test_a_rollout_that_ends_without_text_makes_no_response_row(output):
    assert response_row(rollout(*output)) is None


def test_an_sft_row_is_the_whole_chat():
    assert sft_row(rollout(THOUGHT, CALL, OUTPUT, ANSWER)) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add 1."},
            {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CHAT_CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
            {"role": "assistant", "content": "It is 1."},
        ],
        "gym_bridge": {"num_prompt_messages": 2},
    }


def test_an_sft_row_has_tools_only_when_the_task_has_some():
    tool = {"type": "function", "name": "add", "parameters": {}, "description": None}
    assert sft_row(rollout(ANSWER, tools=[tool]))["tools"] == [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    assert "tools" not in sft_row(rollout(ANSWER, tools=[]))


def test_an_sft_row_may_end_with_a_tool_call():
    assert sft_row(rollout(CALL))["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": [CHAT_CALL]}


@pytest.mark.parametrize("output", [[], [CALL, OUTPUT], [THOUGHT], [ANSWER, {"role": "user", "content": "more"}]])
def test_a_rollout_that_ends_without_the_assistant_makes_no_sft_row(output):
    assert sft_row(rollout(*output)) is None


def test_reasoning_of_a_real_rollout_stays_with_the_call_it_led_to():
    row = orjson.loads((FIXTURES / "xlam_fc.jsonl").read_bytes().splitlines()[0])
    messages = sft_row(view_row(row))["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2]["reasoning_content"].startswith("\nOkay, the user is asking about the details of the Ethereum blockchain")
    assert messages[2]["content"] == "\n\n"
    assert messages[2]["tool_calls"][0]["function"] == {"name": "web_chain_details", "arguments": {"chain_slug": "ethereum"}}
    assert messages[4]["reasoning_content"]
    assert messages[4]["content"].strip()
