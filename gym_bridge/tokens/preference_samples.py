"""From preference rows to pairs of training sequences: the answers train, what both answer does not.

Two kinds of rows, as `transform --to dpo` and `--to preference` write them: `{"prompt", "chosen", "rejected"}`, where the prompt
is a text or messages and the answers are texts, and `{"context", "completions", "tools"}`, all of them messages.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_bridge.errors import DataError
from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.conversation_samples import TrainOn, conversation_samples
from gym_bridge.tokens.renderers import Renderer

EXPECTED = "expected 'prompt', 'chosen' and 'rejected', or 'context' and 'completions'"


def preference_pair(
    row: Mapping[str, Any], renderer: Renderer, *, train_on: TrainOn = "all"
) -> tuple[TrainingSequence, TrainingSequence] | None:
    """The chosen and the rejected sequence of a row; in both every assistant message after the prompt trains, or the last one.

    None where the model's template writes earlier answers of a side anew, so that no single sequence holds all of them. Raises
    DataError for a row of another shape and for one whose sides are equal, ConfigError for a renderer that knows no mask.
    """
    if "completions" in row:
        prompt, completions = _messages(row, "context"), _completions(row["completions"])
    else:
        prompt, completions = _prompt(row), (_answer(row, "chosen"), _answer(row, "rejected"))
    chosen, rejected = (
        conversation_samples([*prompt, *one], renderer, tools=row.get("tools"), num_prompt_messages=len(prompt), train_on=train_on)
        for one in completions
    )
    if len(chosen) != 1 or len(rejected) != 1:
        return None
    if np.array_equal(chosen[0].token_ids, rejected[0].token_ids):
        raise DataError("chosen and rejected are equal, so that the pair prefers nothing; remove it")
    return chosen[0], rejected[0]


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    prompt = row.get("prompt")
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(row, "prompt")


def _messages(row: Mapping[str, Any], column: str) -> list[Message]:
    messages = row.get(column)
    if not isinstance(messages, list) or not messages:
        raise DataError(_refusal(row, column))
    return messages


def _answer(row: Mapping[str, Any], column: str) -> list[Message]:
    answer = row.get(column)
    if not isinstance(answer, str):
        raise DataError(_refusal(row, column))
    return [{"role": "assistant", "content": answer}]


def _completions(completions: Any) -> tuple[list[Message], list[Message]]:
    """The two completions, that of the lower rank first."""
    try:
        first, second = sorted(completions, key=lambda one: one["rank"])
        ranks, (chosen, rejected) = (first["rank"], second["rank"]), (first["completion"], second["completion"])
    except (KeyError, TypeError, ValueError):
        raise DataError('\'completions\' is not two of {"rank": number, "completion": [messages]}') from None
    if ranks[0] == ranks[1]:
        raise DataError(f"both completions have rank {ranks[0]}; the preferred one needs the lower rank")
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise DataError("a completion is not a list of messages")
    return chosen, rejected


def _refusal(row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        return f"no column {column!r}; {EXPECTED}, found {', '.join(sorted(row)) or 'none'}"
    kind = "a text" if column in ("chosen", "rejected") else "messages"
    return f"column {column!r} holds {type(row[column]).__name__}; expected {kind}"
