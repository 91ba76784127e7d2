"""The items of a rollout in the shapes that rows have had: chat messages, transitions, calls without ids, audio aside.

All of them become one list of Responses items, so that nothing behind the reader knows of them.
"""

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import orjson

from gym_bridge.errors import DataError
from gym_bridge.schemas.chat import COMPLETION_IDS
from gym_bridge.schemas.rollouts import Item

Items = tuple[Item, ...]

CALLS = ("function_call", "function_call_output")
HEARD = ("system", "developer", "user")
AUDIO_FIELDS = ("audio_url", "audio_data", "audio_path", "audio_paths")
"""Where NeMo Gym's audio servers put sound: in the request's metadata, as Responses has no part for it."""


def read_items(value: Any, name: str) -> Items:
    """The Responses items of a list named `name`. Raises DataError for anything but a list of objects."""
    if not isinstance(value, list):
        raise DataError(f"{name!r} is of type {type(value).__name__}; expected a list of objects")
    plain = True
    for item in value:
        if not isinstance(item, dict):
            raise DataError(f"{name!r} holds a {type(item).__name__}; expected objects only")
        if item and item.get("call_id") is None and (item.get("type") in CALLS or _is_of_chat(item)):
            plain = False
    return tuple(value) if plain else _with_call_ids([one for item in value for one in _from_chat(item)])


def read_transitions(value: list[Any]) -> Items:
    """The items of an output of lists, as the aviary agent writes it: the whole conversation as it stood after each step.

    Raises DataError where a step's list does not begin with that of the step before: its history was rewritten, and no one
    conversation tells what the model saw.
    """
    steps = [read_items(step, "output") for step in value]
    for number, (before, after) in enumerate(pairwise(steps), 2):
        if after[: len(before)] != before:
            raise DataError(f"transition {number} of the output does not begin with the one before it; its history was rewritten")
    return steps[-1]


def split_prompt(conversation: Items, given: Items) -> tuple[Items, Items]:
    """Prompt and rest of a whole conversation: what stands before the model's first item is the prompt, and at least `given` is.

    A list that begins with the model follows the `given` prompt and does not repeat it.
    """
    first = len(given) if _says_alike(conversation[: len(given)], given) else 0
    if first == 0 and given and conversation and not is_heard(conversation[0]):
        return given, conversation
    while first < len(conversation) and is_heard(conversation[first]):
        first += 1
    return conversation[:first], conversation[first:]


def is_heard(item: Item) -> bool:
    """True for a message that the model read: of the system, a developer or a user."""
    return item.get("role") in HEARD


def with_audio(context: Items, metadata: Any) -> Items:
    """`context` with the audio of the request's metadata in its last user message, before the text, as NeMo Gym sends it."""
    given = [metadata[name] for name in AUDIO_FIELDS if isinstance(metadata, dict) and metadata.get(name)]
    urls = [url for one in given for url in (one if isinstance(one, list) else [one])]
    if not urls:
        return context
    parts: list[Item] = [{"type": "audio_url", "audio_url": {"url": url}} for url in urls]
    for index in range(len(context) - 1, -1, -1):
        if context[index].get("role") == "user":
            message = context[index]
            content = message.get("content")
            text = content if isinstance(content, list) else [{"type": "input_text", "text": content or ""}]
            return (*context[:index], {**message, "content": parts + text}, *context[index + 1 :])
    return (*context, {"role": "user", "content": parts})


def _says_alike(items: Items, others: Items) -> bool:
    said = ("role", "content", "name", "arguments", "output")
    return [[one.get(name) for name in said] for one in items] == [[one.get(name) for name in said] for one in others]


def _is_of_chat(item: Item) -> bool:
    """True for a message that only a chat has: a tool's, or one with tool calls or reasoning of its own."""
    return "tool_calls" in item or "reasoning_content" in item or item.get("role") == "tool"


def _from_chat(item: Item) -> Iterable[Item]:
    """The items of a chat message; an item that is none is itself."""
    if not _is_of_chat(item):
        yield item
    elif item.get("role") == "tool":
        yield {"type": "function_call_output", "call_id": item.get("tool_call_id"), "output": item.get("content")}
    else:
        made = list(_of_assistant(item))
        if COMPLETION_IDS in item and made:
            made[-1][COMPLETION_IDS] = item[COMPLETION_IDS]
        yield from made


def _of_assistant(message: Item) -> Iterable[Item]:
    calls = message.get("tool_calls") or []
    if reasoning := message.get("reasoning_content"):
        yield {"type": "reasoning", "summary": [{"type": "summary_text", "text": reasoning}]}
    if message.get("content") or not (calls or reasoning):
        yield {"type": "message", "role": message.get("role"), "content": message.get("content")}
    if not isinstance(calls, list):
        raise DataError(f"'tool_calls' of a message is of type {type(calls).__name__}; expected a list of objects")
    for call in calls:
        if not isinstance(call, dict):
            raise DataError(f"'tool_calls' of a message holds a {type(call).__name__}; expected objects only")
        nested = call.get("function")
        function = nested if isinstance(nested, dict) else call
        arguments = function.get("arguments")
        text = orjson.dumps(arguments).decode() if isinstance(arguments, dict) else arguments
        yield {"type": "function_call", "call_id": call.get("id"), "name": function.get("name"), "arguments": text}


def _with_call_ids(items: list[Item]) -> Items:
    """Items whose calls all have an id: an output without one answers the first call before it that none has answered."""
    taken = {item.get("call_id") for item in items if isinstance(item.get("call_id"), str)}
    waiting: deque[str] = deque()
    made: list[Item] = []
    number = 0
    for item in items:
        kind, call_id = item.get("type"), item.get("call_id")
        if kind == "function_call":
            while call_id is None:
                number += 1
                call_id = None if f"call_{number}" in taken else f"call_{number}"
            waiting.append(call_id)
        elif kind == "function_call_output":
            call_id = waiting[0] if call_id is None and waiting else call_id
            if call_id in waiting:
                waiting.remove(call_id)
        made.append(item if kind not in CALLS else {**item, "call_id": call_id})
    return tuple(made)
