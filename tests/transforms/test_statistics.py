import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms.distributions import Distribution, Histogram, distribution, histogram
from gym_bridge.transforms.index import SCHEMA
from gym_bridge.transforms.plan import make_plan
from gym_bridge.transforms.statistics import make_statistics, wilson_interval

DEFAULTS = {
    "counts": True,
    "failed": False,
    "truncated": False,
    "num_turns": 1,
    "num_tool_calls": 0,
    "prompt_chars": 10,
    "answer_chars": 5,
}


def index_of(*rollouts):
    """A frame like those of `transforms.index`, of what each rollout differs in."""
    lines = [{name: (DEFAULTS | rollout).get(name) for name in SCHEMA} for rollout in rollouts]
    return pl.DataFrame(lines, schema=SCHEMA)


def attempt(task, reward, **more):
    return {"task": task, "content": task, "answer": 1, "reward": reward, **more}


def statistics_of(*rollouts, to="sft", pairs=None, tools=(), components=(), **settings):
    plan = make_plan([Path("a.jsonl")], TransformSettings(to=to, output=Path("o.jsonl"), report=Path("r.json"), **settings))
    return make_statistics(index_of(*rollouts), plan, pairs=pairs, tools=Counter(tools), components=Counter(components))


def feed_of(statistics, algorithm, to=None):
    (feed,) = [feed for feed in statistics.feeds if feed.algorithm == algorithm and (to is None or to in feed.formats)]
    return feed.num_rows, feed.why_none


def test_quartiles_of_five_numbers_stand_on_numbers_and_those_of_four_between():
    five = pl.Series([4, 0, 1, 10, 2], dtype=pl.UInt32)
    assert distribution(five) == Distribution(count=5, mean=3.4, min=0, lower_quartile=1, median=2, upper_quartile=4, max=10)
    four = pl.Series([1.0, 2.0, None, 4.0, 8.0])
    assert distribution(four) == Distribution(count=4, mean=3.75, min=1, lower_quartile=1.75, median=3, upper_quartile=5, max=8)
    assert distribution(pl.Series([None, float("nan"), float("inf"), 1e101], dtype=pl.Float64)) is None


def test_rewards_on_an_edge_fall_above_it_and_the_highest_into_the_last_bin():
    counts = histogram(pl.Series([0.0, 0.15, 0.3, 0.55, 1.0, 1.0]), pl.Series([1.0, 1.0]))
    assert counts is not None
    assert counts.edges == [
        0,
        0.05,
        0.1,
        0.15,
        0.2,
        0.25,
        0.3,
        0.35,
        0.4,
        0.45,
        0.5,
        0.55,
        0.6,
        0.65,
        0.7,
        0.75,
        0.8,
        0.85,
        0.9,
        0.95,
        1,
    ]
    assert counts.scored == [1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert counts.used == [0] * 19 + [2]


def test_few_whole_numbers_have_a_bin_each_and_many_share_round_ones():
    assert histogram(pl.Series([2, 5, 5], dtype=pl.UInt32)) == Histogram(
        whole=True, edges=[1.5, 2.5, 3.5, 4.5, 5.5], scored=[1, 0, 0, 2]
    )
    counts = histogram(pl.Series([3, 10, 99, 100], dtype=pl.UInt32))
    assert counts is not None
    assert (counts.edges[:3], counts.edges[-1], len(counts.edges)) == ([0, 5, 10], 105, 22)
    assert [place for place, count in enumerate(counts.scored) if count] == [0, 2, 19, 20]


def test_a_long_tail_has_one_open_bin_at_the_end():
    counts = histogram(pl.Series([1] * 500 + [2] * 498 + [9_000, 10_000], dtype=pl.UInt32))
    assert counts is not None
    assert counts.edges == [number + 0.5 for number in range(12)]
    assert counts.scored == [500, 498, *[0] * 9, 2]


def test_equal_numbers_have_one_bin_around_them():
    assert histogram(pl.Series([0.25, 0.25])) == Histogram(whole=False, edges=[0.125, 0.375], scored=[2])
    assert histogram(pl.Series([0.0])) == Histogram(whole=False, edges=[-0.5, 0.5], scored=[1])
    assert histogram(pl.Series([], dtype=pl.Float64)) is None


@given(st.lists(st.floats(allow_nan=True) | st.sampled_from([0.1 * n for n in range(12)]), max_size=30))
def test_no_number_is_lost_or_counted_twice(numbers):
    counts, finite = histogram(pl.Series(numbers, dtype=pl.Float64)), [one for one in numbers if abs(one) <= 1e100]
    if counts is None:
        assert finite == []
        return
    assert sum(counts.scored) == len(finite)
    assert counts.edges == sorted(set(counts.edges))
    assert counts.edges[0] <= min(finite)
    assert max(finite) <= counts.edges[-1]
    assert len(counts.scored) <= 23


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 40), min_size=1, max_size=30))
def test_no_whole_number_is_lost_or_counted_twice(numbers):
    counts = histogram(pl.Series(numbers, dtype=pl.UInt32))
    assert counts is not None
    assert sum(counts.scored) == len(numbers)
    assert counts.edges[0] <= min(numbers)
    assert len(counts.scored) <= 24


