"""Which rows of a rollouts file a page shows: by outcome, reward, turns, tool, text, and the expressions of `transform`."""

from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import Field, NonNegativeInt

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError, DataError
from gym_bridge.schemas.columns import GROUP_COLUMNS, ROLLOUT_COLUMNS
from gym_bridge.transforms.expressions import Expression, check_names, parse_expression
from gym_bridge.viewer.rollout_file import RolloutFile, Rows
from gym_bridge.viewer.row_search import own_columns, rows_with_text

Sort = Literal["file", "newest", "reward", "worst", "turns", "tokens", "time"]
GroupSort = Literal["file", "newest", "spread", "mean", "hardest", "failures"]

_ORDERS: dict[str, tuple[str, bool]] = {
    "newest": ("number", True),
    "reward": ("reward", True),
    "worst": ("reward", False),
    "turns": ("num_turns", True),
    "tokens": ("num_output_tokens", True),
    "time": ("elapsed_s", True),
}
_GROUP_ORDERS: dict[str, tuple[str, bool]] = {
    "newest": ("first", True),
    "spread": ("spread", True),
    "mean": ("mean_reward", True),
    "hardest": ("mean_reward", False),
    "failures": ("num_failed", True),
}


class Filter(StrictModel):
    """What a reader asks for; as the query of an address, where an empty value asks for nothing."""

    outcome: str | None = None
    """One of `gym_bridge.viewer.outcomes.OUTCOMES`."""
    stop: str | None = None
    """The stop reason."""
    failure: str | None = None
    """The type of the failure."""
    reward_min: float | None = None
    reward_max: float | None = None
    turns_min: NonNegativeInt | None = None
    turns_max: NonNegativeInt | None = None
    tool: str | None = None
    """A tool that was called."""
    version: int | None = None
    """The policy version that began it."""
    text: str | None = Field(default=None, max_length=1000)
    """Stands somewhere in the row, whatever the case of its letters."""
    where: str | None = None
    """An expression over rollouts, as of `transform --where`."""
    where_group: str | None = None
    """An expression over groups, as of `transform --where-group`."""
    sort: Sort = "file"
    group_sort: GroupSort = "file"
    page: int = Field(default=1, ge=1, le=10**9)

    @property
    def asks(self) -> dict[str, str]:
        """What it asks for, sorting and paging left out, as the query of an address."""
        given = self.model_dump(exclude={"sort", "group_sort", "page"}, exclude_none=True)
        return {name: str(value) for name, value in given.items()}


def chosen_rows(file: RolloutFile, rows: Rows, asked: Filter) -> pl.DataFrame:
    """The rows that a filter leaves, sorted. Raises ConfigError for an expression that cannot be read or does not fit a row."""
    frame = rows.frame.filter(*_conditions(asked))
    if asked.where_group is not None:
        frame = frame.filter(pl.col("group").is_in(_groups_where(rows, asked.where_group).implode()))
    if asked.where is not None:
        frame = _where(file, rows, frame, parse_expression(asked.where))
    if asked.text is not None:
        frame = rows_with_text(file, frame, asked.text)
    if asked.sort == "file":
        return frame
    column, descending = _ORDERS[asked.sort]
    return frame.sort(column, descending=descending, nulls_last=True, maintain_order=True)


def chosen_groups(rows: Rows, chosen: pl.DataFrame, asked: Filter) -> pl.DataFrame:
    """The groups, whole, that have a chosen row, sorted."""
    if asked.asks:
        groups = rows.groups.filter(pl.col("group").is_in(chosen["group"].unique().implode()))
    else:
        groups = rows.groups
    if asked.group_sort == "file":
        return groups
    column, descending = _GROUP_ORDERS[asked.group_sort]
    return groups.sort(column, descending=descending, nulls_last=True, maintain_order=True)


def _conditions(asked: Filter) -> list[pl.Expr]:
    equal = {"outcome": asked.outcome, "stop_reason": asked.stop, "failure": asked.failure, "version": asked.version}
    found = [pl.col(name) == value for name, value in equal.items() if value is not None]
    for column, low, high in (
        ("reward", asked.reward_min, asked.reward_max),
        ("num_turns", asked.turns_min, asked.turns_max),
    ):
        found += [pl.col(column) >= low] if low is not None else []
        found += [pl.col(column) <= high] if high is not None else []
    if asked.tool is not None:
        found.append(pl.col("tools_used").list.contains(asked.tool))
    return found


def _groups_where(rows: Rows, text: str) -> pl.Series:
    expression = parse_expression(text)
    check_names(expression, GROUP_COLUMNS)
    told = rows.groups.select("group", *expression.names).iter_rows(named=True)
    return pl.Series("group", [one["group"] for one in told if expression.value(one)], pl.UInt64)


def _where(file: RolloutFile, rows: Rows, frame: pl.DataFrame, expression: Expression) -> pl.DataFrame:
    """Rows for which an expression is true: one that is not known is not."""
    if expression.names <= ROLLOUT_COLUMNS.keys():
        columns = frame.select("number", *expression.names).iter_rows(named=True)
    else:
        columns = own_columns(file, frame, expression)
    numbers = []
    for one in columns:
        try:
            if expression.value(one):
                numbers.append(one["number"])
        except DataError as error:
            raise ConfigError(f"rollout {rows.place(one['number'])}: {error}") from error
    return frame.filter(pl.col("number").is_in(pl.Series(numbers, dtype=pl.UInt32).implode()))


def picked_rows(rows: Rows, places: Sequence[str]) -> pl.DataFrame:
    """The rows at some places, in the order of the file. Raises ConfigError for a place without one."""
    return rows.frame[sorted({rows.number(place) for place in places})]
