"""The tolerant reader of rollout rows: every shape in which NeMo Gym, old or new, has written one.

Keys that we do not know are ignored, and none but an output and a reward is required. A row that means something else
than its shape says (a boolean reward, an output of lists) is an error, never a guess.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import orjson

from gym_bridge.errors import DataError
from gym_bridge.schemas.rollouts import FAILURE_CLASS, ROLLOUT_INDEX, TASK_INDEX, Item, Row

PLACEHOLDER = b"<PLACEHOLDER ROW>"
"""A line that stands for a row left out; rollouts files that NeMo Gym ships hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """What gym-bridge reads off one row; `row` is the row itself, untouched."""

    row: Row
    context: tuple[Item, ...]
    """The prompt: `instructions` as a system message, then the items of `input`."""
    output: tuple[Item, ...] | None
    """All that followed, over every turn; None when the row holds no rollout."""
    tools: tuple[Item, ...]
    """Tools of the task as the row has them."""
    reward: float | None
    task: str
    """Equal for siblings within a file: the agent's name and the task index, or a hash of the context without an index."""
    rollout_index: int | None
    truncated: bool
    """True when a limit and not the model ended the rollout."""
    failed: bool
    masked: bool
    """True when the environment says not to train on it."""

    @property
    def items(self) -> tuple[Item, ...]:
        """The whole conversation, prompt first."""
        return self.context + (self.output or ())

    def drop_reason(self) -> str | None:
        """Why no dataset may use this row: failure, masked, not_a_rollout, no_reward or no_prompt; None when it may."""
        if self.failed:
            return "failure"
        if self.masked:
            return "masked"
        if self.output is None:
            return "not_a_rollout"
        if self.reward is None:
            return "no_reward"
        return None if self.context else "no_prompt"


def view_row(row: Row) -> RolloutView:
    """The view of a row. Raises DataError, without path and line, for a field of the wrong type."""
    params = _object(row, "responses_create_params")
    response = _object(row, "response")
    context = _context(params)
    output = response.get("output", row.get("output"))
    return RolloutView(
        row=row,
        context=context,
        output=None if output is None else _items(output, "output"),
        tools=_items(params.get("tools") or [], "tools"),
        reward=_reward(row.get("reward")),
        task=_task(row, context),
        rollout_index=_index(row, ROLLOUT_INDEX),
        truncated=bool(_object(row, "gym_bridge").get("truncated") or response.get("incomplete_details") or row.get("truncated")),
        failed=_failed(row),
        masked=bool(row.get("mask_sample") or _object(row, "instance_config").get("mask_sample")),
    )


def _failed(row: Row) -> bool:
    """True for a failure; builds before the failures file marked the response's id with `-failed`."""
    marked = str(_object(row, "response").get("id", "")).endswith("-failed")
    return bool(marked or row.get(FAILURE_CLASS) or _object(row, "gym_bridge").get("failure"))


def _context(params: Row) -> tuple[Item, ...]:
    given = params.get("input") or []
    items = ({"role": "user", "content": given},) if isinstance(given, str) else _items(given, "input")
    instructions = params.get("instructions")
    return ({"role": "system", "content": instructions}, *items) if instructions and items else items


def _items(value: Any, name: str) -> tuple[Item, ...]:
    if not isinstance(value, list):
        raise DataError(f"{name!r} is of type {type(value).__name__}; expected a list of objects")
    for item in value:
        if not isinstance(item, dict):
            raise DataError(f"{name!r} holds a {type(item).__name__}; expected objects only")
    return tuple(value)


def _object(row: Row, name: str) -> Row:
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{name!r} is of type {type(value).__name__}; expected an object")
    return value


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"reward is {value!r}; expected a finite number or null")
    return float(value)


def _index(row: Row, name: str) -> int | None:
    value = row.get(name)
    if value is not None and type(value) is not int:
        raise DataError(f"{name} is {value!r}; expected an integer")
    return value


def _task(row: Row, context: tuple[Item, ...]) -> str:
    index = _index(row, TASK_INDEX)
    if index is None:
        return hashlib.blake2b(orjson.dumps(context, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()
    agent = _object(row, "agent_ref").get("name")
    return f"{agent}:{index}" if agent else str(index)