def test_what_has_a_reward_is_told_apart_from_what_is_in_the_output():
    told = statistics_of(
        attempt(1, 1.0, num_turns=2, num_tool_calls=1, prompt_chars=100, answer_chars=20),
        attempt(1, 0.0, num_turns=4, num_tool_calls=3, prompt_chars=100, answer_chars=None, reason="low_reward"),
        {"counts": False, "failed": True, "reason": "failure", "reward": None},
    )
    assert (told.num_scored, told.to, told.inputs) == (2, "sft", ["a.jsonl"])
    for measure, scored, used in (
        (told.rewards, 0.5, 1),
        (told.turns, 3, 2),
        (told.tool_calls, 2, 1),
        (told.prompt_chars, 100, 100),
        (told.answer_chars, 20, 20),
    ):
        assert (measure.scored.mean, measure.used.mean) == (scored, used)
    assert told.answer_chars.scored.count == 1
    assert (told.turns.histogram.scored, told.turns.histogram.used) == ([1, 0, 1], [1, 0, 0])


def test_tasks_are_counted_by_how_often_they_are_solved():
    told = statistics_of(
        *(attempt(1, reward) for reward in (1.0, 1.0)),
        *(attempt(2, reward) for reward in (1.0, 0.0, 0.5)),
        *(attempt(3, reward) for reward in (0.0, 0.5)),
        attempt(4, 0.0),
        {"counts": False, "failed": True, "task": 5, "reward": None, "reason": "failure"},
    ).tasks
    assert told.num_tasks == 4
    assert (told.num_always_solved, told.num_sometimes_solved, told.num_never_solved) == (1, 1, 2)
    assert (told.num_without_signal, told.num_tried_once) == (2, 1)
    assert told.attempts == Distribution(count=4, mean=2, min=1, lower_quartile=1.75, median=2, upper_quartile=2.25, max=3)
    # Mean rewards: 1, 0.5, 0.25 and 0.
    assert [place for place, count in enumerate(told.mean_rewards.scored) if count] == [0, 5, 10, 19]


def test_repetitions_are_counted_among_all_and_in_the_output():
    same = (attempt(1, 1.0, answer=7), attempt(1, 1.0, answer=7), attempt(1, 0.0, answer=7, reason="low_reward"))
    others = (attempt(2, 1.0, answer=7), attempt(1, 1.0, answer=8), attempt(1, 0.0, answer=None, reason="no_answer"))
    told = statistics_of(*same, *others).duplicates
    assert (told.num_compared, told.num_repeated, told.num_repeated_in_output) == (5, 2, 1)


def test_repetitions_that_one_pass_dropped_are_not_in_the_output():
    rollouts = (attempt(1, 1.0, answer=7), attempt(1, 1.0, answer=7), attempt(1, 1.0, answer=8))
    told = statistics_of(*rollouts, dedupe="exact")
    assert (told.rewards.scored.count, told.rewards.used.count) == (3, 2)
    assert (told.duplicates.num_repeated, told.duplicates.num_repeated_in_output) == (1, 0)


