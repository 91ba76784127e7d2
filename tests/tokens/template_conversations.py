"""Conversations for chat templates: a call with its output, two calls at once, two questions."""

from typing import Any

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
            },
        },
    }
]


def call(call_id: str, number: int) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "add", "arguments": {"a": number, "b": number}}}


def output(call_id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "name": "add", "content": text}


def answer(text: str, reasoning: str | None = None, *calls: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message | ({"tool_calls": list(calls)} if calls else {})


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2+2?"}
USE = [SYSTEM, USER, answer("", "I add.", call("c1", 2)), output("c1", "four"), answer("It is 4.", "Four.")]
TWO = [USER, answer("Both.", None, call("c1", 2), call("c2", 3)), output("c1", "four"), output("c2", "six"), answer("4 and 6.")]
TURNS = [USER, answer("4", "Two and two."), {"role": "user", "content": "3+3?"}, answer("6", "Three and three.")]
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "use": (USE, TOOLS),
    "two": (TWO, TOOLS),
    "turns": (TURNS, None),
}
