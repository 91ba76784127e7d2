"""Both OpenAI wires against a real server: what is sent, what becomes of the reply, and how failures are told."""

import asyncio
import socket
from typing import Any

import pytest
from aiohttp import web

from gym_bridge.errors import GymBridgeError
from gym_bridge.rollouts.models.openai_endpoint import ChatEndpoint, EndpointError, ResponsesEndpoint
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn, TurnRequest, Usage
from gym_bridge.schemas.tokens import SampleKey
from tests.rollouts.stage import serving

TOOL = {"type": "function", "name": "add", "description": "Add.", "parameters": {"type": "object"}, "strict": None}
ITEMS: tuple[Item, ...] = (
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "1 + 2?"},
    {"type": "reasoning", "id": "rs_0", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c0", "name": "add", "arguments": '{"a": 1,'},
    {"type": "function_call_output", "call_id": "c0", "output": '{"error":"x"}'},
)
KEY = SampleKey(0, 4, 2, 1)


def request(items: tuple[Item, ...] = ITEMS, *, tools: tuple[Item, ...] = (TOOL,), **params: Any) -> TurnRequest:
    return TurnRequest(items=items, tools=tools, params={"input": "unused", **params}, key=KEY)


def responses_reply(*output: Item, **fields: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 17,
    }
    base = {"id": "resp_1", "created_at": 1.0, "object": "response", "model": "served", "status": "completed", "usage": usage}
    return {**base, "output": list(output), "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **fields}


def chat_reply(message: dict[str, Any], finish_reason: str = "stop", **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
    base = {"id": "chat_1", "created": 1, "object": "chat.completion", "model": "served"}
    return {**base, "choices": [choice], "usage": usage, **fields}


def asked(
    kind: type[ResponsesEndpoint] | type[ChatEndpoint],
    reply: Any,
    one: TurnRequest | None = None,
    *,
    status: int = 200,
    api_key: str | None = None,
    raw: bytes | None = None,
    delay_s: float = 0.0,
    timeout_s: float = 20.0,
) -> tuple[Turn, list[tuple[dict[str, Any], str | None]]]:
    """The turn that `reply` becomes, and the bodies and keys that the server got."""
    got: list[tuple[dict[str, Any], str | None]] = []

    async def handler(http: web.Request) -> web.Response:
        got.append((await http.json(), http.headers.get("Authorization")))
        await asyncio.sleep(delay_s)
        headers = {"retry-after-ms": "1"}
        if raw is not None:
            return web.Response(body=raw, status=status, headers=headers, content_type="application/json")
        return web.json_response(reply, status=status, headers=headers)

    async def run() -> Turn:
        app = web.Application()
        app.router.add_post("/v1/responses" if kind is ResponsesEndpoint else "/v1/chat/completions", handler)
        async with serving(app) as url:
            endpoint = kind(url + "/v1", "org/my-model", api_key=api_key, timeout_s=timeout_s)
            try:
                return await endpoint.turn(one or request())
            finally:
                await endpoint.close()

    try:
        return asyncio.run(run()), got
    except GymBridgeError as error:
        error.__dict__["got"] = got
        raise


def text(content: str) -> Item:
    return {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part(content)]}


def part(content: str) -> Item:
    return {"type": "output_text", "text": content, "annotations": []}


PARAMS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "max_output_tokens": 64,
    "parallel_tool_calls": False,
    "tool_choice": {"type": "function", "name": "add"},
    "instructions": "Answer.",
    "background": None,
    "stream": True,
    "user": "someone",
}


def test_a_responses_request_says_model_items_tools_and_settings_and_nothing_else():
    _, ((body, _),) = asked(ResponsesEndpoint, responses_reply(text("3")), request(**PARAMS))
    assert body == {
        "model": "org/my-model",
        "input": list(ITEMS),
        "tools": [{"type": "function", "name": "add", "description": "Add.", "parameters": {"type": "object"}}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 64,
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "name": "add"},
        "instructions": "Answer.",
        "stream": False,
    }


