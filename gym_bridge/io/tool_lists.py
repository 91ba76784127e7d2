"""Tool lists of rollout rows: parsed when somebody asks, and once for all the rows that share them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson
from msgspec import Raw, json

from gym_bridge.errors import DataError
from gym_bridge.schemas.chat import chat_tools
from gym_bridge.schemas.rollouts import Item

KEPT = 64
"""Tool lists that are kept, parsed; more tasks than that, each with tools of its own, are rare and cost only time."""

LONGEST_EMPTY = 8
"""Bytes of `null` or `[]` in JSON, white space included; what is longer holds tools."""


def given_tools(value: Any) -> Any:
    """`value` where it is a list of some tools, or undecoded JSON of one; None where it is empty or null."""
    if isinstance(value, Raw) and memoryview(value).nbytes <= LONGEST_EMPTY and not json.decode(value):
        return None
    return value or None


def read_tools(value: Any) -> tuple[Item, ...]:
    """The tools of a list, of undecoded JSON, or of null. Rows share what is returned: leave it as it is. Raises DataError."""
    return _parsed(bytes(value)) if isinstance(value, Raw) else _checked(value)


def chat_tools_json(value: Any) -> orjson.Fragment | Sequence[Item]:
    """`chat_tools` of the same, in the form that `orjson.dumps` writes fastest; undecoded JSON becomes ready bytes."""
    return _chat_form(bytes(value)) if isinstance(value, Raw) else chat_tools(_checked(value))


def tool_names(value: Any) -> list[str]:
    """Names of the tools of the same, sorted. Raises DataError."""
    return _names(bytes(value)) if isinstance(value, Raw) else sorted(map(_name, _checked(value)))


@lru_cache(maxsize=KEPT)
def _parsed(text: bytes) -> tuple[Item, ...]:
    try:
        return _checked(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise DataError(f"'tools' are no JSON: {error.msg}") from None


@lru_cache(maxsize=KEPT)
def _chat_form(text: bytes) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(chat_tools(_parsed(text))))


@lru_cache(maxsize=KEPT)
def _names(text: bytes) -> list[str]:
    return sorted(map(_name, _parsed(text)))


def _name(tool: Item) -> str:
    nested = tool.get("function")
    return str(nested.get("name") if isinstance(nested, dict) else tool.get("name"))


def _checked(value: Any) -> tuple[Item, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"'tools' is of type {type(value).__name__}; expected a list of objects")
    for tool in value:
        if not isinstance(tool, dict):
            raise DataError(f"'tools' holds a {type(tool).__name__}; expected objects only")
    return tuple(value)
