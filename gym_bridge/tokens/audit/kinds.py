"""Kinds of rows, and what the checks read off a row of each: conversations, prompt and answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.chat import Arguments, Message, chat_messages, chat_tools
from gym_bridge.schemas.nemo_rl_rows import PLACEHOLDER
from gym_bridge.schemas.rollouts import FAILURE_CLASS, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages that are rendered together: one training sequence, or the prompt of a task."""

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None
    num_prompt_messages: int = 0
    """How many messages, at the beginning, nobody sampled."""
    asks: bool = False
    """The opening of an answer follows: a task's prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row, whatever its kind."""

    conversations: tuple[Conversation, ...]
    prompt: Sequence[Message]
    answer: str | None = None
    """What a dataset's row teaches to say in the end."""
    renders: bool = True
    """False for calls whose arguments no template can write."""


Reader = Callable[[Row], Example]
"""Reads a row of one kind. Raises DataError for columns that are missing or of the wrong type."""


def kind_of(row: Row) -> str | None:
    """Name of the kind that the columns tell; None for an unknown one."""
    bridge = row.get("gym_bridge")
    failed = FAILURE_CLASS in row or (isinstance(bridge, dict) and "failure" in bridge)
    if failed or "response" in row or isinstance(row.get("output"), list):
        return "rollouts"
    if PLACEHOLDER in row:
        return "tasks"
    columns = {"sft": ("messages",), "response": ("input", "output"), "dpo": ("prompt", "chosen", "rejected")}
    columns |= {"preference": ("context", "completions"), "tasks": ("responses_create_params",)}
    return next((kind for kind, names in columns.items() if all(name in row for name in names)), None)


def read_sft(row: Row) -> Example:
    """`{"messages", "tools"}`."""
    if not isinstance(row.get("messages"), list) or not row["messages"]:
        raise DataError(f"expected the columns 'messages' and 'tools', found {', '.join(sorted(row)) or 'none'}")
    messages = _messages(row["messages"])
    bridge = row.get("gym_bridge") or {}
    num_prompt = bridge.get("num_prompt_messages", 0) if isinstance(bridge, dict) else None
    if type(num_prompt) is not int or num_prompt < 0:
        raise DataError("'gym_bridge' is no object, or its 'num_prompt_messages' no number of messages")
    conversation = Conversation(messages=messages, tools=_tools(row), num_prompt_messages=num_prompt)
    last = max((number for number, one in enumerate(messages) if one["role"] == "assistant"), default=0)
    first = next((number for number, one in enumerate(messages) if one["role"] == "assistant"), len(messages))
    return Example(
        conversations=(conversation,), prompt=messages[: num_prompt or first], answer=_content(messages[last]) if last else None
    )


def read_response(row: Row) -> Example:
    """`{"input", "output"}`, two texts."""
    prompt, answer = _text(row, "input"), _text(row, "output")
    return _answered([{"role": "user", "content": prompt}], [[{"role": "assistant", "content": answer}]], None)


def read_dpo(row: Row) -> Example:
    """`{"prompt", "chosen", "rejected"}`: texts, or the prompt as messages."""
    prompt: list[Message]
    prompt = (
        _messages(row["prompt"]) if isinstance(row.get("prompt"), list) else [{"role": "user", "content": _text(row, "prompt")}]
    )
    answers = [_text(row, "chosen"), _text(row, "rejected")]
    if answers[0] == answers[1]:
        raise DataError("chosen and rejected are equal")
    return _answered(prompt, [[{"role": "assistant", "content": one}] for one in answers], None)


def read_preference(row: Row) -> Example:
    """`{"context", "completions": [{"rank", "completion"}]}`: two ranked lists of messages."""
    context, ranked = _messages(row.get("context")), row.get("completions")
    if not isinstance(ranked, list) or len(ranked) != 2 or not all(isinstance(one, dict) for one in ranked):
        raise DataError("'completions' is no list of two objects")
    ranks = [one.get("rank") for one in ranked]
    if not all(type(rank) is int for rank in ranks) or ranks[0] == ranks[1]:
        raise DataError(f"the completions have the ranks {ranks[0]!r} and {ranks[1]!r}; expected two different integers")
    completions = [_messages(one.get("completion")) for one in sorted(ranked, key=lambda one: one["rank"])]
    if completions[0] == completions[1]:
        raise DataError("the two completions are equal")
    return _answered(context, completions, _tools(row))


def read_task(view: RolloutView) -> Example:
    """The prompt of a NeMo Gym task. Raises DataError where it has no form as a chat."""
    prompt = chat_messages(view.context)
    tools = chat_tools(view.tools) if view.tools else None
    return Example(
        conversations=(Conversation(messages=prompt, tools=tools, num_prompt_messages=len(prompt), asks=True),), prompt=prompt
    )


def read_rollout(view: RolloutView, arguments: Arguments = "object") -> Example:
    """Prompt and all turns of a rollout that has an output; rendered, none of it trains: that takes token ids.

    Raises DataError where they have no form as a chat.
    """
    messages = chat_messages(view.items, arguments=arguments)
    num_prompt = len(chat_messages(view.context, arguments=arguments))
    tools = chat_tools(view.tools) if view.tools else None
    conversation = Conversation(messages=messages, tools=tools, num_prompt_messages=len(messages))
    return Example(conversations=(conversation,), prompt=messages[:num_prompt], renders=arguments == "object")


READERS: dict[str, Reader] = {"sft": read_sft, "response": read_response, "dpo": read_dpo, "preference": read_preference}
"""Of the datasets' kinds; tasks and rollouts are read through their view."""


def _answered(prompt: list[Message], completions: Sequence[list[Message]], tools: Sequence[Any] | None) -> Example:
    """`completions` in order of preference, each after the prompt."""
    conversations = [Conversation(messages=[*prompt, *one], tools=tools, num_prompt_messages=len(prompt)) for one in completions]
    return Example(conversations=tuple(conversations), prompt=prompt, answer=_content(completions[0][-1]))


def _messages(value: Any) -> list[Message]:
    """Raises DataError for what a renderer could only fall over."""
    if not isinstance(value, list) or not value:
        raise DataError(f"expected a list of messages, found {type(value).__name__}")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError("every message needs a 'role'")
        calls = message.get("tool_calls")
        if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
            raise DataError(f"message {number}: 'tool_calls' is no list of objects")
    return value


def _tools(row: Row) -> list[Any] | None:
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise DataError("'tools' is no list of objects")
    return tools


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"column {column!r} is {value!r}; expected text")
    return value


def _content(message: Message) -> str | None:
    content = message.get("content")
    return content if isinstance(content, str) else None
