"""Which siblings make preference pairs, and why every other rollout makes none. Queries over a frame of scalars; no text."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import polars as pl

from gym_bridge.errors import ConfigError, nearest
from gym_bridge.schemas.transform_settings import PairStrategy

COLUMNS = ("row", "task_key", "prompt_key", "answer_key", "reward")
PAIRS_AT_ONCE = 4_000_000
"""Combinations of siblings that `all` looks at in one query."""
MAX_PAIRS_OF_A_TASK = 20_000_000
"""Combinations of one task's siblings beyond which `all` is refused: they would not fit into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The pairs, and the rollouts that are in none: len(frame) = num_paired + len(unpaired)."""

    pairs: pl.DataFrame
    """task_key, chosen_row, rejected_row, margin: tasks in order of their first rollout, the pairs of a task with the widest margin
    first (random: as drawn)."""
    unpaired: pl.DataFrame
    """row, reason: ascending rows of the rollouts that are in no pair."""
    num_paired: int
    """Rollouts that are in at least one pair."""

    def num_unpaired(self) -> dict[str, int]:
        """Number of rollouts in no pair, by reason."""
        counts = self.unpaired.group_by("reason").len().sort("reason")
        return dict(counts.iter_rows())


def make_pairs(
    frame: pl.DataFrame,
    *,
    strategy: PairStrategy,
    min_margin: float,
    max_pairs_per_task: int | None,
    min_reward: float | None,
    seed: int,
) -> Pairs:
    """Pairs of siblings: rollouts of one task with one prompt whose rewards differ by more than `min_margin`.

    `frame` has a line for every rollout that may be used: `row` (its position in file order, unique), `task_key`, `prompt_key` and
    `answer_key` (of any type; equal keys mean equal contents) and `reward` (finite). The strategy draws pairs by reward:

        best_worst   the first of the best with the first of the worst
        all          every two siblings
        adjacent     neighbours in the order of rewards; of equal ones, in the order of rows
        random       the upper half of the rewards matched at random, by `seed`, with the lower half: no rollout stands in two pairs

    Drawn pairs with equal answers are refused, then those whose chosen reward is below `min_reward`, and `max_pairs_per_task` keeps
    the first of what is left. A rollout that is in no pair has one reason, the first that holds:

        no_partner     it has no siblings
        tie            all its siblings have its reward
        small_margin   no sibling's reward differs by more than `min_margin`
        same_answer    pairs with such siblings, or those that were drawn, have equal answers
        low_reward     in what is left of them, the chosen reward is below `min_reward`
        spare          it could be in a pair that the strategy did not draw, or the cap left out

    Raises ConfigError for settings that are no such thing, and for a task with too many siblings for `all`.
    """
    _check(strategy, min_margin, max_pairs_per_task)
    ranked = _with_prospects(frame, min_margin, -math.inf if min_reward is None else min_reward)
    marks = {name: np.zeros(len(ranked), dtype=bool) for name in ("used", "spare", "low_reward", "same_answer")}
    chunks: list[pl.DataFrame] = []
    for drawn in _STRATEGIES[strategy](ranked, seed):
        judged = _judged(drawn, ranked, min_margin=min_margin, min_reward=min_reward)
        for reason in ("same_answer", "low_reward", "spare"):
            _mark(marks[reason], judged.filter(pl.col("reason") == reason))
        good = judged.filter(pl.col("reason") == "spare").sort("task", "order", "chosen", "rejected")
        if max_pairs_per_task is not None:
            good = good.filter(pl.col("task").cum_count().over("task") <= max_pairs_per_task)
        _mark(marks["used"], good)
        chunks.append(_by_rows(good, ranked))
    drawn_reason = pl.coalesce(pl.when(pl.lit(pl.Series(marks[name]))).then(pl.lit(name)) for name in list(marks)[1:])
    told = ranked.select("row", pl.coalesce(drawn_reason, "reason").alias("reason"))
    used = marks["used"]
    return Pairs(pairs=pl.concat(chunks), unpaired=told.filter(pl.Series(~used)), num_paired=int(used.sum()))


