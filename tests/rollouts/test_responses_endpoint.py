"""The Responses wire against a real server: what is sent, and what becomes of the reply."""

import json
import subprocess
import sys
from typing import Any

import pytest

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.model_http import EndpointError
from gym_bridge.rollouts.models.responses import ResponsesEndpoint
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn, TurnRequest, Usage
from tests.rollouts.model_stage import TOOL, asking, taken

USER: Item = {"role": "user", "content": "1 + 2?"}
TOKENS = {"prompt_token_ids": [1, 2], "generation_token_ids": [3], "generation_log_probs": [-0.5]}


def reply(*output: Any, **fields: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 8},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 17,
    }
    base = {"id": "resp_1", "created_at": 1.0, "object": "response", "model": "served", "status": "completed", "usage": usage}
    return {**base, "output": list(output), "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **fields}


def said(text: str, **fields: Any) -> Item:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part], **fields}


def call(**fields: Any) -> Item:
    return {"type": "function_call", "id": "f", "call_id": "c", "name": "add", "arguments": "{}", "status": "completed", **fields}


def sent(request: TurnRequest, **options: Any) -> Any:
    return taken(ResponsesEndpoint, reply(), request, **options)[1]


def turn_of(answered: Any) -> Turn:
    return taken(ResponsesEndpoint, answered, asking(USER))[0]


def test_a_request_says_model_items_tools_and_standard_parameters_and_nothing_else():
    params = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 64,
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "name": "add"},
        "instructions": "Answer.",
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_object"}},
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "truncation": "disabled",
        "user": "someone",
    }
    dropped = {"background": False, "stream": True, "model": "other", "service_tier": None, "prompt": None}
    assert sent(asking(USER, tools=(TOOL,), **params, **dropped)) == {
        "model": "org/my-model",
        "input": [USER],
        "tools": [{"type": "function", "name": "add", "description": "Add.", "parameters": {"type": "object"}, "strict": None}],
        **params,
    }


def test_what_is_not_set_is_not_sent():
    assert set(sent(asking(USER, temperature=None))) == {"model", "input"}


@pytest.mark.parametrize(("name", "value"), [("stop", ["x"]), ("top_k", 5), ("background", True), ("conversation", "conv_1")])
def test_a_parameter_that_is_none_of_the_wire_is_refused_by_name(name: str, value: Any):
    with pytest.raises(DataError, match=f"parameter '{name}' is none of the Responses API"):
        sent(asking(USER, **{name: value}))


def test_a_seed_travels_in_the_extra_body_of_metadata():
    body = sent(asking(USER, seed=7))
    assert "seed" not in body
    assert body["metadata"] == {"extra_body": '{"seed":7}'}
    body = sent(asking(USER, seed=7, metadata={"extra_body": '{"top_k": 5, "seed": 1}', "note": "n"}))
    assert json.loads(body["metadata"].pop("extra_body")) == {"top_k": 5, "seed": 7}
    assert body["metadata"] == {"note": "n"}


@pytest.mark.parametrize("metadata", ["text", {"extra_body": "{"}, {"extra_body": "[]"}, {"extra_body": {}}])
def test_an_extra_body_that_is_no_object_in_a_string_is_refused(metadata: Any):
    with pytest.raises(DataError, match="expected"):
        sent(asking(USER, seed=7, metadata=metadata))


def test_chat_template_kwargs_are_a_key_beside_the_wire_and_the_tasks_own_stand_over_them():
    metadata = {"chat_template_kwargs": '{"b": 3}'}
    body = sent(asking(USER, metadata=metadata), chat_template_kwargs={"a": 1, "b": 2}, extra_body={"top_k": 5})
    assert (body["chat_template_kwargs"], body["metadata"], body["top_k"]) == ({"a": 1, "b": 3}, metadata, 5)
    assert "chat_template_kwargs" not in sent(asking(USER, metadata=metadata))


def test_a_tool_has_the_keys_that_the_wire_requires_and_one_of_the_servers_passes():
    search = {"type": "web_search", "search_context_size": "low"}
    assert sent(asking(USER, tools=({"type": "function", "name": "f"}, search)))["tools"] == [
        {"type": "function", "name": "f", "parameters": None, "strict": None},
        search,
    ]


def test_earlier_output_goes_back_as_the_strictest_server_takes_it():
    reasoning = {"type": "reasoning", "id": "r", "summary": [], "status": "completed", "encrypted_content": None}
    items = (USER, reasoning, call(**TOKENS), call(**{**TOKENS, "generation_log_probs": None, "routed_experts": "x"}))
    assert sent(asking(*items))["input"] == [USER, {"type": "reasoning", "id": "r", "summary": []}, call(**TOKENS), call()]


def test_images_files_and_audio_pass_through():
    parts = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "high"},
        {"type": "input_file", "file_id": "f"},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    assert sent(asking({"role": "user", "content": parts}))["input"][0]["content"] == parts
    image = {"type": "input_image", "image_url": "https://x/y.png"}
    assert sent(asking({"role": "user", "content": [image]}))["input"][0]["content"] == [{**image, "detail": "auto"}]


