"""From chat rows to training sequences: assistant tokens train, prompts and tool outputs never do.

Rows that `transform --to sft` wrote tell which messages the task brought: assistant messages among those, such as worked
examples, were not sampled and do not train.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.renderers import Renderer, Tools


def chat_sample(row: Mapping[str, Any], renderer: Renderer, *, weight: str | None = None) -> TrainingSequence:
    """The sequence of one `{"messages", "tools"}` row; `weight` names the column of its weight, dots lead inwards.

    Raises DataError for a row without messages, without an assistant's or without its weight, ConfigError for a renderer that
    knows no mask.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"expected the columns 'messages' and 'tools', found {', '.join(sorted(row)) or 'none'}")
    num_prompt_messages = (row.get("gym_bridge") or {}).get("num_prompt_messages", 0)
    return conversation_sample(
        messages,
        renderer,
        tools=row.get("tools"),
        num_prompt_messages=num_prompt_messages,
        weight=1.0 if weight is None else number_of(row, weight, name="weight"),
    )


def conversation_sample(
    messages: Sequence[Message],
    renderer: Renderer,
    *,
    tools: Tools | None = None,
    num_prompt_messages: int = 0,
    weight: float = 1.0,
) -> TrainingSequence:
    """The sequence of a conversation; what the assistant says after its first `num_prompt_messages` messages trains.

    Raises DataError for a message without a role and when nothing trains, ConfigError for a renderer that knows no mask.
    """
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        raise DataError("every message needs a 'role'")
    rendered = renderer.render(messages, tools=tools)
    if len(rendered.sampled_mask) != len(rendered.token_ids):
        raise ConfigError("the model's renderer does not tell sampled tokens from those of its template; name another renderer")
    mask = np.array(rendered.sampled_mask, dtype=bool) & (np.array(rendered.message_indices) >= num_prompt_messages)
    if not mask.any():
        raise DataError("no assistant message to train on")
    return TrainingSequence(token_ids=np.array(rendered.token_ids, dtype=np.int32), train_mask=mask, weight=weight)


def number_of(row: Mapping[str, Any], column: str, *, name: str) -> float:
    """The number in a column, dots lead inwards. Raises DataError, which calls it `name`, for none, and for one below 0."""
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise DataError(f"the row's {name} {column!r} is {value!r}; expected a number of at least 0")
    return float(value)