def _check(strategy: str, min_margin: float, max_pairs_per_task: int | None) -> None:
    if strategy not in _STRATEGIES:
        raise ConfigError(f"pairs={strategy!r} is no strategy{nearest(strategy, get_args(PairStrategy))}")
    if not min_margin >= 0:
        raise ConfigError(f"min_margin={min_margin}; expected 0 or more")
    if max_pairs_per_task is not None and max_pairs_per_task < 1:
        raise ConfigError(f"max_pairs_per_task={max_pairs_per_task}; expected 1 or more")


def _with_prospects(frame: pl.DataFrame, min_margin: float, min_reward: float) -> pl.DataFrame:
    """The rollouts by row, each with its place, its groups, and the `reason` for which it could be in no pair at all, else spare.

    task, group and answer are numbers: the place of the first rollout that shares them. A rollout's best chance is with the
    highest and the lowest reward of the siblings that answered otherwise: those with the first answer to reach the group's extreme,
    or, for that answer itself, the extreme of the rest.
    """
    reward, high, low, answer = pl.col("reward"), pl.col("high"), pl.col("low"), pl.col("answer")
    place = pl.int_range(pl.len(), dtype=pl.UInt32)
    ranked = frame.select(COLUMNS).sort("row").with_columns(place.alias("place"))
    ranked = ranked.with_columns(
        pl.col("place").min().over("task_key").alias("task"),
        pl.col("place").min().over("task_key", "prompt_key").alias("group"),
        pl.col("place").min().over("task_key", "prompt_key", "answer_key").alias("answer"),
    ).drop("prompt_key", "answer_key")
    ranked = ranked.with_columns(
        pl.len().over("group").alias("size"), reward.max().over("group").alias("high"), reward.min().over("group").alias("low")
    ).with_columns(
        pl.when(reward == high).then(answer).min().over("group").alias("top"),
        pl.when(reward == low).then(answer).min().over("group").alias("bottom"),
    )
    top, bottom = pl.col("top"), pl.col("bottom")
    ranked = ranked.with_columns(
        pl.when(answer == top).then(pl.when(answer != top).then(reward).max().over("group")).otherwise(high).alias("best_other"),
        pl.when(answer == bottom)
        .then(pl.when(answer != bottom).then(reward).min().over("group"))
        .otherwise(low)
        .alias("worst_other"),
    )
    best_other, worst_other = pl.col("best_other"), pl.col("worst_other")
    as_rejected = (best_other - reward > min_margin).fill_null(False)
    as_chosen = (reward - worst_other > min_margin).fill_null(False)
    reason = (
        pl.when(pl.col("size") == 1)
        .then(pl.lit("no_partner"))
        .when(high == low)
        .then(pl.lit("tie"))
        .when(pl.max_horizontal(high - reward, reward - low) <= min_margin)
        .then(pl.lit("small_margin"))
        .when(~as_rejected & ~as_chosen)
        .then(pl.lit("same_answer"))
        .when(~(as_rejected & (best_other >= min_reward)) & ~(as_chosen & (reward >= min_reward)))
        .then(pl.lit("low_reward"))
        .otherwise(pl.lit("spare"))
    )
    return ranked.select(
        "row", "task_key", "place", "task", "group", "answer", "reward", "size", "high", "low", reason.alias("reason")
    )


def _best_worst(ranked: pl.DataFrame, seed: int) -> Iterator[pl.DataFrame]:
    best = pl.when(pl.col("reward") == pl.col("high")).then(pl.col("place")).min()
    worst = pl.when(pl.col("reward") == pl.col("low")).then(pl.col("place")).min()
    yield ranked.group_by("group").agg(best.alias("chosen"), worst.alias("rejected"))


def _all(ranked: pl.DataFrame, seed: int) -> Iterator[pl.DataFrame]:
    """All pairs, some tasks at a time: the pairs of a million rollouts need not be in memory before they are judged."""
    tasks = ranked.group_by("task").agg(pl.col("size").cast(pl.UInt64).sum().alias("cost"), pl.col("task_key").first()).sort("task")
    for task_key, cost in tasks.filter(pl.col("cost") > MAX_PAIRS_OF_A_TASK).select("task_key", "cost").iter_rows():
        raise ConfigError(
            f"pairs=all would look at {cost} pairs of siblings of task {task_key!r}, more than {MAX_PAIRS_OF_A_TASK}; "
            "take adjacent, random or best_worst"
        )
    chunk = (pl.col("cost").cum_sum() - pl.col("cost")) // PAIRS_AT_ONCE
    chunked = ranked.join(tasks.select("task", chunk.alias("chunk")), on="task", how="left")
    for part in chunked.partition_by("chunk", maintain_order=True) or [chunked]:
        chosen = part.select("group", "reward", pl.col("place").alias("chosen"))
        rejected = part.select("group", pl.col("reward").alias("lower"), pl.col("place").alias("rejected"))
        pairs = chosen.lazy().join(rejected.lazy(), on="group").filter(pl.col("reward") > pl.col("lower"))
        yield pairs.select("chosen", "rejected").collect()


