"""How the rows of a frame ended, which of them are siblings, and the groups and the ledger that follow from it."""

import polars as pl

from gym_bridge.schemas.columns import SOLVED_REWARD
from gym_bridge.schemas.rollouts import Ledger

OUTCOMES = {
    "completed": "It has a reward.",
    "truncated": "It has a reward, and a limit ended it.",
    "failed": "It has no reward, because something went wrong.",
    "no reward": "Nothing went wrong, and no verifier gave it one.",
    "retried": "An attempt that failed; the rollout was tried again.",
    "unreadable": "The line cannot be read as a rollout.",
}
SIGNAL = 1e-12
"""Rewards that differ by less are one."""


def with_outcomes(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with `number` (of the row), `outcome` (of OUTCOMES), `version` and `group`.

    A group is the rollouts of one task that one policy version began; a failure that tells no version has that of the rollouts
    around it.
    """
    key = ["task", "rollout_index"]
    told = frame.select(*key, "problem", "failed", "attempt", "reward", "truncated", "policy_version").with_row_index("number")
    known = pl.col("problem").is_null()
    has_reward = (known & ~pl.col("failed")).any().over(key)
    last = pl.col("attempt").fill_null(0).rank("ordinal", descending=True).over(key) == 1
    retried = pl.col("failed") & pl.col("rollout_index").is_not_null() & (has_reward | ~last)
    outcome = (
        pl.when(~known)
        .then(pl.lit("unreadable"))
        .when(retried)
        .then(pl.lit("retried"))
        .when(pl.col("failed"))
        .then(pl.lit("failed"))
        .when(pl.col("reward").is_null())
        .then(pl.lit("no reward"))
        .when(pl.col("truncated"))
        .then(pl.lit("truncated"))
        .otherwise(pl.lit("completed"))
    )
    version = pl.col("policy_version").fill_null(strategy="forward").fill_null(strategy="backward").over("task")
    told = told.with_columns(outcome=outcome.cast(pl.Enum(list(OUTCOMES))))
    told = told.sort(*key, maintain_order=True).with_columns(version=version).sort("number")
    group = pl.when(pl.col("problem").is_null()).then(pl.struct("task", "version").hash())
    return pl.concat([frame, told.select("number", "outcome", "version", group.alias("group"))], how="horizontal")


def groups_of(rows: pl.DataFrame) -> pl.DataFrame:
    """One line a group, in the order of their first rows, with the columns of groups (`gym_bridge.schemas.columns`), `version`,
    `signal`, and by rollout index the `numbers` and `rewards` of its rollouts, retried attempts left out."""
    final = rows.filter(pl.col("group").is_not_null() & (pl.col("outcome") != "retried"))
    reward = pl.col("reward")
    spread = reward.max() - reward.min()
    return (
        final.sort("rollout_index", maintain_order=True)
        .group_by("group")
        .agg(
            first=pl.col("number").min(),
            task_index=pl.col("task_index").first(),
            agent=pl.col("agent").drop_nulls().first(),
            version=pl.col("version").first(),
            numbers=pl.col("number"),
            rewards=reward,
            num_rollouts=reward.count(),
            pass_rate=(reward >= SOLVED_REWARD).sum() / reward.count(),
            mean_reward=reward.mean(),
            min_reward=reward.min(),
            max_reward=reward.max(),
            std_reward=reward.std(ddof=0),
            spread=spread,
            num_failed=(pl.col("outcome") == "failed").sum(),
            num_truncated=(pl.col("outcome") == "truncated").sum(),
            signal=(spread > SIGNAL).fill_null(value=False),
        )
        .sort("first")
    )


def ledger_of(rows: pl.DataFrame, requested: int | None) -> Ledger:
    """How the rollouts ended that were `requested`; None, or fewer than have a row: as many as have one. Lines that
    cannot be read are nobody's rollout and stand outside."""
    final = rows.filter(~pl.col("outcome").is_in(["retried", "unreadable"]))
    counts = dict(final["outcome"].value_counts().iter_rows())
    named = final.filter(pl.col("outcome") == "failed").select(pl.col("failure").fill_null("unknown"))
    failed = dict(named["failure"].value_counts(sort=True).iter_rows())
    failed |= {"no reward": counts["no reward"]} if counts.get("no reward") else {}
    ended = final.height
    return Ledger(
        requested=max(ended, requested or 0),
        completed=counts.get("completed", 0),
        truncated=counts.get("truncated", 0),
        failed=failed,
        not_attempted=max(0, (requested or 0) - ended),
    )


def failures_of(rows: pl.DataFrame) -> pl.DataFrame:
    """Failed attempts by type, stage and message, the commonest first: `count`, `retried`, and the number of the `first` row."""
    failed = rows.filter(pl.col("outcome").is_in(["failed", "retried"]))
    return (
        failed.group_by("failure", "failure_stage", "failure_message")
        .agg(count=pl.len(), retried=(pl.col("outcome") == "retried").sum(), first=pl.col("number").min())
        .sort("count", "first", descending=[True, False])
    )
