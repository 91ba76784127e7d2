"""What a dataset format is: how a rollout, a pair of siblings, or a task becomes one row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.transform_settings import FormatOptions

VERIFIED_REWARD = 0.9
"""A rollout with at least this reward counts as solved, where the user does not say otherwise."""


class RowOptions(FormatOptions):
    """How a format writes a row, and from which reward on an answer counts as verified."""

    verified_reward: float = VERIFIED_REWARD


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One kind of dataset."""

    row: Callable[[RolloutView, RowOptions], Row | None]
    """Columns made of one rollout; None when it cannot make a row, for the reason `lacks`. Raises DataError for a rollout that has
    no such form."""
    lacks: str = "no_answer"
    unit: Literal["rollout", "pair", "task"] = "rollout"
    """What one row is made of: a rollout, two siblings, or the rollouts of a task, of which the best one, the first of equals,
    gives its row."""
    pair: Callable[[Row, Row], Row] | None = None
    """The row of a pair, made of what `row` made of the chosen and of the rejected one; both have `prompt` and `answer`."""
    task_line: Callable[[bytes, Mapping[str, Any]], bytes] | None = None
    """The line of a task, made of the bytes of its row and of the columns of its group; `row` then says who may stand for it."""
    reads_items: bool = True
    """False when `row` looks at nothing that was said or called: items then need not be read."""
    heeds: frozenset[str] = frozenset()
    """The fields of FormatOptions that mean something here."""
    min_reward: float | None = None
    """Rollouts below are left out, unless the user says otherwise."""
    joins_prompts: bool = False
    """The prompt is one text, whatever number of messages it is made of, unless the messages are asked for."""
    takes_truncated: bool = False
    """Rollouts that a limit ended may make a row."""