@pytest.mark.parametrize(
    ("rewards", "components", "looks", "levels"),
    [
        ((1.0, 1.0), {}, "constant", 1),
        ((1.0, 0.0, 0.0), {}, "binary", 2),
        ((1.0, 0.0, 0.5), {"accuracy": 3}, "continuous", 3),
        ((1.0, 0.0), {"format": 1, "accuracy": 2}, "multi-metric", 2),
    ],
)
def test_the_kind_of_the_reward_is_read_off_its_values_and_components(rewards, components, looks, levels):
    kind = statistics_of(*(attempt(task, reward) for task, reward in enumerate(rewards)), components=components).reward_kind
    assert (kind.looks, kind.num_levels, kind.components) == (looks, levels, components)


def test_pairs_tell_their_margins_and_whether_longer_answers_are_chosen():
    lengths = (30, 10, 20, 20, 5, 9, 8, None, 7, 6)
    rollouts = [attempt(n // 2, 1.0 if n % 2 == 0 else 0.25 * (n // 2 % 2), answer_chars=one) for n, one in enumerate(lengths)]
    pairs = pl.DataFrame({"task": [0, 1, 2, 3, 4], "first": [0, 2, 4, 6, 8], "second": [1, 3, 5, 7, 9]})
    told = statistics_of(*rollouts, to="dpo", pairs=pairs).pairs
    assert told.num_pairs == 5
    # Rewards of the rejected: 0, 0.25, 0, 0.25, 0.
    assert told.margins == Distribution(count=5, mean=0.9, min=0.75, lower_quartile=0.75, median=1, upper_quartile=1, max=1)
    assert (told.num_chosen_longer, told.num_chosen_shorter, told.num_same_length) == (2, 1, 1)
    assert told.chosen_longer_share == pytest.approx(2 / 3)
    assert (told.chosen_longer_low, told.chosen_longer_high) == pytest.approx((0.20766, 0.93851), abs=1e-5)


def test_the_wilson_interval_agrees_with_published_values():
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3.
    for hits, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(hits, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(29, 29)[1] == 1


def test_train_and_validation_share_no_task_and_the_prompts_are_looked_at():
    rollouts = (
        attempt(1, 1.0, validation=False, prompt=1),
        attempt(1, 1.0, validation=False, prompt=1),
        attempt(2, 1.0, validation=False, prompt=2),
        attempt(3, 1.0, validation=True, prompt=2),
        attempt(4, 0.0, validation=True, prompt=1, reason="low_reward"),
    )
    told = statistics_of(*rollouts, split=0.5).split
    assert (told.num_train_tasks, told.num_validation_tasks, told.num_shared_tasks, told.num_shared_prompts) == (2, 1, 0, 1)
    blind = [rollout | {"prompt": None} for rollout in rollouts]
    assert statistics_of(*blind, split=0.5).split.num_shared_prompts is None
    assert statistics_of(*rollouts).split is None


def test_a_task_in_both_files_would_be_told():
    told = statistics_of(attempt(1, 1.0, validation=False), attempt(1, 1.0, validation=True), split=0.5).split
    assert told.num_shared_tasks == 1


def test_each_algorithm_finds_its_rows_whatever_the_filters_dropped():
    told = statistics_of(
        attempt(1, 1.0),
        attempt(1, 0.0, reason="where"),
        attempt(2, 0.95, answer_chars=None),
        attempt(2, 0.2, reason="low_reward"),
        attempt(3, 1.0, truncated=True, reason="truncated"),
        attempt(3, 0.0, reason="low_reward"),
        attempt(4, 0.9),
        attempt(5, 1.0, answer_chars=None, num_tool_calls=1),
        attempt(5, 1.0, answer_chars=0, num_tool_calls=None),
    )
    assert feed_of(told, "sft", "sft") == (3, None)
    assert feed_of(told, "sft", "response") == (2, None)
    assert feed_of(told, "dpo") == (1, None)
    assert feed_of(told, "reward_model") == (2, None)
    assert feed_of(told, "grpo") == (3, None)
    assert feed_of(told, "online") == (5, None)


@pytest.mark.parametrize(
    ("rollouts", "sft", "dpo", "grpo"),
    [
        ([{"counts": False, "reward": None}], *["No rollout has a reward."] * 3),
        (
            [attempt(1, 0.0), attempt(2, 0.5)],
            "No answer has a reward of 0.9 or more.",
            "The answers belong to a task each, and a comparison needs several of one.",
            "The rollouts belong to a task each, and a comparison needs several of one.",
        ),
        (
            [attempt(1, 0.5), attempt(1, 0.5)],
            "No answer has a reward of 0.9 or more.",
            "The answers of every task all have the same reward.",
            "The rollouts of every task all have the same reward.",
        ),
        ([attempt(1, 1.0, truncated=True), attempt(1, 0.0, truncated=True)], *["A limit ended every rollout."] * 2, None),
        (
            [attempt(1, 1.0, answer_chars=None), attempt(1, 0.0, answer_chars=0)],
            *["No complete rollout ends with an answer's text."] * 2,
            None,
        ),
        (
            [attempt(1, 1.0, content=1), attempt(1, 0.0, content=2)],
            None,
            "The answers of a task that differ in reward have no prompt in common.",
            None,
        ),
    ],
)
def test_an_algorithm_that_finds_nothing_says_why(rollouts, sft, dpo, grpo):
    told = statistics_of(*rollouts)
    assert (feed_of(told, "sft", "response")[1], feed_of(told, "dpo")[1], feed_of(told, "grpo")[1]) == (sft, dpo, grpo)


@pytest.mark.parametrize(
    ("rollout", "why"),
    [
        (attempt(1, 0.5), "No such rollout has a reward of 0.9 or more."),
        (attempt(1, 1.0, answer_chars=0), "In no complete rollout the model says or calls anything."),
        (attempt(1, 1.0, truncated=True), "A limit ended every rollout."),
    ],
)
def test_without_a_good_conversation_the_reason_is_told(rollout, why):
    assert feed_of(statistics_of(rollout), "sft", "sft") == (0, why)


def test_the_commonest_tools_come_first():
    assert list(statistics_of(attempt(1, 1.0), tools={"a": 1, "b": 3, "c": 2}).tools.items()) == [("b", 3), ("c", 2), ("a", 1)]


def test_without_a_rollout_there_are_statistics_of_nothing():
    told = statistics_of({"counts": False, "reason": "bad_row"}, split=0.5)
    assert (told.num_scored, told.reward_kind, told.rewards.scored, told.turns.histogram) == (0, None, None, None)
    assert (told.tasks.num_tasks, told.tasks.attempts, told.tasks.mean_rewards) == (0, None, None)
    assert told.split.num_shared_tasks == 0


def test_a_million_rollouts_take_seconds():
    num_rows = 1_000_000
    rng, numbers = np.random.default_rng(0), np.arange(num_rows, dtype=np.uint64)
    values = {
        "counts": np.ones(num_rows, dtype=bool),
        "truncated": np.zeros(num_rows, dtype=bool),
        "task": numbers // 8,
        "content": numbers // 8,
        "answer": rng.integers(0, 2**62, num_rows, dtype=np.uint64),
        "reward": rng.random(num_rows),
        "num_turns": rng.integers(1, 9, num_rows, dtype=np.uint32),
        "num_tool_calls": rng.integers(0, 9, num_rows, dtype=np.uint32),
        "prompt_chars": rng.integers(10, 3000, num_rows, dtype=np.uint32),
        "answer_chars": rng.integers(10, 3000, num_rows, dtype=np.uint32),
    }
    rest = [pl.lit(None, dtype).alias(name) for name, dtype in SCHEMA.items() if name not in values]
    index = pl.DataFrame(values).with_columns(rest)
    plan = make_plan([Path("a.jsonl")], TransformSettings(to="dpo", output=Path("o.jsonl"), report=Path("r.json")))
    started = time.perf_counter()
    told = make_statistics(index, plan, pairs=None, tools=Counter(), components=Counter())
    assert time.perf_counter() - started < 10
    assert (told.tasks.num_tasks, told.rewards.scored.count) == (125_000, num_rows)