def test_a_reply_with_reasoning_and_parallel_calls_becomes_its_items():
    reasoning = {"id": "rs", "type": "reasoning", "summary": [{"type": "summary_text", "text": "both"}], "encrypted_content": None}
    turn = turn_of(reply(reasoning, call(call_id="c1"), call(call_id="c2", arguments="{", **TOKENS)))
    assert turn.items == (
        {"id": "rs", "type": "reasoning", "summary": [{"type": "summary_text", "text": "both"}]},
        call(call_id="c1"),
        call(call_id="c2", arguments="{", **TOKENS),
    )
    assert turn.usage == Usage(input_tokens=12, output_tokens=5, cached_tokens=8, reasoning_tokens=3)
    assert (turn.incomplete_reason, turn.model, turn.tokens) == (None, "served", None)


def test_items_are_stored_in_the_newest_strictest_shape():
    part = {"type": "output_text", "text": "3", "annotations": None, "logprobs": None}
    output = (
        {"role": "assistant", "content": [part, {"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "id": "m", "content": "3", "status": None},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        call(prompt_token_ids=[1], generation_token_ids=[2]),
        {"type": "web_search_call", "id": "w", "action": {"query": "q", "sources": None}},
    )
    text = {"type": "output_text", "text": "3", "annotations": []}
    head = {"type": "message", "role": "assistant", "status": "completed"}
    assert turn_of(reply(*output)).items == (
        {**head, "id": "msg_4_2_1_0", "content": [text, {"type": "refusal", "refusal": "no"}]},
        {**head, "id": "m", "content": [text]},
        {"type": "reasoning", "id": "rs_4_2_1_2", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        call(),
        {"type": "web_search_call", "id": "w", "action": {"query": "q"}},
    )


def test_what_a_turn_gave_is_valid_as_the_next_turns_input():
    output = ({"role": "assistant", "content": "3"}, {"type": "reasoning", "status": "completed"}, call(**TOKENS))
    items = turn_of(reply(*output)).items
    assert sent(asking(USER, *items))["input"] == [
        USER,
        items[0],
        {"type": "reasoning", "id": "rs_4_2_1_1", "summary": []},
        call(**TOKENS),
    ]


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (None, Usage()),
        ({}, Usage()),
        ({"input_tokens": None, "output_tokens": 5, "output_tokens_details": None}, Usage(output_tokens=5)),
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(input_tokens=3, output_tokens=4)),
    ],
)
def test_usage_may_be_missing_or_the_other_wires(usage: Any, counted: Usage):
    assert turn_of(reply(usage=usage)).usage == counted


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "max_output_tokens"),
        ({"status": None, "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ({"status": "incomplete"}, "incomplete"),
        ({"status": None, "incomplete_details": None, "model": None}, None),
    ],
)
def test_a_reply_that_was_cut_off_says_why(fields: dict[str, Any], reason: str | None):
    assert turn_of(reply(said("1 +"), **fields)).incomplete_reason == reason


@pytest.mark.parametrize("status", ["failed", "cancelled", "in_progress", "queued"])
def test_a_response_that_failed_is_an_error_and_no_empty_answer(status: str):
    error = {"code": "server_error", "message": "out of memory"} if status == "failed" else None
    with pytest.raises(EndpointError, match=f"status {status}, {'out of memory' if error else 'no error given'}"):
        turn_of(reply(status=status, error=error))


@pytest.mark.parametrize(
    ("answered", "told"),
    [
        ({}, "output is missing or null; expected a list"),
        (reply(3), "output[0] is 3; expected an object"),
        (reply({"id": "x"}), "output[0].type is missing or null; expected a string"),
        (reply(call(arguments={})), "output[0].arguments is {}; expected a string"),
        (reply(call(call_id=None)), "output[0].call_id is missing or null; expected a string"),
        (reply(said("x") | {"content": 3}), "output[0].content is 3; expected a list"),
        (reply(said("x") | {"content": ["x"]}), "output[0].content[0] is 'x'; expected an object"),
        (reply(said("x") | {"content": [{"type": "output_text"}]}), "text of an output_text is missing or null"),
        (reply(usage=3), "usage is 3; expected an object"),
        (reply(usage={"input_tokens": "many"}), "usage.input_tokens is 'many'; expected a number of tokens"),
        (reply(usage={"input_tokens": True}), "usage.input_tokens is True; expected a number of tokens"),
        (reply(model=3), "model is 3; expected a string"),
    ],
)
def test_a_reply_that_is_none_says_what_was_expected_and_found(answered: Any, told: str):
    with pytest.raises(EndpointError) as raised:
        turn_of(answered)
    assert "its reply is none of the Responses API: " in str(raised.value)
    assert told in str(raised.value)
    assert not raised.value.configuration


def test_output_that_no_row_can_hold_is_an_error_of_the_endpoint():
    deep = '{"a":' * 300 + "1" + "}" * 300
    with pytest.raises(EndpointError, match="cannot be written to a row"):
        turn_of(('{"output":[{"type":"web_search_call","action":' + deep + "}]}").encode())


def test_importing_the_endpoints_imports_no_openai_package():
    program = "import sys, gym_bridge.rollouts.models.responses, gym_bridge.rollouts.models.chat; print('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
