"""Prompts and answers as text, for formats that hold no messages."""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.io.row_items import is_heard
from gym_bridge.schemas.chat import Message, answer_text, chat_messages, rollout_messages
from gym_bridge.schemas.rollouts import Item
from gym_bridge.transforms.format import RowOptions


def prompt_text(rollout: RolloutView) -> str:
    """The task's messages, joined by a blank line; calls in it and their outputs are told as in a transcript.

    Raises DataError for content that is no text.
    """
    messages = chat_messages(rollout.context, arguments="string")
    return "\n\n".join(text for message in messages if (text := _in_prompt(message)))


def _in_prompt(message: Message) -> str:
    return message["content"] if message["role"] in ("system", "user") else transcript([message])


def answer_of(rollout: RolloutView, options: RowOptions) -> str | None:
    """The answer as `options.flatten` wants it; None when the rollout has no such answer. Raises DataError for content that is no
    text.

    `final` is the last answer alone: there is none when the model's last word is a tool call. `transcript` is all that the model
    and its environment said, up to the model's last text or call; there is none when the model said and called nothing.
    """
    return final_answer(rollout) if options.flatten != "transcript" else _told(rollout)


def final_answer(rollout: RolloutView) -> str | None:
    """The text of the model's last word, whatever a user or the environment said after it; None when that is a tool call or blank.

    Raises DataError for content that is no text.
    """
    last = last_word(rollout.output or ())
    answer = answer_text(last) if last is not None else None
    return answer if answer is not None and answer.strip() else None


def last_word(output: Sequence[Item]) -> Item | None:
    """The last item that is no message to the model, a tool's output among them; None without one."""
    return next((item for item in reversed(output) if not is_heard(item)), None)


def _told(rollout: RolloutView) -> str | None:
    messages, num_prompt_messages = rollout_messages(rollout.context, rollout.output or (), arguments="string")
    if not cut_after_last_answer(messages, num_prompt_messages):
        return None
    return transcript(messages[num_prompt_messages:])


def is_answer(message: Message) -> bool:
    """True for an assistant's message that says or calls something."""
    content: Any = message["content"]
    said = content.strip() if isinstance(content, str) else content
    return message["role"] == "assistant" and bool(said or message.get("tool_calls"))


def cut_after_last_answer(messages: list[Message], num_prompt_messages: int) -> bool:
    """Take away what the environment said after the model's last answer or call: trainers want the assistant last.

    False where nothing behind the prompt is an answer; then the prompt alone is left.
    """
    end = len(messages)
    while end > num_prompt_messages and not is_answer(messages[end - 1]):
        end -= 1
    del messages[end:]
    return end > num_prompt_messages


def transcript(messages: Iterable[Message]) -> str:
    """Messages told in one text: what was said, `Tool call: name(arguments)`, `Tool output: ...`, `User: ...`, a line each."""
    told: list[str] = []
    for message in messages:
        content = _text(message["content"])
        match message["role"]:
            case "assistant":
                told += [content] if content else []
                calls = (call["function"] for call in message.get("tool_calls", ()))
                told += [f"Tool call: {call['name']}({call['arguments']})" for call in calls]
            case "tool":
                told.append(f"Tool output: {content}")
            case role:
                told.append(f"{role.capitalize()}: {content}")
    return "\n".join(told)


def _text(content: Any) -> str:
    """Content as text; a part that is none stands there as JSON."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] if "text" in part else orjson.dumps(part).decode() for part in content)


def said(rollout: RolloutView) -> str:
    """What users, the model and its tools said, for comparing rollouts: the system's part is the same in a whole environment."""
    messages, _ = rollout_messages(rollout.context, rollout.output or (), arguments="string", media="keep")
    return transcript(message for message in messages if message["role"] != "system")
