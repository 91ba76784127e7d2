"""Tool calls and tool outputs belong together: one output a call, before anybody else speaks."""

from collections.abc import Sequence

from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.rollouts import Item


def unpaired_message(messages: Sequence[Message]) -> str | None:
    """What is wrong with the first call or output without its partner; None when all are paired. Calls may end a conversation."""
    open_calls: set[str] = set()
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            answers = message.get("tool_call_id")
            if not isinstance(answers, str) or answers not in open_calls:
                return f"message {number}: tool output {answers!r} answers no open tool call"
            open_calls.remove(answers)
        elif open_calls:
            return f"message {number}: {message['role']} speaks before tool call {min(open_calls)!r} is answered"
        for call in message.get("tool_calls") or []:
            if not isinstance(call.get("id"), str):
                return f"message {number}: a tool call has no id"
            if call["id"] in open_calls:
                return f"message {number}: two tool calls have the id {call['id']!r}"
            open_calls.add(call["id"])
    return None


def unpaired_item(items: Sequence[Item]) -> str | None:
    """The first `function_call_output` of a Responses list that answers no call before it; None when there is none."""
    called: set[str] = set()
    for number, item in enumerate(items):
        if item.get("type") == "function_call" and isinstance(item.get("call_id"), str):
            called.add(item["call_id"])
        elif item.get("type") == "function_call_output":
            answers = item.get("call_id")
            if not isinstance(answers, str) or answers not in called:
                return f"item {number}: tool output {answers!r} answers no tool call of this rollout"
    return None
