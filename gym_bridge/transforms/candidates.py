"""What one line of a rollouts file may become: the decisions that need no other line."""

import math

from msgspec import Struct
from msgspec.structs import replace

from gym_bridge.errors import DataError
from gym_bridge.io.rollout_reader import PLACEHOLDER, RolloutView, view_row
from gym_bridge.io.row_decoder import RowDecoder
from gym_bridge.io.row_glance import GLANCED, glance
from gym_bridge.io.task_inputs import TaskInputs
from gym_bridge.schemas.columns import ROLLOUT_COLUMNS
from gym_bridge.schemas.rollouts import TASK_INDEX, Row
from gym_bridge.transforms.expressions import Expression, parse_expression
from gym_bridge.transforms.grpo import OUTPUT_FIELD
from gym_bridge.transforms.plan import Plan
from gym_bridge.transforms.row_columns import fields_read, rollout_columns
from gym_bridge.transforms.task_join import TaskJoin


class Candidate(Struct, kw_only=True):
    """A line, read."""

    view: RolloutView | None = None
    """None for a line that cannot be read."""
    counts: bool = False
    """True when it is a verified rollout, so that it counts in its group whatever becomes of it."""
    reason: str | None = None
    """Why it is dropped; None while it may be used."""
    row: Row | None = None
    """What the format made of it; None when it is dropped."""

    def drop(self, reason: str) -> None:
        """Use it no more."""
        self.reason, self.row = reason, None


class CandidateReader:
    """Reads lines as a plan wants them."""

    def __init__(self, plan: Plan):
        """Raises ConfigError for a format or an expression that cannot be loaded, and for unreadable materialized inputs."""
        self._format, self._options = plan.format, plan.options
        self._min_reward = plan.min_reward if plan.format.unit == "rollout" else None
        self._where = parse_expression(plan.where) if plan.where else None
        self._reward = parse_expression(plan.reward) if plan.reward else None
        names = frozenset(name for one in (self._where, self._reward) if one is not None for name in one.names)
        self._task_fields = _task_fields(plan, names)
        for_report = {"reward_components"} if plan.with_statistics else set()
        self._decoder = RowDecoder(self._task_fields | fields_read(names) | for_report)
        reads_items = plan.format.reads_items or plan.needs_content or plan.with_statistics
        self._glances = not reads_items and names <= GLANCED
        joins = bool(self._task_fields) or self._format.task_line is not None
        self._joins = [
            TaskJoin(inputs=TaskInputs(path) if path and joins else None, fields=self._task_fields, decode=self._decoder.decode)
            for path in plan.task_inputs
        ]

    def read(self, line: bytes, source: int) -> Candidate:
        """What `line` of input number `source` may become. Raises DataError, without path and line, for a bad row."""
        view = glance(line) if self._glances else None
        if view is None:
            if line.strip() == PLACEHOLDER:
                return Candidate(reason="not_a_rollout")
            row = self._decoder.decode(line)
            view = view_row(self._joins[source].joined(row) if self._task_fields else row)
        reason = view.drop_reason()
        if self._reward is not None and reason in (None, "no_reward"):
            view = replace(view, reward=_number(self._reward, view))
            reason = view.drop_reason()
        if reason is not None:
            return Candidate(view=view, reason=reason)
        return Candidate(view=view, counts=True, reason=self._own_reason(view))

    def convert(self, candidate: Candidate) -> None:
        """Make the row of a candidate that is not dropped; it is, when it has none.

        Raises MediaError for media that the format cannot hold, DataError for a rollout that has no such form.
        """
        if candidate.reason is None and candidate.view is not None:
            candidate.row = self._format.row(candidate.view, self._options)
            candidate.reason = self._format.lacks if candidate.row is None else None

    def task_line(self, line: bytes, source: int) -> bytes:
        """The task's row among the materialized inputs, as bytes; `line` itself where there is none."""
        inputs = self._joins[source].inputs
        index = self._decoder.decode(line).get(TASK_INDEX) if inputs is not None else None
        return (inputs.line(index) if inputs is not None and type(index) is int else None) or line

    def _own_reason(self, view: RolloutView) -> str | None:
        """Why this format and these filters do not take a good rollout."""
        if view.truncated and not self._format.takes_truncated:
            return "truncated"
        if self._min_reward is not None and view.reward is not None and view.reward < self._min_reward:
            return "low_reward"
        if self._where is not None:
            holds = self._where.value(rollout_columns(view, self._where.names))
            if not holds:
                return "where" if holds is not None else "where_unknown"
        return None


def _task_fields(plan: Plan, names: frozenset[str]) -> frozenset[str]:
    """Top-level fields of a row that are the task's own, and that a rollout's row may lack."""
    fields = {name.partition(".")[0] for name in names if name not in ROLLOUT_COLUMNS}
    if "output_field" in plan.format.heeds:
        path = plan.options.output_field or OUTPUT_FIELD
        fields |= {path, path.partition(".")[0]}
    return frozenset(fields)


def _number(expression: Expression, view: RolloutView) -> float | None:
    """The reward that an expression gives; None where it is unknown or no float holds it. Raises DataError for another type."""
    value = expression.value(rollout_columns(view, expression.names))
    if value is None:
        return None
    if not isinstance(value, bool | int | float):
        raise DataError(f"--reward gives {value!r}; expected a number")
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
