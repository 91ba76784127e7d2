"""What rollouts are like, and what they are good for: polars queries over the index of a transform. No text is looked at."""

import math
from collections import Counter
from typing import Literal

import polars as pl

from gym_bridge.config import StrictModel
from gym_bridge.schemas.columns import SOLVED_REWARD
from gym_bridge.transforms.distributions import Distribution, Histogram, Measure, distribution, histogram, measure
from gym_bridge.transforms.feeds import Feed, feeds_of
from gym_bridge.transforms.plan import Plan

MEASURED = ("reward", "num_turns", "num_tool_calls", "prompt_chars", "answer_chars")
KEYS = ("task", "content", "prompt")
Z_95 = 1.959963984540054
"""97.5 % of a normal distribution lies below so many standard deviations."""


class RewardKind(StrictModel):
    """What the rewards look like."""

    looks: Literal["constant", "binary", "continuous", "multi-metric"]
    """One value, two values, more values, or a reward made of several components, whatever its values."""
    num_levels: int
    """How many different rewards there are."""
    components: dict[str, int]
    """In how many rollouts each part of `reward_components` is a number."""


class TaskStatistics(StrictModel):
    """The tasks of the rollouts with a reward."""

    num_tasks: int
    """Different tasks."""
    attempts: Distribution | None
    """Rollouts a task; null without a task."""
    num_tried_once: int
    """Tasks with one rollout: these have no signal either."""
    num_without_signal: int
    """Tasks all whose rollouts have one reward: they teach GRPO nothing and make no pair."""
    num_always_solved: int
    """Tasks all whose rollouts pass, with a reward of 1 or more."""
    num_sometimes_solved: int
    """Tasks of which some rollouts pass and some do not."""
    num_never_solved: int
    """Tasks of which no rollout passes."""
    mean_rewards: Histogram | None
    """The mean reward of each task; null without a task."""


class DuplicateStatistics(StrictModel):
    """Rollouts that repeat an earlier one: the same task content and the same answer."""

    num_compared: int
    """Rollouts with a reward whose answer was looked at: those that the format and its filters could take."""
    num_repeated: int
    """Those among them that repeat an earlier one."""
    num_repeated_in_output: int
    """Rollouts in the output that repeat an earlier one there."""


class PairStatistics(StrictModel):
    """The pairs that were written."""

    num_pairs: int
    """How many there are."""
    margins: Distribution
    """Reward of the chosen less that of the rejected rollout."""
    margin_histogram: Histogram
    """The margins over round bins."""
    num_chosen_longer: int
    """Pairs whose chosen answer has more characters than the rejected one."""
    num_chosen_shorter: int
    """Pairs whose chosen answer has fewer."""
    num_same_length: int
    """Pairs whose answers have equally many. Pairs in which one side ends without an answer are in none of the three."""
    chosen_longer_share: float | None
    """Pairs with a longer chosen answer, of those whose lengths differ: 0.5 without a bias; null when no lengths differ."""
    chosen_longer_low: float | None
    """Lower end of the 95 % Wilson interval of that share; pairs count as independent."""
    chosen_longer_high: float | None
    """Upper end of it."""


class SplitStatistics(StrictModel):
    """What the train and the validation file have in common, measured on the rollouts that are in them."""

    num_train_tasks: int
    """Different task contents in the train file."""
    num_validation_tasks: int
    """Different task contents in the validation file."""
    num_shared_tasks: int
    """Task contents that stand in both; 0, since tasks are split by content."""
    num_shared_prompts: int | None
    """Prompts that stand in both: such tasks differ in their tools alone; null where prompts were not looked at."""


class Statistics(StrictModel):
    """What the rollouts of a transform are like. A rollout with a reward is scored; failures and masked rows are not."""

    to: str
    """The format that was written."""
    inputs: list[str]
    """The files that were read."""
    num_scored: int
    """Rollouts with a reward."""
    num_truncated: int
    """Those among them that a limit ended."""
    reward_kind: RewardKind | None
    """What the rewards look like; null without one."""
    rewards: Measure
    """What /verify gave, or what --reward made of it."""
    turns: Measure
    """Model calls of a rollout."""
    tool_calls: Measure
    """Tool calls of a rollout."""
    prompt_chars: Measure
    """Characters of the prompt's text."""
    answer_chars: Measure
    """Characters of the last answer's text; rollouts that end otherwise have none."""
    tools: dict[str, int]
    """In how many scored rollouts each tool was called, the commonest first."""
    tasks: TaskStatistics
    """The tasks, over all scored rollouts."""
    duplicates: DuplicateStatistics
    """Rollouts that repeat another."""
    pairs: PairStatistics | None
    """The pairs; null where none were written."""
    split: SplitStatistics | None
    """Train against validation; null without --split."""
    feeds: list[Feed]
    """What can be trained on these inputs, whatever this transform was asked for."""


def make_statistics(
    index: pl.DataFrame, plan: Plan, *, pairs: pl.DataFrame | None, tools: Counter[str], components: Counter[str]
) -> Statistics:
    """The statistics of a run. `index` has the columns of `transforms.index.SCHEMA`; `first` and `second` of `pairs` are its rows.

    `tools` and `components` count scored rollouts: those that called a tool, those with a number as a part of the reward.
    """
    scored = _scored(index, plan)
    measured = (measure(scored[name], scored[name].filter(scored["used"])) for name in MEASURED)
    rewards, turns, tool_calls, prompt_chars, answer_chars = measured
    return Statistics(
        to=plan.to,
        inputs=[str(path) for path in plan.inputs],
        num_scored=scored.height,
        num_truncated=int(scored["truncated"].sum()),
        reward_kind=_reward_kind(scored["reward"], components),
        rewards=rewards,
        turns=turns,
        tool_calls=tool_calls,
        prompt_chars=prompt_chars,
        answer_chars=answer_chars,
        tools=dict(tools.most_common()),
        tasks=_tasks(scored),
        duplicates=_duplicates(scored),
        pairs=_pairs(index, pairs) if pairs is not None and pairs.height else None,
        split=_split(scored) if plan.split is not None else None,
        feeds=feeds_of(scored, verified_reward=plan.options.verified_reward),
    )