def _adjacent(ranked: pl.DataFrame, seed: int) -> Iterator[pl.DataFrame]:
    ordered = ranked.select("group", "reward", "place").sort("group", "reward", "place")
    neighbours = ordered.filter(pl.col("group") == pl.col("group").shift(1))
    below = ordered.filter(pl.col("group") == pl.col("group").shift(-1))
    yield pl.DataFrame({"chosen": neighbours["place"], "rejected": below["place"]})


def _random(ranked: pl.DataFrame, seed: int) -> Iterator[pl.DataFrame]:
    half, number = pl.col("size") // 2, pl.col("group").cum_count().over("group")
    keys = pl.Series("tie", _draws(ranked["row"], seed, "tie")), pl.Series("order", _draws(ranked["row"], seed, "order"))
    ordered = ranked.with_columns(*keys).sort("group", "reward", "tie").with_columns(number.alias("rank"))
    lower = ordered.filter(pl.col("rank") <= half).select("group", pl.col("rank"), pl.col("place").alias("rejected"))
    upper = ordered.filter(pl.col("rank") > pl.col("size") - half).sort("group", "order").with_columns(number.alias("rank"))
    yield upper.select("group", "rank", "order", pl.col("place").alias("chosen")).join(lower, on=["group", "rank"])


_STRATEGIES: dict[str, Callable[[pl.DataFrame, int], Iterator[pl.DataFrame]]] = {
    "best_worst": _best_worst,
    "all": _all,
    "adjacent": _adjacent,
    "random": _random,
}


def _draws(rows: pl.Series, seed: int, purpose: str) -> np.ndarray:
    """A random number for every row, [N] uint64: SplitMix64 (Steele, Lea and Flood 2014) of row and key."""
    key = hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=8).digest()
    z = (rows.cast(pl.UInt64).to_numpy() + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(key))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _judged(drawn: pl.DataFrame, ranked: pl.DataFrame, *, min_margin: float, min_reward: float | None) -> pl.DataFrame:
    """The drawn pairs whose margin is wide enough, with task, margin, order, and why they are refused; spare: they are not."""
    chosen, rejected = drawn["chosen"], drawn["rejected"]
    margins = ranked["reward"].gather(chosen) - ranked["reward"].gather(rejected)
    wide = drawn.with_columns(margins.alias("margin")).filter(pl.col("margin") > min_margin)
    chosen, rejected = wide["chosen"], wide["rejected"]
    same = (ranked["answer"].gather(chosen) == ranked["answer"].gather(rejected)).alias("same")
    low = (ranked["reward"].gather(chosen) < (-math.inf if min_reward is None else min_reward)).alias("low")
    reason = pl.when(same).then(pl.lit("same_answer")).when(low).then(pl.lit("low_reward")).otherwise(pl.lit("spare"))
    order = pl.col("order") if "order" in wide.columns else -pl.col("margin")
    task = ranked["task"].gather(chosen).alias("task")
    return wide.select(task, "chosen", "rejected", "margin", order.alias("order"), reason.alias("reason"))


def _mark(marks: np.ndarray, pairs: pl.DataFrame) -> None:
    for side in ("chosen", "rejected"):
        marks[pairs[side].to_numpy()] = True


def _by_rows(pairs: pl.DataFrame, ranked: pl.DataFrame) -> pl.DataFrame:
    chosen, rejected = pairs["chosen"], pairs["rejected"]
    return pl.DataFrame(
        {
            "task_key": ranked["task_key"].gather(chosen),
            "chosen_row": ranked["row"].gather(chosen),
            "rejected_row": ranked["row"].gather(rejected),
            "margin": pairs["margin"],
        }
    )
