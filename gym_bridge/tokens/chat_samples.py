"""From rows of supervised fine-tuning to training sequences: assistant tokens train, prompts and tool outputs never do.

Rows that `transform --to sft` wrote tell which messages the task brought: assistant messages among those, such as worked
examples, were not sampled and do not train.
"""

import math
from collections.abc import Mapping
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.conversation_samples import TrainOn, conversation_samples
from gym_bridge.tokens.renderers import Renderer


def chat_samples(
    row: Mapping[str, Any], renderer: Renderer, *, train_on: TrainOn = "all", weight: str | None = None
) -> tuple[TrainingSequence, ...]:
    """The sequences of one `{"messages", "tools"}` row; `weight` names the column of its weight, dots lead inwards.

    Raises DataError for a row without messages, without an assistant's or without its weight, ConfigError for a renderer that
    knows no mask.
    """
    messages, num_prompt_messages = _conversation(row)
    return conversation_samples(
        messages,
        renderer,
        tools=row.get("tools"),
        num_prompt_messages=num_prompt_messages,
        train_on=train_on,
        weight=weight_of(row, weight),
    )


def answer_samples(row: Mapping[str, Any], renderer: Renderer, *, weight: str | None = None) -> tuple[TrainingSequence, ...]:
    """The sequence of one `{"input", "output"}` row of two texts: a user's message and the answer to it.

    Raises DataError for other columns.
    """
    for column in ("input", "output"):
        if not isinstance(row.get(column), str):
            raise DataError(f"column {column!r} holds {type(row.get(column)).__name__}; expected a text")
    messages: list[Message] = [{"role": "user", "content": row["input"]}, {"role": "assistant", "content": row["output"]}]
    return conversation_samples(messages, renderer, num_prompt_messages=1, weight=weight_of(row, weight))


def weight_of(row: Mapping[str, Any], column: str | None) -> float:
    """The weight in a column; 1 where none is named. Raises DataError as `number_of`."""
    return 1.0 if column is None else number_of(row, column, name="weight")


def number_of(row: Mapping[str, Any], column: str, *, name: str) -> float:
    """The number in a column, dots lead inwards. Raises DataError, which calls it `name`, for none, and for one below 0."""
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise DataError(f"the row's {name} {column!r} is {value!r}; expected a number of at least 0")
    return float(value)


def _conversation(row: Mapping[str, Any]) -> tuple[list[Message], int]:
    """Messages of a row, and how many of them, at the beginning, the task brought."""
    messages, bridge = row.get("messages"), row.get("gym_bridge") or {}
    if not isinstance(messages, list) or not messages:
        raise DataError(f"expected the columns 'messages' and 'tools', found {', '.join(sorted(row)) or 'none'}")
    num_prompt_messages = bridge.get("num_prompt_messages", 0) if isinstance(bridge, dict) else None
    if type(num_prompt_messages) is not int or num_prompt_messages < 0:
        raise DataError("'gym_bridge' is no object, or its 'num_prompt_messages' no number of messages")
    return messages, num_prompt_messages
