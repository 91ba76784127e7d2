"""Which algorithms a file of rollouts can feed, and with how many rows."""

from typing import Literal

import polars as pl

from gym_bridge.config import StrictModel

Algorithm = Literal["sft", "dpo", "reward_model", "grpo", "online"]


class Feed(StrictModel):
    """What one algorithm finds in the rollouts with a reward, before any filter of this transform."""

    algorithm: Algorithm
    """Supervised fine-tuning, DPO, a reward model, GRPO on tasks with signal, or online training on all tasks."""
    formats: list[str]
    """The values of --to that write its rows."""
    num_rows: int
    """How many rows it finds; an answer of white space alone counts as one here."""
    counted: str
    """What was counted, in words."""
    why_none: str | None
    """Why there is none; null when there are some."""


def feeds_of(scored: pl.DataFrame, *, verified_reward: float) -> list[Feed]:
    """One line for each algorithm and the formats in which it finds so many rows. `scored` are the rollouts with a reward, with the
    columns of `transforms.index.SCHEMA`."""
    answered = (pl.col("answer_chars") > 0).fill_null(value=False)
    acted = answered | (pl.col("num_tool_calls") > 0).fill_null(value=False)
    scored = scored.select("task", "content", "reward", "truncated", answered=answered, acted=acted)
    whole = scored.filter(~pl.col("truncated"))
    acting = whole.filter("acted")
    answered = whole.filter("answered")
    threshold = f"{verified_reward:g}"
    return [
        _feed(
            "sft",
            ("sft",),
            int((acting["reward"] >= verified_reward).sum()),
            f"complete rollouts in which the model answers or calls a tool, with a reward of {threshold} or more",
            _why_no_act(scored, whole, acting) or f"no such rollout has a reward of {threshold} or more",
        ),
        _feed(
            "sft",
            ("response",),
            int((answered["reward"] >= verified_reward).sum()),
            f"complete rollouts that end with an answer and have a reward of {threshold} or more",
            _why_no_answer(scored, whole, answered) or f"no answer has a reward of {threshold} or more",
        ),
        _feed(
            "dpo",
            ("dpo",),
            _num_pairs(answered),
            "pairs of the best and the worst answer to a task, one a task",
            _why_no_answer(scored, whole, answered) or _why_no_pair(answered, "the answers"),
        ),
        _feed(
            "reward_model",
            ("preference",),
            _num_pairs(whole),
            "pairs of the best and the worst complete rollout of a task, one a task",
            _why_none_complete(scored, whole) or _why_no_pair(whole, "the complete rollouts"),
        ),
        _feed(
            "grpo",
            ("tasks", "grpo"),
            _num_with_signal(scored, ["task"]),
            "tasks whose rollouts differ in reward",
            _why_nothing(scored) or _why_no_pair(scored, "the rollouts"),
        ),
        _feed("online", ("tasks",), scored["task"].n_unique(), "tasks, with and without signal", _why_nothing(scored) or ""),
    ]


def _feed(algorithm: Algorithm, formats: tuple[str, ...], num_rows: int, counted: str, why_none: str) -> Feed:
    return Feed(
        algorithm=algorithm,
        formats=list(formats),
        num_rows=num_rows,
        counted=counted,
        why_none=None if num_rows else f"{why_none[0].upper()}{why_none[1:]}.",
    )


def _num_pairs(rollouts: pl.DataFrame) -> int:
    """Siblings in a pair have one prompt, which those of a task need not have when an environment writes it."""
    return _num_with_signal(rollouts, ["task", "content"])


def _num_with_signal(rollouts: pl.DataFrame, keys: list[str]) -> int:
    groups = rollouts.group_by(keys).agg(spread=pl.col("reward").max() > pl.col("reward").min())
    return int(groups["spread"].sum())


def _why_nothing(scored: pl.DataFrame) -> str | None:
    return None if scored.height else "no rollout has a reward"


def _why_none_complete(scored: pl.DataFrame, whole: pl.DataFrame) -> str | None:
    return _why_nothing(scored) or (None if whole.height else "a limit ended every rollout")


def _why_no_act(scored: pl.DataFrame, whole: pl.DataFrame, acting: pl.DataFrame) -> str | None:
    return _why_none_complete(scored, whole) or (
        None if acting.height else "in no complete rollout the model says or calls anything"
    )


def _why_no_answer(scored: pl.DataFrame, whole: pl.DataFrame, answered: pl.DataFrame) -> str | None:
    return _why_none_complete(scored, whole) or (None if answered.height else "no complete rollout ends with an answer's text")


def _why_no_pair(rollouts: pl.DataFrame, what: str) -> str:
    if rollouts["task"].n_unique() == rollouts.height:
        return f"{what} belong to a task each, and a comparison needs several of one"
    if _num_with_signal(rollouts, ["task"]):
        return f"{what} of a task that differ in reward have no prompt in common"
    return f"{what} of every task all have the same reward"
