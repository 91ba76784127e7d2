"""Tools that a resource server has over MCP: JSON-RPC over HTTP, with the session's token of the seed reply.

The model sees them as `mcp__<server>__<tool>`, the name that NeMo Gym's own harnesses give them; its verifiers strip that
prefix, and rows keep it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import orjson

from gym_bridge.rollouts.failing import RolloutError, bad_status
from gym_bridge.rollouts.http import Reply
from gym_bridge.rollouts.sessions.environment import Session
from gym_bridge.rollouts.turn_loop import ROUTE
from gym_bridge.schemas.rollouts import FailureType, Item, Row

ACCEPT = {"Accept": "application/json, text/event-stream"}
MAX_PAGES = 100
NO_ARGUMENTS = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one rollout's session talks JSON-RPC."""

    session: Session
    path: str
    headers: Mapping[str, str]
    ids: count

    async def request(self, method: str, params: Row, failure: FailureType) -> Row:
        """The JSON-RPC message that answers. Raises RolloutError with type `failure` where none does."""
        number = next(self.ids)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        reply = await self.session.post(self.path, message, failure, headers={**self.headers, **ACCEPT})
        answer = _answer(reply, number)
        if answer is None and reply.status >= 300:
            raise bad_status(reply, failure, url=self.session.url, route=f"{self.path} {method}")
        if answer is None:
            raise RolloutError(failure, f"{self.path} {method} answered no JSON-RPC: {reply.short()}", status=reply.status)
        return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class McpTools:
    """The MCP tools of one session."""

    endpoint: Endpoint
    prefix: str
    names: Mapping[str, str]
    """From the name that the model knows to the server's own; no other name is ever called."""
    tools: tuple[Item, ...]
    """In the flat Responses form."""

    @classmethod
    async def connect(cls, session: Session, told: Any, offered: list[Item]) -> "McpTools":
        """List the tools of the endpoint that the seed reply `told`, but those that the row has `offered` as routes.

        Raises RolloutError of type SEED.
        """
        server, endpoint = _endpoint(session, told)
        prefix = f"mcp__{server}__"
        routes = {tool.get("name") for tool in offered}
        listed = [tool for tool in await _list(endpoint) if tool["name"] not in routes]
        for tool in listed:
            if not ROUTE.fullmatch(prefix + tool["name"]):
                raise _seed_error(f"tools/list has a tool named {tool['name']!r}; expected letters, digits, '_', '-' and '.'")
        return cls(
            endpoint=endpoint,
            prefix=prefix,
            names={prefix + tool["name"]: tool["name"] for tool in listed},
            tools=tuple(_function_tool(prefix, tool) for tool in listed),
        )

    def beside(self, offered: list[Item]) -> list[Item]:
        """The tools of a row and these. A row that was played before has these already: none comes twice."""
        return [*(tool for tool in offered if tool.get("name") not in self.names), *self.tools]

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """The text of a result and whether it is an error. Raises RolloutError where no answer came."""
        params = {"name": self.names[name], "arguments": arguments}
        answer = await self.endpoint.request("tools/call", params, FailureType.TOOL)
        result = answer.get("result")
        if not isinstance(result, dict):
            return orjson.dumps({"error": answer.get("error")}).decode(), True
        return _text(result), result.get("isError") is True


def _endpoint(session: Session, told: Any) -> tuple[str, Endpoint]:
    """The server's name and its endpoint, from the `mcp` object of a seed reply."""
    if not isinstance(told, dict):
        raise _seed_error(f"'mcp' is of type {type(told).__name__}; expected an object")
    server, path, headers = told.get("server_name"), told.get("url_path", "/mcp"), told.get("headers") or {}
    if not isinstance(server, str) or not ROUTE.fullmatch(server):
        raise _seed_error(f"'mcp.server_name' is {server!r}; expected letters, digits, '_', '-' and '.'")
    if not isinstance(path, str) or not path.startswith("/"):
        raise _seed_error(f"'mcp.url_path' is {path!r}; expected a path of this server")
    if told.get("transport", "http") != "http":
        raise _seed_error(f"'mcp.transport' is {told['transport']!r}; only 'http' is spoken here")
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise _seed_error("'mcp.headers' is no object of texts")
    return server, Endpoint(session=session, path=path, headers=headers, ids=count(1))


async def _list(endpoint: Endpoint) -> list[Row]:
    """All pages of tools/list."""
    tools: list[Row] = []
    params: Row = {}
    for _ in range(MAX_PAGES):
        answer = await endpoint.request("tools/list", params, FailureType.SEED)
        result = answer.get("result")
        page = result.get("tools") if isinstance(result, dict) else None
        if not isinstance(result, dict) or not isinstance(page, list):
            raise _seed_error(f"tools/list gave no tools: {str(answer.get('error', result))[:300]}")
        for tool in page:
            if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
                raise _seed_error("tools/list holds a tool without a name")
        tools += page
        cursor = result.get("nextCursor")
        if not cursor:
            return tools
        params = {"cursor": cursor}
    raise _seed_error(f"tools/list has more than {MAX_PAGES} pages")


def _function_tool(prefix: str, tool: Row) -> Item:
    schema = tool.get("inputSchema")
    return {
        "type": "function",
        "name": prefix + tool["name"],
        "description": tool.get("description") if isinstance(tool.get("description"), str) else "",
        "parameters": schema if isinstance(schema, dict) else NO_ARGUMENTS,
        "strict": False,
    }


def _text(result: Row) -> str:
    """The texts of a result, a line each; what is no text stands as JSON."""
    parts = result.get("content")
    if not isinstance(parts, list) or not parts:
        return orjson.dumps(result.get("structuredContent")).decode() if result.get("structuredContent") is not None else ""
    return "\n".join(
        part["text"] if isinstance(part, dict) and isinstance(part.get("text"), str) else orjson.dumps(part).decode()
        for part in parts
    )


def _answer(reply: Reply, number: int) -> Row | None:
    """The JSON-RPC message that answers request `number`, in a JSON body or in a stream of events."""
    kind = reply.headers.get("Content-Type", "")
    for text in _event_data(reply.body) if kind.startswith("text/event-stream") else [reply.body]:
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        if isinstance(message, dict) and ("result" in message or "error" in message) and message.get("id") in (number, None):
            return message
    return None


def _event_data(body: bytes) -> list[str]:
    """The data of every server-sent event."""
    events: list[list[str]] = [[]]
    for line in body.decode(errors="replace").splitlines():
        if not line:
            events.append([])
        elif line.startswith("data:"):
            events[-1].append(line[5:].removeprefix(" "))
    return ["\n".join(event) for event in events if event]


def _seed_error(message: str) -> RolloutError:
    return RolloutError(FailureType.SEED, f"MCP tools of /seed_session: {message}")
