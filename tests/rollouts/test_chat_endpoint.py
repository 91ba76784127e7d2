"""The chat wire against a real server: items and parameters in its words, and its replies as items."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.chat import ChatEndpoint, chat_body, chat_turn, is_openai
from gym_bridge.rollouts.models.model_http import EndpointError
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn, TurnRequest, Usage
from tests.rollouts.model_stage import TOOL, asking, taken

USER: Item = {"role": "user", "content": "1 + 2?"}
CALL = {"id": "c0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1,'}}


def reply(message: dict[str, Any], finish_reason: Any = "stop", choice: dict[str, Any] | None = None, **fields: Any) -> Any:
    one = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason, **(choice or {})}
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    return {"id": "c", "object": "chat.completion", "model": "served", "choices": [one], "usage": usage, **fields}


def sent(request: TurnRequest, **options: Any) -> Any:
    return taken(ChatEndpoint, reply({"content": "3"}), request, **options)[1]


def turn_of(answered: Any) -> Turn:
    return taken(ChatEndpoint, answered, asking(USER))[0]


def body_of(*items: Item, tools: tuple[Item, ...] = (), **params: Any) -> Any:
    return chat_body(asking(*items, tools=tools, **params), "m", openai=False)


def test_a_request_says_items_tools_and_parameters_in_the_words_of_chat():
    items = (
        {"role": "developer", "content": "Be brief."},
        USER,
        {"type": "reasoning", "id": "rs_0", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c0", "name": "add", "arguments": '{"a": 1,'},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c0", "output": '{"error":"x"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    )
    params = {
        "instructions": "Answer.",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 64,
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "name": "add"},
        "reasoning": {"effort": "low", "summary": "auto", "context": None},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"const": None}, "strict": None}, "verbosity": "low"},
        "top_logprobs": 2,
        "seed": 7,
        "stop": ["END"],
        "user": "someone",
    }
    second = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    assert sent(asking(*items, tools=(TOOL,), **params)) == {
        "model": "org/my-model",
        "messages": [
            {"role": "system", "content": "Answer."},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1 + 2?"},
            {"role": "assistant", "content": "", "reasoning_content": "hm", "reasoning": "hm", "tool_calls": [CALL, second]},
            {"role": "tool", "tool_call_id": "c0", "content": '{"error":"x"}'},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 64,
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": None}}},
        "verbosity": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 7,
        "stop": ["END"],
        "user": "someone",
    }


def test_what_is_not_set_or_means_nothing_in_chat_is_not_sent():
    nothing = {
        "include": ["reasoning.encrypted_content"],
        "store": True,
        "truncation": "disabled",
        "background": False,
        "stream": True,
        "max_tool_calls": 3,
        "model": "other",
        "temperature": None,
        "prompt": None,
        "text": {"format": {"type": "text"}},
        "metadata": {"note": "n"},
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "top_logprobs": 0,
    }
    assert set(sent(asking(USER, **nothing))) == {"model", "messages"}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("top_k", 5, "parameter 'top_k' (5) has no form in Chat Completions; drop it, or use the Responses API"),
        ("truncation", "auto", "parameter 'truncation' (auto)"),
        ("background", True, "parameter 'background' (True)"),
        ("previous_response_id", "resp_1", "parameter 'previous_response_id' (resp_1)"),
        ("prompt", {"id": "p"}, "parameter 'prompt'"),
        ("n", 2, "parameter 'n' (2)"),
        ("text", {"format": {"type": "grammar"}}, "parameter 'text.format'"),
        ("text", {"tone": "kind"}, "parameter 'text.tone' (kind)"),
        ("reasoning", {"effort": "low", "mode": "pro"}, "parameter 'reasoning.mode' (pro)"),
        ("reasoning", "low", "parameter 'reasoning' (low)"),
        ("tool_choice", {"type": "web_search"}, "parameter 'tool_choice'"),
        ("tool_choice", {"type": "mcp", "server_label": "s"}, "parameter 'tool_choice'"),
        ("metadata", {"audio_path": "a.wav"}, "metadata.audio_path of the task: give audio as an input_audio part"),
        ("metadata", {"extra_body": "{"}, "metadata.extra_body of the task is '{'; expected a string with a JSON object in it"),
    ],
)
def test_a_parameter_that_chat_cannot_express_is_refused_by_name(name: str, value: Any, told: str):
    with pytest.raises(DataError) as raised:
        sent(asking(USER, tools=(TOOL,), **{name: value}))
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("choice", "nested"),
    [
        ("required", "required"),
        ({"type": "function", "function": {"name": "add"}}, {"type": "function", "function": {"name": "add"}}),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]},
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "add"}}]},
            },
        ),
    ],
)
def test_a_tool_choice_is_nested(choice: Any, nested: Any):
    assert body_of(USER, tools=(TOOL,), tool_choice=choice)["tool_choice"] == nested


def test_a_tool_of_the_servers_is_refused_by_name():
    with pytest.raises(DataError, match="tool of type 'web_search'; expected a function"):
        body_of(USER, tools=({"type": "web_search"},))


def test_settings_of_metadata_are_laid_under_the_request_and_those_of_the_run_over_it():
    metadata = {"extra_body": '{"top_k": 5, "min_p": 0.1, "model": "x", "seed": 1}', "chat_template_kwargs": '{"b": 3}'}
    body = sent(
        asking(USER, metadata=metadata, seed=7),
        chat_template_kwargs={"a": 1, "b": 2},
        extra_body={"min_p": 0.2, "return_token_ids": True},
    )
    assert body["chat_template_kwargs"] == {"a": 1, "b": 3}
    assert {name: body[name] for name in ("model", "top_k", "min_p", "seed", "return_token_ids")} == {
        "model": "org/my-model",
        "top_k": 5,
        "min_p": 0.2,
        "seed": 7,
        "return_token_ids": True,
    }
    assert "metadata" not in body


def test_openai_itself_gets_its_own_words():
    items = ({"role": "developer", "content": "Be brief."}, USER, {"type": "reasoning", "id": "r", "summary": [], "content": "hm"})
    body: Any = chat_body(asking(*items, max_output_tokens=9), "m", openai=True)
    assert body == {
        "model": "m",
        "messages": [{"role": "developer", "content": "Be brief."}, USER, {"role": "assistant", "content": ""}],
        "max_completion_tokens": 9,
    }


@pytest.mark.parametrize(
    ("url", "openai"),
    [
        ("https://api.openai.com/v1", True),
        ("https://mine.openai.azure.com/openai/v1", True),
        ("http://localhost:8000/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
    ],
)
def test_openai_is_told_by_its_address(url: str, openai: bool):
    assert is_openai(url) is openai


def test_images_files_and_audio_become_parts_of_chat():
    parts = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "high", "file_id": None},
        {"type": "input_file", "file_data": "AA==", "filename": "a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    assert sent(asking({"role": "user", "content": parts}))["messages"][0]["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "high"}},
        {"type": "file", "file": {"file_data": "AA==", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_reply_with_reasoning_and_parallel_calls_becomes_its_items(name: str):
    calls = [{"id": f"c{number}", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}} for number in (1, 2)]
    turn = turn_of(reply({"content": None, name: "both", "tool_calls": calls, "refusal": None, "audio": None}, "tool_calls"))
    made = {"type": "function_call", "name": "add", "arguments": '{"a":1}', "status": "completed"}
    assert turn.items == (
        {"type": "reasoning", "id": "rs_4_2_1", "summary": [{"type": "summary_text", "text": "both"}]},
        {**made, "id": "fc_4_2_1_0", "call_id": "c1"},
        {**made, "id": "fc_4_2_1_1", "call_id": "c2"},
    )
    assert turn.usage == Usage(input_tokens=12, output_tokens=5, cached_tokens=8, reasoning_tokens=3)
    assert (turn.incomplete_reason, turn.model, turn.tokens) == (None, "served", None)


def test_a_refusal_is_a_part_of_the_answer_and_goes_back_as_one():
    turn = turn_of(reply({"content": None, "refusal": "I will not."}))
    assert [item["content"] for item in turn.items] == [[{"type": "refusal", "refusal": "I will not."}]]
    assert body_of(USER, *turn.items)["messages"][1] == {
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "I will not."}],
    }


def test_a_call_without_id_or_arguments_is_given_them():
    calls = [{"function": {"name": "f", "arguments": None}}, {"id": "", "function": {"name": "g", "arguments": {"a": 1}}}]
    items = turn_of(reply({"content": "", "tool_calls": calls})).items
    assert [(item["call_id"], item["arguments"]) for item in items] == [("call_4_2_1_0", "{}"), ("call_4_2_1_1", '{"a":1}')]


def test_citations_and_log_probs_stand_with_the_text():
    citation = {"start_index": 0, "end_index": 1, "title": "t", "url": "u"}
    logprobs = {"content": [{"token": "3", "logprob": -0.5, "bytes": None, "top_logprobs": []}], "refusal": None}
    message = {"content": "3", "annotations": [{"type": "url_citation", "url_citation": citation}]}
    (item,) = turn_of(reply(message, choice={"logprobs": logprobs})).items
    assert item["content"] == [
        {
            "type": "output_text",
            "text": "3",
            "annotations": [{"type": "url_citation", **citation}],
            "logprobs": [{"token": "3", "logprob": -0.5, "top_logprobs": []}],
        }
    ]


def test_token_ids_of_the_server_are_left_aside():
    message = reply({"content": "3"}, choice={"token_ids": [3]}, prompt_token_ids=[1, 2])
    (item,) = turn_of(message).items
    assert set(item) == {"type", "id", "role", "status", "content"}


@pytest.mark.parametrize(
    ("finish_reason", "reason"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter"), ("stop", None), (None, None), ("eos", None)],
)
def test_a_reply_that_was_cut_off_says_why(finish_reason: str | None, reason: str | None):
    assert turn_of(reply({"content": "1 +"}, finish_reason)).incomplete_reason == reason


def test_usage_and_model_may_be_missing():
    turn = turn_of({"choices": [{"message": {"content": "3"}}], "usage": None})
    assert (turn.usage, turn.model) == (Usage(), "org/my-model")


@pytest.mark.parametrize(
    ("answered", "told"),
    [
        ({}, "choices is missing or null; expected a list"),
        ({"choices": []}, "choices[0] is missing or null; expected an object"),
        ({"choices": [{}]}, "choices[0].message is missing or null; expected an object"),
        (reply({"content": "3"}, "error"), "finish_reason is 'error'"),
        (reply({"content": 3}), "content is of type int"),
        (reply({"content": [{"type": "thinking"}]}), "content part of type 'thinking' is no text"),
        (reply({"reasoning": {"a": 1}}), "choices[0].message.reasoning is {'a': 1}; expected a string"),
        (reply({"tool_calls": {"a": 1}}), "choices[0].message.tool_calls is {'a': 1}; expected a list"),
        (reply({"tool_calls": [3]}), "choices[0].message.tool_calls[0] is 3; expected an object"),
        (reply({"tool_calls": [{"type": "custom"}]}), "choices[0].message.tool_calls[0].type is 'custom'; expected a function"),
        (reply({"tool_calls": [{"function": {}}]}), "tool_calls[0].function.name is missing or null; expected a string"),
        (reply({"tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}), "function.arguments is [1]; expected a string"),
        (reply({"audio": {"id": "a"}}), "choices[0].message.audio has no form in Responses"),
        (reply({"function_call": {"name": "f"}}), "choices[0].message.function_call has no form in Responses"),
    ],
)
def test_a_reply_that_is_none_says_what_was_expected_and_found(answered: Any, told: str):
    with pytest.raises(EndpointError) as raised:
        turn_of(answered)
    assert "its reply is none of Chat Completions: " in str(raised.value)
    assert told in str(raised.value)


TEXT = st.text(alphabet='ab "\\\n{}\u00e9\u2028\U0001f600\x00', min_size=1, max_size=8)
ANSWER = st.fixed_dictionaries(
    {},
    optional={
        "content": TEXT,
        "refusal": TEXT,
        "reasoning_content": TEXT,
        "tool_calls": st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    },
)


@given(ANSWER)
def test_an_answer_goes_back_to_the_model_as_it_was_said_and_comes_again_as_the_same_items(said: dict[str, Any]):
    calls = [
        {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(said.get("tool_calls", []))
    ]
    request = asking(USER)
    items = chat_turn(reply({**said, "tool_calls": calls}), request, "m").items
    _, message = body_of(USER, *items)["messages"]
    assert message.get("tool_calls", []) == calls
    assert message.get("reasoning_content") == message.get("reasoning") == said.get("reasoning_content")
    assert _texts(message["content"]) == (said.get("content", ""), said.get("refusal", ""))
    assert chat_turn(json.loads(json.dumps(reply(message))), request, "m").items == items


def _texts(content: Any) -> tuple[str, str]:
    """Text and refusal of a message's content."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join(part.get("text", "") for part in parts), "".join(part.get("refusal", "") for part in parts)
