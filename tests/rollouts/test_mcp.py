"""Tools over MCP: listed with the session's token, offered by their long names, and called only when listed."""

import json
from typing import Any

import pytest
from aiohttp import web

from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.schemas.rollouts import Failure, FailureType
from tests.rollouts.dialects import Handler, Server, abort, answering, looping, play_in
from tests.rollouts.stage import ScriptedEndpoint, called, in_order, said, turn

WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "inputSchema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "outputSchema": {},
}
MCP = {"server_name": "weather", "url_path": "/tools/mcp", "transport": "http", "headers": {"X-Token": "t"}}
LONG = "mcp__weather__get_weather"
LOOK = {"type": "function", "name": "look", "parameters": {}}


def row(*tools: dict[str, Any]) -> dict[str, Any]:
    return {"responses_create_params": {"input": "go", "tools": list(tools)}}


def result(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"content": list(content), **fields}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def speaking(*, call: Any = None, pages: Any = None, stream: bool = False, with_token: bool = True) -> Handler:
    """A JSON-RPC endpoint: pages of tools, and one result, or error, of every call."""
    pages = [{"tools": [WEATHER]}] if pages is None else pages

    async def handler(request: web.Request) -> web.StreamResponse:
        message = await request.json()
        if with_token and request.headers.get("X-Token") != "t":
            return web.json_response({"detail": "no token"}, status=401)
        if message["method"] == "tools/list":
            answer = {"result": pages[int(message["params"].get("cursor", 0))]}
        else:
            answer = call or {"result": result(text("sunny"))}
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer})
        if not stream:
            return web.Response(text=body, content_type="application/json")
        note = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {}})
        events = f": hello\r\nevent: message\r\ndata: {note}\r\n\r\nevent: message\r\ndata: {body}\r\n\r\n"
        return web.Response(text=events, content_type="text/event-stream")

    return handler


def played(endpoint: Handler, *calls: Any, task: Any = None, mcp: Any = MCP) -> tuple[Any, Play, Server, ScriptedEndpoint]:
    """One attempt that makes the calls, all in one turn, and answers."""
    server = Server(
        {
            "/seed_session": answering({"mcp": mcp}),
            "/tools/mcp": endpoint,
            "/look": answering("looked"),
            "/verify": answering({"reward": 1.0}),
        }
    )
    loop = looping(in_order(turn(*calls), turn(said("done"))))
    made = lambda url, http: SeedVerify(url=url, http=http, loop=loop, request_timeout_s=10)  # noqa: E731
    ended, play = play_in(server, made, row() if task is None else task)
    assert isinstance(loop.endpoint, ScriptedEndpoint)
    return ended, play, server, loop.endpoint


def outputs(ended: Played) -> list[str]:
    return [item["output"] for item in ended.row["response"]["output"] if item["type"] == "function_call_output"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_listed_tool_is_offered_by_its_long_name_and_called_by_its_own(stream: bool):
    ended, play, server, endpoint = played(speaking(stream=stream), called(LONG, {"city": "Paris"}))
    assert outputs(ended) == ["sunny"]
    assert play.num_tool_errors == 0
    offered = {
        "type": "function",
        "name": LONG,
        "description": "The weather.",
        "parameters": WEATHER["inputSchema"],
        "strict": False,
    }
    assert [request.tools for request in endpoint.requests] == [(offered,)] * 2
    listing, calling = server.sent_to("/tools/mcp")
    assert listing == {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    assert calling["params"] == {"name": "get_weather", "arguments": {"city": "Paris"}}


def test_the_row_keeps_the_long_names_and_the_tools_as_they_were_offered():
    ended, _, server, _ = played(speaking(), called(LONG, {}))
    assert ended.row["response"]["output"][0]["name"] == LONG
    assert [tool["name"] for tool in ended.row["responses_create_params"]["tools"]] == [LONG]
    assert [tool["name"] for tool in ended.row["response"]["tools"]] == [LONG]
    assert [tool["name"] for tool in server.sent_to("/verify")[0]["responses_create_params"]["tools"]] == [LONG]


def test_tools_of_the_row_still_go_to_their_routes():
    ended, _, server, _ = played(speaking(), called("look", {}), called(LONG, {}, "c1"), task=row(LOOK))
    assert outputs(ended) == ["looked", "sunny"]
    assert "/look" in server.paths


def test_a_tool_that_the_row_offers_as_a_route_is_not_offered_twice():
    ended, _, _, _ = played(speaking(), task=row({**LOOK, "name": "get_weather"}))
    assert [tool["name"] for tool in ended.row["responses_create_params"]["tools"]] == ["get_weather"]


def test_a_row_that_was_played_before_gets_the_tools_once():
    ended, _, _, _ = played(speaking(), task=row(LOOK, {**LOOK, "name": LONG}))
    assert [tool["name"] for tool in ended.row["responses_create_params"]["tools"]] == ["look", LONG]


@pytest.mark.parametrize("name", ["mcp__weather__verify", "mcp__weather__../verify", "get_weather"])
def test_a_name_that_was_not_listed_reaches_no_server(name: str):
    ended, play, server, _ = played(speaking(), called(name, {}))
    assert "Unknown tool" in outputs(ended)[0]
    assert play.num_tool_errors == 1
    assert server.paths == ["/seed_session", "/tools/mcp", "/verify"]


def test_a_long_name_that_only_the_row_offers_is_no_route():
    ended, _, server, _ = played(speaking(), called("mcp__weather__old", {}), task=row({**LOOK, "name": "mcp__weather__old"}))
    assert "Unknown tool" in outputs(ended)[0]
    assert "/mcp__weather__old" not in server.paths


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        ({"result": result(text("no such city"), isError=True)}, "no such city"),
        ({"error": {"code": -32602, "message": "bad"}}, '{"error":{"code":-32602,"message":"bad"}}'),
    ],
)
def test_an_error_of_a_tool_is_the_models_to_read(answer: Any, output: str):
    ended, play, _, _ = played(speaking(call=answer), called(LONG, {}))
    assert outputs(ended) == [output]
    assert play.num_tool_errors == 1