def wilson_interval(num_hits: int, num_trials: int) -> tuple[float, float]:
    """The 95 % interval of a share, of at least one trial.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)      (Wilson 1927, JASA 22, 209-212)
    """
    share, ratio = num_hits / num_trials, Z_95 * Z_95 / num_trials
    middle = (share + ratio / 2) / (1 + ratio)
    half_width = math.sqrt(share * (1 - share) * ratio + ratio * ratio / 4) / (1 + ratio)
    return max(0.0, middle - half_width), min(1.0, middle + half_width)


def _scored(index: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    """The rollouts with a reward and the columns that are looked at; `identity` is equal for repetitions, `used` says that it is
    in the output."""
    keys = pl.col("content").is_not_null() & pl.col("answer").is_not_null()
    # One number in place of two: a struct takes polars three times the memory.
    identity = pl.when(keys).then(pl.struct("content", "answer").hash())
    scored = index.lazy().filter("counts")
    scored = scored.select(
        *MEASURED, *KEYS, "truncated", "validation", identity=identity, used=pl.col("reason").is_null()
    ).collect()
    if plan.dedupe == "exact":
        # One pass drops repetitions as it writes, without a word to the index. After two passes none are left here.
        scored = scored.with_columns(used=pl.col("used") & pl.col("identity").is_first_distinct().over("used"))
    return scored


def _reward_kind(rewards: pl.Series, components: Counter[str]) -> RewardKind | None:
    num_levels = rewards.n_unique()
    if not num_levels:
        return None
    looks = "multi-metric" if len(components) > 1 else {1: "constant", 2: "binary"}.get(num_levels, "continuous")
    return RewardKind.model_validate({"looks": looks, "num_levels": num_levels, "components": dict(components.most_common())})


def _tasks(scored: pl.DataFrame) -> TaskStatistics:
    reward = pl.col("reward")
    tasks = scored.group_by("task").agg(
        attempts=pl.len(), best=reward.max(), worst=reward.min(), mean=reward.mean(), solved=(reward >= SOLVED_REWARD).sum()
    )
    always, never = pl.col("solved") == pl.col("attempts"), pl.col("solved") == 0
    counts = tasks.select(
        once=(pl.col("attempts") == 1).sum(),
        flat=(pl.col("best") == pl.col("worst")).sum(),
        always=always.sum(),
        sometimes=(~always & ~never).sum(),
        never=never.sum(),
    ).row(0, named=True)
    return TaskStatistics(
        num_tasks=tasks.height,
        attempts=distribution(tasks["attempts"]),
        num_tried_once=counts["once"],
        num_without_signal=counts["flat"],
        num_always_solved=counts["always"],
        num_sometimes_solved=counts["sometimes"],
        num_never_solved=counts["never"],
        mean_rewards=histogram(tasks["mean"]),
    )


def _duplicates(scored: pl.DataFrame) -> DuplicateStatistics:
    all_of_them, used = scored["identity"].drop_nulls(), scored["identity"].filter(scored["used"]).drop_nulls()
    return DuplicateStatistics(
        num_compared=all_of_them.len(),
        num_repeated=all_of_them.len() - all_of_them.n_unique(),
        num_repeated_in_output=used.len() - used.n_unique(),
    )


def _pairs(index: pl.DataFrame, pairs: pl.DataFrame) -> PairStatistics:
    sides = {name: index.select("reward", "answer_chars")[pairs[name]] for name in ("first", "second")}
    margins = sides["first"]["reward"] - sides["second"]["reward"]
    lengths = pl.DataFrame({name: side["answer_chars"].cast(pl.Int64) for name, side in sides.items()})
    more = (lengths["first"] - lengths["second"]).drop_nulls().sign()
    num_longer, num_shorter = int((more == 1).sum()), int((more == -1).sum())
    num_unequal = num_longer + num_shorter
    low, high = wilson_interval(num_longer, num_unequal) if num_unequal else (None, None)
    spread, counts = distribution(margins), histogram(margins)
    if spread is None or counts is None:
        raise ValueError(f"{pairs.height} pairs, none of them with two finite rewards")
    return PairStatistics(
        num_pairs=pairs.height,
        margins=spread,
        margin_histogram=counts,
        num_chosen_longer=num_longer,
        num_chosen_shorter=num_shorter,
        num_same_length=more.len() - num_unequal,
        chosen_longer_share=num_longer / num_unequal if num_unequal else None,
        chosen_longer_low=low,
        chosen_longer_high=high,
    )


def _split(scored: pl.DataFrame) -> SplitStatistics:
    used = scored.select("content", "prompt", "validation", "used").filter("used")
    train, validation = used.filter(~pl.col("validation")), used.filter("validation")
    prompts_known = used["prompt"].null_count() < used.height
    return SplitStatistics(
        num_train_tasks=train["content"].n_unique(),
        num_validation_tasks=validation["content"].n_unique(),
        num_shared_tasks=_num_shared(train["content"], validation["content"]),
        num_shared_prompts=_num_shared(train["prompt"], validation["prompt"]) if prompts_known else None,
    )


def _num_shared(left: pl.Series, right: pl.Series) -> int:
    return int(left.drop_nulls().unique().is_in(right.drop_nulls().unique().implode()).sum())