def test_a_chat_request_says_the_same_in_its_own_words():
    _, ((body, _),) = asked(ChatEndpoint, chat_reply({"content": "3"}), request(**PARAMS))
    call = {"id": "c0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1,'}}
    assert body == {
        "model": "org/my-model",
        "messages": [
            {"role": "system", "content": "Answer."},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1 + 2?"},
            {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c0", "content": '{"error":"x"}'},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 64,
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "stream": False,
    }


@pytest.mark.parametrize("kind", [ResponsesEndpoint, ChatEndpoint])
def test_what_is_not_set_is_not_sent(kind: type):
    reply = responses_reply(text("3")) if kind is ResponsesEndpoint else chat_reply({"content": "3"})
    _, ((body, key),) = asked(kind, reply, request(tools=(), temperature=None))
    assert set(body) == {"model", "stream", "input" if kind is ResponsesEndpoint else "messages"}
    assert key == "Bearer none"


@pytest.mark.parametrize("kind", [ResponsesEndpoint, ChatEndpoint])
def test_an_api_key_is_sent_and_stays_out_of_errors(kind: type):
    with pytest.raises(EndpointError) as raised:
        asked(kind, {"error": {"message": "wrong key sk-secret"}}, status=401, api_key="sk-secret")
    assert raised.value.__dict__["got"][0][1] == "Bearer sk-secret"
    assert raised.value.status == 401
    assert "sk-secret" not in str(raised.value)
    assert "wrong key <key>" in str(raised.value)


def test_a_responses_reply_with_reasoning_and_parallel_calls_becomes_its_items():
    output = [
        {"id": "rs", "type": "reasoning", "summary": [{"type": "summary_text", "text": "both"}], "encrypted_content": None},
        {"type": "function_call", "id": "f1", "call_id": "c1", "name": "add", "arguments": '{"a":1}', "status": "completed"},
        {"type": "function_call", "id": "f2", "call_id": "c2", "name": "add", "arguments": "{", "generation_token_ids": [1, 2]},
    ]
    turn, _ = asked(ResponsesEndpoint, responses_reply(*output))
    assert turn.items == (
        {"id": "rs", "type": "reasoning", "summary": [{"type": "summary_text", "text": "both"}]},
        output[1],
        output[2],
    )
    assert turn.usage == Usage(input_tokens=12, output_tokens=5)
    assert (turn.incomplete_reason, turn.model, turn.tokens) == (None, "served", None)


def test_a_chat_reply_with_reasoning_and_parallel_calls_becomes_the_same_items():
    calls = [{"id": f"c{number}", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}} for number in (1, 2)]
    for name in ("reasoning_content", "reasoning"):
        turn, _ = asked(ChatEndpoint, chat_reply({"content": None, name: "both", "tool_calls": calls}, "tool_calls"))
        assert [item["type"] for item in turn.items] == ["reasoning", "function_call", "function_call"]
        assert turn.items[0]["summary"] == [{"type": "summary_text", "text": "both"}]
        assert [(item["call_id"], item["name"], item["arguments"]) for item in turn.items[1:]] == [
            ("c1", "add", '{"a":1}'),
            ("c2", "add", '{"a":1}'),
        ]
    assert (turn.usage, turn.model) == (Usage(input_tokens=12, output_tokens=5), "served")


def test_a_refusal_in_chat_is_its_text():
    turn, _ = asked(ChatEndpoint, chat_reply({"content": None, "refusal": "I will not."}))
    assert turn.items[0]["content"][0]["text"] == "I will not."


def test_a_cut_off_reply_is_incomplete_on_both_wires():
    incomplete = responses_reply(text("1 +"), status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    assert asked(ResponsesEndpoint, incomplete)[0].incomplete_reason == "max_output_tokens"
    assert asked(ChatEndpoint, chat_reply({"content": "1 +"}, "length"))[0].incomplete_reason == "max_output_tokens"


def test_a_reply_without_usage_or_with_one_of_the_other_wire_counts_nothing():
    assert asked(ResponsesEndpoint, responses_reply(text("3"), usage=None))[0].usage == Usage()
    assert asked(ChatEndpoint, chat_reply({"content": "3"}, usage=None))[0].usage == Usage()
    assert asked(ResponsesEndpoint, responses_reply(text("3"), usage={"prompt_tokens": 3}))[0].usage == Usage()


@pytest.mark.parametrize("kind", [ResponsesEndpoint, ChatEndpoint])
@pytest.mark.parametrize(("status", "requests"), [(401, 1), (400, 1), (404, 1), (429, 3), (500, 3), (503, 3)])
def test_a_status_is_an_endpoint_error_and_asked_again_where_that_may_help(kind: type, status: int, requests: int):
    with pytest.raises(EndpointError, match="too busy") as raised:
        asked(kind, {"error": {"message": "too busy"}}, status=status)
    assert raised.value.status == status
    assert not raised.value.unreachable
    assert len(raised.value.__dict__["got"]) == requests


@pytest.mark.parametrize("kind", [ResponsesEndpoint, ChatEndpoint])
@pytest.mark.parametrize("raw", [b"<html>", b"{", b"null", b"[]", b"{}", b"3", b""])
def test_a_reply_that_is_none_is_an_endpoint_error(kind: type, raw: bytes):
    with pytest.raises(EndpointError) as raised:
        asked(kind, None, raw=raw)
    assert not raised.value.unreachable


@pytest.mark.parametrize("status", ["failed", "cancelled", "in_progress"])
def test_a_response_that_failed_is_an_error_and_no_empty_answer(status: str):
    error = {"code": "server_error", "message": "out of memory"} if status == "failed" else None
    with pytest.raises(EndpointError, match=f"status {status}"):
        asked(ResponsesEndpoint, responses_reply(status=status, error=error))


@pytest.mark.parametrize("reply", [{"choices": []}, {"choices": None}, {"choices": [{}]}, {"choices": [{"message": None}]}])
def test_a_chat_reply_without_a_message_is_an_error(reply: dict[str, Any]):
    with pytest.raises(EndpointError):
        asked(ChatEndpoint, reply)


def test_text_that_no_row_can_hold_is_an_error_of_the_endpoint():
    with pytest.raises(EndpointError):
        asked(ChatEndpoint, None, raw=b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}')


@pytest.mark.parametrize("kind", [ResponsesEndpoint, ChatEndpoint])
def test_a_model_that_does_not_answer_in_time_is_no_unreachable_one(kind: type):
    with pytest.raises(EndpointError) as raised:
        asked(kind, {}, delay_s=5, timeout_s=0.1)
    assert not raised.value.unreachable
    assert raised.value.status is None


def test_a_connection_that_breaks_within_the_reply_is_no_unreachable_one():
    async def half(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        await response.prepare(http)
        await response.write(b'{"id"')
        assert http.transport is not None
        http.transport.close()
        return response

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/responses", half)
        async with serving(app) as url:
            endpoint = ResponsesEndpoint(url + "/v1", "m", api_key=None, timeout_s=5)
            try:
                await endpoint.turn(request())
            finally:
                await endpoint.close()

    with pytest.raises(EndpointError) as raised:
        asyncio.run(run())
    assert not raised.value.unreachable


@pytest.mark.parametrize("kind", [ResponsesEndpoint, ChatEndpoint])
def test_a_refused_connection_is_unreachable(kind: type):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"

    async def run() -> None:
        endpoint = kind(url, "m", api_key=None, timeout_s=5)
        try:
            await endpoint.turn(request())
        finally:
            await endpoint.close()

    with pytest.raises(EndpointError) as raised:
        asyncio.run(run())
    assert raised.value.unreachable
    assert raised.value.url == url
