"""From chat rows to training sequences: assistant tokens train, prompts and tool outputs never do.

Rows that `transform --to sft` wrote tell which messages the task brought: assistant messages among those, such as worked
examples, were not sampled and do not train.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.renderers import Renderer


def chat_sample(row: Mapping[str, Any], renderer: Renderer) -> TrainingSequence:
    """The sequence of one `{"messages", "tools"}` row.

    Raises DataError for a row without messages or without an assistant's, ConfigError for a renderer that knows no mask.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"expected the columns 'messages' and 'tools', found {', '.join(sorted(row)) or 'none'}")
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        raise DataError("every message needs a 'role'")
    rendered = renderer.render(messages, tools=row.get("tools"))
    if len(rendered.sampled_mask) != len(rendered.token_ids):
        raise ConfigError("the model's renderer does not tell sampled tokens from those of its template; name another renderer")
    num_prompt_messages = (row.get("gym_bridge") or {}).get("num_prompt_messages", 0)
    mask = np.array(rendered.sampled_mask, dtype=bool) & (np.array(rendered.message_indices) >= num_prompt_messages)
    if not mask.any():
        raise DataError("no assistant message to train on")
    return TrainingSequence(token_ids=np.array(rendered.token_ids, dtype=np.int32), train_mask=mask)
