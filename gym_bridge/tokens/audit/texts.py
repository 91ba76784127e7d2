"""Texts of messages and of rows, as checks compare them."""

from collections.abc import Iterator
from typing import Any

from gym_bridge.schemas.chat import Message


def message_text(message: Message) -> str:
    """The text of a message; parts that are no text are passed over."""
    content: Any = message.get("content")
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def strings(value: Any) -> Iterator[str]:
    """Every string of a JSON value that is no key, in order."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting.extend(reversed(one.values()))
        elif isinstance(one, list):
            waiting.extend(reversed(one))