@pytest.mark.parametrize(
    ("given", "output"),
    [
        (result(text("a"), text("b")), "a\nb"),
        (result(text("a"), {"type": "image", "data": "xx"}), 'a\n{"type":"image","data":"xx"}'),
        (result(structuredContent={"t": 3}), '{"t":3}'),
        (result(), ""),
    ],
)
def test_what_a_tool_gives_becomes_text(given: Any, output: str):
    ended, play, _, _ = played(speaking(call={"result": given}), called(LONG, {}))
    assert outputs(ended) == [output]
    assert play.num_tool_errors == 0


def test_all_pages_are_listed():
    pages = [{"tools": [WEATHER], "nextCursor": "1"}, {"tools": [{"name": "other"}]}]
    ended, _, _, _ = played(speaking(pages=pages))
    tools = ended.row["responses_create_params"]["tools"]
    assert [tool["name"] for tool in tools] == [LONG, "mcp__weather__other"]
    assert tools[1]["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    "mcp",
    [
        "yes",
        {**MCP, "server_name": None},
        {**MCP, "server_name": "../x"},
        {**MCP, "url_path": "@elsewhere/"},
        {**MCP, "transport": "stdio"},
        {**MCP, "headers": {"X-Token": 3}},
        {**MCP, "headers": ["X-Token"]},
        {**MCP, "headers": {}},
    ],
)
def test_an_endpoint_that_is_told_wrongly_is_a_seed_error(mcp: Any):
    ended, _, _, endpoint = played(speaking(), mcp=mcp)
    assert isinstance(ended, Failure)
    assert ended.type is FailureType.SEED
    assert endpoint.requests == []


@pytest.mark.parametrize(
    "endpoint",
    [
        abort,
        answering("boom", 500),
        answering("no json"),
        answering({"jsonrpc": "2.0", "id": 1, "error": {"message": "x"}}),
        answering({"jsonrpc": "2.0", "id": 7, "result": {"tools": []}}),
        speaking(pages=[{"tools": "all"}]),
        speaking(pages=[{"tools": [{}]}]),
        speaking(pages=[{"tools": ["x"]}]),
        speaking(pages=[{"tools": [{"name": "../verify"}]}]),
        speaking(pages=[{"tools": [], "nextCursor": "0"}]),
    ],
)
def test_tools_that_cannot_be_listed_are_a_seed_error(endpoint: Handler):
    ended, _, _, _ = played(endpoint)
    assert isinstance(ended, Failure)
    assert ended.type is FailureType.SEED


def test_a_call_without_an_answer_is_a_tool_error():
    listing = speaking()

    async def dying(request: web.Request) -> web.StreamResponse:
        return await (abort if (await request.json())["method"] == "tools/call" else listing)(request)

    ended, play, _, _ = played(dying, called(LONG, {}))
    assert isinstance(ended, Failure)
    assert ended.type is FailureType.TOOL
    assert play.num_turns == 1
