"""Responses items <-> chat messages, as plain dicts.

A Responses list is flat: every reasoning, message, function_call and function_call_output is an item of its own. A chat
has one assistant message a model call, which holds its reasoning, its text and its tool calls.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, get_args

import msgspec
import orjson
from msgspec import Raw

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


COMPLETION_IDS = "generation_token_ids"
"""The field, on the last item of a model call, with the token ids that it sampled."""

Arguments = Literal["object", "string"]
Media = Literal["refuse", "keep"]
ToolCalls = Literal["nested", "flat"]
Role = Literal["system", "user", "assistant"]

_LONG_NUMBER = re.compile(r"[0-9]{19}")

_LONGEST_WITHOUT_IDS = 8
"""Bytes of `[0]`, `[]` or `null` in JSON, white space included; what is longer holds ids."""

_ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class _Form:
    """How messages are written."""

    arguments: Arguments = "object"
    content: Callable[[Any], Any] = text_of
    tool_content: Callable[[Any], Any] = text_of
    developer: Literal["developer", "system"] = "system"
    flat: bool = False


def chat_messages(
    items: str | Iterable[Item],
    *,
    arguments: Arguments = "object",
    media: Media = "refuse",
    tool_calls: ToolCalls = "nested",
) -> list[Message]:
    """The chat of a Responses `input` or `output` list; a string is one user message.

    A model call is one assistant message: reasoning, then text, then tool calls. It ends before a tool output and before
    a user or system message, after an item with token ids, and before reasoning or text that follows its text or calls.
    Tool calls carry `arguments` as parsed objects or as the model's own strings; flat ones are `{"name", "arguments"}`, and a
    tool message then has no id either: it answers the calls before it in their order. With `media` kept, content that is more
    than text is a list of chat parts.

    Raises MediaError for an image, a file or audio that is not to be kept, DataError for an item without a chat form, for
    arguments that are no JSON object where objects are asked for, and for a tool output that answers no call.
    """
    return _messages(items, _form(arguments, media, tool_calls))


def rollout_messages(
    context: Iterable[Item],
    output: Iterable[Item],
    *,
    arguments: Arguments = "object",
    media: Media = "refuse",
    tool_calls: ToolCalls = "nested",
) -> tuple[list[Message], int]:
    """`chat_messages` of a prompt and of what followed it, and how many messages, at the beginning, are the prompt's.

    A model call of the prompt ends with the prompt. Raises as `chat_messages` does.
    """
    chat = _Chat(_form(arguments, media, tool_calls))
    chat.extend(context)
    chat.end_call()
    num_prompt = len(chat.messages)
    chat.extend(output)
    return chat.messages, num_prompt


def num_model_calls(items: Iterable[Item]) -> int:
    """How many assistant messages `chat_messages` makes. Raises DataError as it does with media kept and arguments as strings."""
    return sum(message["role"] == "assistant" for message in _messages(items, _FORMS["string", "keep", "nested"]))


def wire_messages(items: str | Iterable[Item], *, developer: Literal["developer", "system"] = "system") -> list[WireMessage]:
    """`chat_messages` for a chat endpoint: images, files, audio and refusals are kept as parts, arguments are strings.

    `developer` is the role that a developer's message gets. A tool's output is text. Raises DataError as `chat_messages` does,
    and for a part that chat has no form for.
    """
    return _messages(items, _Form("string", chat_content, developer=developer))


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


_FORMS = {
    (arguments, media, calls): _Form(arguments, content, content, flat=calls == "flat")
    for arguments in get_args(Arguments)
    for media, content in (("refuse", text_of), ("keep", chat_content))
    for calls in get_args(ToolCalls)
}


def _form(arguments: Arguments, media: Media, tool_calls: ToolCalls) -> _Form:
    return _FORMS[arguments, media, tool_calls]


def _messages(items: str | Iterable[Item], form: _Form) -> list[Any]:
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    chat = _Chat(form)
    chat.extend(items)
    return chat.messages


class _Chat:
    """A chat that items are added to. `call` is the assistant message of the model call that has not ended."""

    __slots__ = ("_call_ids", "_form", "call", "messages")

    def __init__(self, form: _Form):
        self.messages: list[Any] = []
        self.call: Any = None
        self._call_ids: set[str] = set()
        self._form = form

    def end_call(self) -> None:
        """What follows is of another model call."""
        self.call = None

    def extend(self, items: Iterable[Item]) -> None:
        """Add items. Raises DataError for one without a place."""
        for item in items:
            kind = item.get("type")
            if kind == "function_call_output":
                self._add_tool_output(item)
            elif kind == "function_call":
                self._add_tool_call(item)
            elif kind == "reasoning":
                self._add_reasoning(item)
            elif item.get("role") == "assistant" and (kind == "message" or not kind):
                self._message_for_text()["content"] = self._form.content(item.get("content"))
            else:
                self._add_heard(item)
            if (ids := item.get(COMPLETION_IDS)) is not None and has_token_ids(ids):
                self.call = None

    def _message_for_text(self) -> Any:
        """The assistant message that reasoning or text belongs to: what follows text or calls is another model call's."""
        call = self.call
        if call is None or call["content"] or "tool_calls" in call:
            call = self._new_call()
        return call

    def _new_call(self) -> Any:
        self.call = call = {"role": "assistant", "content": ""}
        self.messages.append(call)
        return call

    def _add_reasoning(self, item: Item) -> None:
        call = self._message_for_text()
        if reasoning := text_of(item.get("content"), between="\n") or text_of(item.get("summary"), between="\n"):
            before = call.get("reasoning_content")
            call["reasoning_content"] = f"{before}\n{reasoning}" if before else reasoning

    def _add_tool_call(self, item: Item) -> None:
        call = self.call or self._new_call()
        name, call_id, text = item.get("name"), item.get("call_id"), item.get("arguments")
        if not (isinstance(name, str) and isinstance(call_id, str) and isinstance(text, str)):
            raise DataError(_no_string(item, "call_id", "name", "arguments"))
        self._call_ids.add(call_id)
        arguments = text if self._form.arguments == "string" else _parsed(text, call_id)
        made: Any = {"name": name, "arguments": arguments}
        if not self._form.flat:
            made = {"id": call_id, "type": "function", "function": made}
        call.setdefault("tool_calls", []).append(made)

    def _add_tool_output(self, item: Item) -> None:
        call_id = item.get("call_id")
        if not isinstance(call_id, str) or call_id not in self._call_ids:
            raise DataError(f"tool output {call_id!r} answers no tool call of this rollout")
        content = self._form.tool_content(item.get("output"))
        known = {"role": "tool"} if self._form.flat else {"role": "tool", "tool_call_id": call_id}
        self.messages.append({**known, "content": content})
        self.call = None

    def _add_heard(self, item: Item) -> None:
        """Add a message that the model read."""
        role = item.get("role")
        if role not in ("user", "system") or item.get("type", "message") != "message":
            kind = _kind(item)
            role = self._form.developer if role == "developer" else kind
        self.messages.append({"role": role, "content": self._form.content(item.get("content"))})
        self.call = None


