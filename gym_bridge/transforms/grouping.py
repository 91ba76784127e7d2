"""What siblings decide about each other: polars queries over the index of a transform.

The index is the largest thing in memory. No query copies it: each takes the few columns that it looks at, and gives it new reasons.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from gym_bridge.schemas.columns import SOLVED_REWARD
from gym_bridge.transforms.expressions import parse_expression
from gym_bridge.transforms.near_duplicates import Signatures, keep_mask
from gym_bridge.transforms.pairing import make_pairs
from gym_bridge.transforms.plan import Plan

PAIRED_AT_ONCE = 200_000
"""Rollouts whose pairs are sought in one query, give or take those of one task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the rows of a dataset are made of, and why all else is dropped."""

    index: pl.DataFrame
    """The index, numbered by `row`, with the final `reason` of every line."""
    units: pl.DataFrame
    """One line a row to be written, in order: `first` and, in a pair, `second` are numbers of rows; `task` names the group."""
    groups: pl.DataFrame | None
    """The group columns of every task, where somebody asks for them."""


def select(index: pl.DataFrame, plan: Plan, signatures: Signatures | None) -> Selection:
    """Decide. `signatures` are those of all lines, for near duplicates. Raises ConfigError for an expression that does not fit."""
    index = index.with_row_index("row")
    asks_groups = plan.where_group is not None or plan.format.task_line is not None
    groups = group_frame(index) if asks_groups else None
    if groups is not None and plan.where_group is not None:
        index = _where_group(index, groups, plan.where_group)
    if plan.dedupe == "exact" or signatures is not None:
        index = _deduplicated(index, signatures)
    match plan.format.unit:
        case "rollout":
            index = _best_of(index, plan.best_of)
            units = index.filter(pl.col("reason").is_null()).select("task", first="row", second=pl.lit(None, pl.UInt32))
        case "pair":
            index, units = _pairs(index, plan)
        case "task":
            index, units = _representatives(index, plan)
    return Selection(index=index, units=units, groups=groups)


def group_frame(index: pl.DataFrame) -> pl.DataFrame:
    """One line a task: the columns that `--where-group` knows, over its rollouts that have a reward."""
    reward = pl.col("reward").filter(pl.col("counts"))
    return index.group_by("task", maintain_order=True).agg(
        num_rollouts=pl.col("counts").sum(),
        num_failed=pl.col("failed").sum(),
        num_truncated=(pl.col("counts") & pl.col("truncated")).sum(),
        pass_rate=(reward >= SOLVED_REWARD).mean(),
        mean_reward=reward.mean(),
        min_reward=reward.min(),
        max_reward=reward.max(),
        std_reward=reward.std(ddof=0),
        spread=reward.max() - reward.min(),
        agent=pl.col("agent").first(),
        task_index=pl.col("task_index").first(),
    )


def _where_group(index: pl.DataFrame, groups: pl.DataFrame, text: str) -> pl.DataFrame:
    expression = parse_expression(text)
    reasons = {True: None, False: "where_group", None: "where_group_unknown"}
    held = [None if value is None else bool(value) for value in map(expression.value, groups.iter_rows(named=True))]
    verdicts = groups.select("task").with_columns(of_group=pl.Series([reasons[one] for one in held], dtype=index.schema["reason"]))
    of_group = index.select("task").join(verdicts, on="task", how="left", maintain_order="left")["of_group"]
    return index.with_columns(reason=pl.coalesce("reason", of_group))


def _deduplicated(index: pl.DataFrame, signatures: Signatures | None) -> pl.DataFrame:
    eligible = _eligible(index, "row", "content", "answer")
    if signatures is None:
        # One number in place of two: a struct takes polars three times the memory.
        again, reason = ~pl.struct("content", "answer").hash().is_first_distinct(), "duplicate"
        rows = eligible.filter(again)["row"]
    else:
        kept, reason = keep_mask(signatures, eligible["row"].to_numpy()), "near_duplicate"
        rows = eligible["row"].filter(pl.Series(~kept))
    return _dropped(index, rows, reason)


def _best_of(index: pl.DataFrame, best_of: int | None) -> pl.DataFrame:
    if best_of is None:
        return index
    eligible = _eligible(index, "task", "reward", "row").sort(["task", "reward", "row"], descending=[False, True, False])
    rows = eligible.filter(pl.int_range(pl.len()).over("task") >= best_of)["row"]
    return _dropped(index, rows, "not_among_best")


def _pairs(index: pl.DataFrame, plan: Plan) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Some tasks at a time: what pairing looks at takes ten times the memory of its rollouts."""
    eligible = _eligible(index, "row", "reward", task_key="task", prompt_key="prompt", answer_key="answer")
    part = pl.col("task_key") % (eligible.height // PAIRED_AT_ONCE + 1)
    made = [
        make_pairs(
            of_part,
            strategy=plan.pairs,
            min_margin=plan.min_margin,
            max_pairs_per_task=plan.max_pairs_per_task,
            min_reward=plan.min_reward,
            seed=plan.seed,
        )
        for of_part in eligible.with_columns(part=part).partition_by("part", include_key=False) or [eligible]
    ]
    unpaired = pl.concat([one.unpaired for one in made])
    for reason in unpaired["reason"].unique():
        index = _dropped(index, unpaired["row"].filter(unpaired["reason"] == reason), reason)
    first_seen = eligible.group_by("task_key").agg(seen=pl.col("row").min())
    pairs = pl.concat([one.pairs for one in made]).join(first_seen, on="task_key", maintain_order="left")
    pairs = pairs.sort("seen", maintain_order=True)
    return index, pairs.select(task="task_key", first="chosen_row", second="rejected_row", margin="margin")


def _representatives(index: pl.DataFrame, plan: Plan) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The best rollout of every task, the first of equals; the others are spare, or used as well where all tell of the task."""
    eligible = _eligible(index, "row", "task", "reward")
    best = eligible.sort(["reward", "row"], descending=[True, False]).group_by("task", maintain_order=True).first()
    first_seen = eligible.group_by("task").agg(seen=pl.col("row").min())
    units = best.select("task", first="row", second=pl.lit(None, pl.UInt32)).join(first_seen, on="task").sort("seen").drop("seen")
    if plan.format.task_line is not None:
        return index, units
    could = pl.col("reason").is_null() | (pl.col("reason") == plan.format.lacks)
    rows = index.filter(could & pl.col("task").is_in(units["task"].implode()) & ~pl.col("row").is_in(units["first"].implode()))[
        "row"
    ]
    return _dropped(index, rows, "spare"), units


def _eligible(index: pl.DataFrame, *columns: str, **renamed: str) -> pl.DataFrame:
    """These columns of the rollouts that may be used."""
    return (
        index.lazy()
        .filter(pl.col("reason").is_null())
        .select(*columns, **{new: pl.col(old) for new, old in renamed.items()})
        .collect()
    )


def _dropped(index: pl.DataFrame, rows: pl.Series, reason: str) -> pl.DataFrame:
    """`index` with `reason` on the given rows."""
    hit = np.zeros(index.height, dtype=bool)
    hit[rows.to_numpy()] = True
    told = pl.lit(reason, dtype=index.schema["reason"])
    return index.with_columns(reason=pl.when(pl.Series(hit)).then(told).otherwise("reason"))
