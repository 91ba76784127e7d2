"""Responses items <-> chat messages, as plain dicts.

A Responses list is flat: every reasoning, message, function_call and function_call_output is an item of its own. A chat
has one assistant message a model call, which holds its reasoning, its text and its tool calls.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import orjson

from gym_bridge.errors import DataError
from gym_bridge.schemas.content import answer_parts, chat_content, text_of
from gym_bridge.schemas.rollouts import Item


class FunctionCall(TypedDict):
    """What a tool call calls."""

    name: str
    arguments: dict[str, Any] | str


class ToolCall(TypedDict):
    """One tool call of an assistant message, in the nested chat form."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict):
    """One message of a chat. Only an assistant reasons and calls tools, only a tool has `tool_call_id`."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    refusal: NotRequired[str | None]


class WireMessage(TypedDict):
    """One message as a chat endpoint takes it: what is more than text stands in parts, arguments are strings."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[Item]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]


Arguments = Literal["object", "string"]
Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class _Form:
    """How messages are written."""

    arguments: Arguments
    content: Callable[[Any], Any]
    developer: Literal["developer", "system"] = "system"


def chat_messages(items: str | Iterable[Item], *, arguments: Arguments = "object") -> list[Message]:
    """The chat of a Responses `input` or `output` list; a string is one user message.

    A model call is one assistant message: reasoning, then text, then tool calls. It ends before a tool output and before
    a user or system message, after an item with token ids, and before reasoning or text that follows its text or calls.
    Tool calls carry `arguments` as parsed objects or as the model's own strings.

    Raises DataError for an item without a chat form, for arguments that are no JSON object where objects are asked for,
    and for a tool output that answers no call.
    """
    return _messages(items, _Form(arguments, text_of))


def wire_messages(items: str | Iterable[Item], *, developer: Literal["developer", "system"] = "system") -> list[WireMessage]:
    """`chat_messages` for a chat endpoint: images, files, audio and refusals are kept as parts, arguments are strings.

    `developer` is the role that a developer's message gets. Raises DataError as `chat_messages` does, and for a part that
    chat has no form for.
    """
    return _messages(items, _Form("string", chat_content, developer))


def answer_text(item: Item) -> str | None:
    """The text of an assistant's message item; None for any other item. Raises DataError for a part that is no text."""
    return text_of(item.get("content")) if _kind(item) == "assistant" else None


def response_items(message: Message, *, id_suffix: str = "0") -> list[Item]:
    """The Responses items of one chat message; those of an assistant have ids that end in `id_suffix`.

    The inverse of `chat_messages`, and of `wire_messages` for an assistant. Raises DataError for content that is no text.
    """
    if message["role"] == "tool":
        return [{"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": message["content"]}]
    if message["role"] != "assistant":
        return [{"type": "message", "role": message["role"], "content": message["content"]}]
    items: list[Item] = []
    if reasoning := message.get("reasoning_content"):
        items.append({"type": "reasoning", "id": f"rs_{id_suffix}", "summary": [{"type": "summary_text", "text": reasoning}]})
    calls = message.get("tool_calls") or []
    parts = answer_parts(message.get("content"), message.get("refusal"))
    if parts or not (reasoning or calls):
        parts = parts or [{"type": "output_text", "text": "", "annotations": []}]
        items.append({"type": "message", "id": f"msg_{id_suffix}", "role": "assistant", "status": "completed", "content": parts})
    return items + [_call_item(call, f"fc_{id_suffix}_{number}") for number, call in enumerate(calls)]


def chat_tools(tools: Iterable[Item]) -> list[Item]:
    """Tools in the nested form of chat, null fields left out. Raises DataError for a tool that is no function."""
    return [{"type": "function", "function": _function(tool)} for tool in tools]


def flat_tools(tools: Iterable[Item]) -> list[Item]:
    """Tools in the flat form of Responses, null fields left out. Raises DataError for a tool that is no function."""
    return [{"type": "function", **_function(tool)} for tool in tools]


def _messages(items: str | Iterable[Item], form: _Form) -> list[Any]:
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[Any] = []
    call_ids: set[str] = set()
    call: Any = None
    for item in items:
        kind = _kind(item)
        if kind in ("reasoning", "assistant", "function_call"):
            if call is None or (kind != "function_call" and (call["content"] or "tool_calls" in call)):
                call = {"role": "assistant", "content": ""}
                messages.append(call)
            _extend(call, item, form)
            if kind == "function_call":
                call_ids.add(item["call_id"])
            if item.get("generation_token_ids"):
                call = None
        else:
            messages.append(_tool_message(item, call_ids) if kind == "function_call_output" else _said_to_it(item, kind, form))
            call = None
    return messages


def _kind(item: Item) -> str:
    """`reasoning`, `function_call`, `function_call_output`, or the chat role of a message."""
    kind = item.get("type") or "message"
    if kind in ("reasoning", "function_call", "function_call_output"):
        return kind
    if kind != "message":
        raise DataError(f"item of type {kind!r} has no chat form")
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"message with role {role!r}; expected one of {', '.join(_ROLES)}")
    return _ROLES[role]


def _extend(call: Any, item: Item, form: _Form) -> None:
    """Add a reasoning, assistant message or function_call item to the assistant message of its model call."""
    match item.get("type") or "message":
        case "reasoning":
            if reasoning := text_of(item.get("content"), between="\n") or text_of(item.get("summary"), between="\n"):
                call["reasoning_content"] = "\n".join(filter(None, (call.get("reasoning_content"), reasoning)))
        case "message":
            call["content"] = form.content(item.get("content"))
        case _:
            function: FunctionCall = {"name": _string(item, "name"), "arguments": _arguments(item, form.arguments)}
            call.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})


def _said_to_it(item: Item, kind: str, form: _Form) -> Any:
    role = form.developer if item["role"] == "developer" else kind
    return {"role": role, "content": form.content(item.get("content"))}


def _tool_message(item: Item, call_ids: set[str]) -> Message:
    call_id = _string(item, "call_id")
    if call_id not in call_ids:
        raise DataError(f"tool output {call_id!r} answers no tool call of this rollout")
    return {"role": "tool", "tool_call_id": call_id, "content": text_of(item.get("output"))}


def _call_item(call: ToolCall, item_id: str) -> Item:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        arguments = orjson.dumps(arguments).decode()
    head = {"type": "function_call", "id": item_id, "call_id": call["id"]}
    return head | {"name": call["function"]["name"], "arguments": arguments, "status": "completed"}


def _arguments(item: Item, form: Arguments) -> dict[str, Any] | str:
    call_id, text = _string(item, "call_id"), _string(item, "arguments")
    if form == "string":
        return text
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise DataError(f"arguments of call {call_id!r} are no JSON object: {text}")
    return value


def _function(tool: Item) -> Item:
    if tool.get("type") != "function":
        raise DataError(f"tool of type {tool.get('type')!r}; expected a function")
    nested = tool.get("function")
    fields = nested if isinstance(nested, dict) else {key: value for key, value in tool.items() if key != "type"}
    _string(fields, "name")
    ordered = {key: fields.get(key) for key in ("name", "description", "parameters")} | fields
    return {key: value for key, value in ordered.items() if value is not None}


def _string(item: Item, key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise DataError(f"{key!r} of a {item.get('type', 'tool')} is {value!r}; expected a string")
    return value