def chat_role(item: Item) -> Any:
    """The role that a message has in a chat; as it stands where chat knows no such role."""
    role = item.get("role")
    return _ROLES.get(role, role) if isinstance(role, str) else role


def has_token_ids(ids: Any) -> bool:
    """True for token ids of a model call, as a list or as undecoded JSON. Agents without ids write an empty list or `[0]`."""
    if isinstance(ids, Raw):
        ids = memoryview(ids).nbytes > _LONGEST_WITHOUT_IDS or msgspec.json.decode(ids)
    return bool(ids) and ids != [0]


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


def _call_item(call: ToolCall, item_id: str) -> Item:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        arguments = orjson.dumps(arguments).decode()
    head = {"type": "function_call", "id": item_id, "call_id": call["id"]}
    return head | {"name": call["function"]["name"], "arguments": arguments, "status": "completed"}


def _parsed(arguments: str, call_id: str) -> dict[str, Any]:
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise DataError(f"arguments of call {call_id!r} are no JSON object: {arguments}")
    if _LONG_NUMBER.search(arguments) and json.loads(arguments) != value:  # orjson rounds what 64 bits do not hold
        raise DataError(f"arguments of call {call_id!r} hold a number beyond 64 bits; keep their text with --arguments string")
    return value


def _function(tool: Item) -> Item:
    if tool.get("type") != "function":
        raise DataError(f"tool of type {tool.get('type')!r}; expected a function")
    nested = tool.get("function")
    fields = nested if isinstance(nested, dict) else {key: value for key, value in tool.items() if key != "type"}
    if not isinstance(fields.get("name"), str):
        raise DataError(_no_string(fields, "name"))
    ordered = {key: fields.get(key) for key in ("name", "description", "parameters")} | fields
    return {key: value for key, value in ordered.items() if value is not None}


def _no_string(item: Item, *keys: str) -> str:
    """What to say of the first of `keys` that is no string."""
    key = next(key for key in keys if not isinstance(item.get(key), str))
    return f"{key!r} of a {item.get('type', 'tool')} is {item.get(key)!r}; expected a string"
