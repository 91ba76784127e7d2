"""Keys by which rollouts are compared across files: what a task asks, and what a model did.

Ids, nulls, and whether a text stands in one part or in several make no difference; a developer is the system.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import orjson

from gym_bridge.errors import DataError
from gym_bridge.schemas.chat import chat_role
from gym_bridge.schemas.content import chat_content, text_of
from gym_bridge.schemas.rollouts import Item

KEY_BYTES = 16
UNSAID = ("id", "status", "call_id")


def content_key(context: Iterable[Item], tool_names: list[str]) -> bytes:
    """16 bytes, equal for equal prompts with tools of the same names, whoever plays them."""
    return _digest([_traces(context), tool_names])


def answer_key(output: Iterable[Item]) -> bytes:
    """16 bytes, equal where the model said, thought and called the same, and tools and users answered the same."""
    return _digest(_traces(output))


def _digest(value: Any) -> bytes:
    try:
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise DataError(f"an item holds what JSON cannot: {error}") from None
    return hashlib.blake2b(text, digest_size=KEY_BYTES).digest()


def _traces(items: Iterable[Item]) -> list[Any]:
    return [trace for item in items if (trace := _trace(item)) is not None]


def _trace(item: Item) -> Any:
    """What an item says, None for reasoning without a text."""
    kind = item.get("type") or "message"
    if kind == "message":
        return ["said", chat_role(item), _said(item.get("content"))]
    if kind == "function_call":
        return ["call", item.get("name"), item.get("arguments")]
    if kind == "function_call_output":
        return ["result", _said(item.get("output"))]
    if kind == "reasoning":
        thought = _thought(item)
        return ["thought", thought] if thought else None
    return {name: value for name, value in item.items() if name not in UNSAID and value is not None}


def _said(content: Any) -> Any:
    if isinstance(content, str):
        return content
    try:
        return chat_content(content)
    except DataError:
        return content


def _thought(item: Item) -> Any:
    try:
        return text_of(item.get("content")) or text_of(item.get("summary"))
    except DataError:
        return [item.get("content"), item.get("summary")]
