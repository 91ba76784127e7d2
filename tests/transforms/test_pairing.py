import hashlib
import itertools
from collections import Counter
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.transform_settings import PairStrategy
from gym_bridge.transforms import pairing
from gym_bridge.transforms.pairing import Pairs, make_pairs

Rollout = tuple[int, str, str, str, float]  # row, task, prompt, answer, reward
Pair = tuple[int, int]  # row of the chosen, row of the rejected

STRATEGIES: list[PairStrategy] = ["best_worst", "all", "adjacent", "random"]


def frame_of(rollouts: list[Rollout]) -> pl.DataFrame:
    schema = {"row": pl.UInt32, "task_key": pl.String, "prompt_key": pl.Binary, "answer_key": pl.String, "reward": pl.Float64}
    return pl.DataFrame([(row, task, prompt.encode(), *rest) for row, task, prompt, *rest in rollouts], schema=schema, orient="row")


def made(rollouts: list[Rollout], strategy: PairStrategy = "best_worst", **options: Any) -> Pairs:
    defaults: dict[str, Any] = {"min_margin": 0.0, "max_pairs_per_task": None, "min_reward": None, "seed": 0}
    return make_pairs(frame_of(rollouts), strategy=strategy, **{**defaults, **options})


def siblings(*rewards: float, answers: str = "") -> list[Rollout]:
    return [(row, "t", "p", answers[row] if answers else str(row), reward) for row, reward in enumerate(rewards)]


def pairs_of(result: Pairs) -> list[Pair]:
    return list(result.pairs.select("chosen_row", "rejected_row").iter_rows())


def reasons_of(result: Pairs) -> dict[int, str]:
    return dict(result.unpaired.iter_rows())


def test_the_first_of_the_best_meets_the_first_of_the_worst():
    result = made(siblings(0.5, 1.0, 0.0, 1.0, 0.0))
    assert result.pairs.rows() == [("t", 1, 2, 1.0)]
    assert reasons_of(result) == {0: "spare", 3: "spare", 4: "spare"}
    assert (result.num_paired, result.num_unpaired()) == (2, {"spare": 3})


def test_all_makes_every_pair_with_a_margin_the_widest_first():
    result = made(siblings(0.5, 1.0, 0.0, 0.5), "all")
    assert pairs_of(result) == [(1, 2), (0, 2), (1, 0), (1, 3), (3, 2)]
    assert result.pairs["margin"].to_list() == [1.0, 0.5, 0.5, 0.5, 0.5]
    assert result.num_paired == 4


def test_adjacent_pairs_neighbours_in_reward():
    result = made(siblings(1.0, 0.0, 0.0, 0.5, 1.0), "adjacent")
    # in order of reward: 1, 2 (0.0), 3 (0.5), 0, 4 (1.0)
    assert pairs_of(result) == [(0, 3), (3, 2)]
    assert reasons_of(result) == {1: "spare", 4: "spare"}


def test_random_matches_every_rollout_of_the_rarer_binary_reward():
    rewards = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    drawn = {tuple(sorted(pairs_of(made(siblings(*rewards), "random", seed=seed)))) for seed in range(20)}
    assert all({chosen for chosen, _ in pairs} == {0, 3, 6} for pairs in drawn)
    assert all(len({rejected for _, rejected in pairs}) == 3 for pairs in drawn)
    assert len(drawn) > 10, "another seed is another draw"
    assert pairs_of(made(siblings(*rewards), "random", seed=3)) == pairs_of(made(siblings(*rewards), "random", seed=3))


def test_random_pairs_are_capped_as_they_were_drawn():
    rollouts = siblings(*[1.0, 0.9, 0.8, 0.0, 0.1, 0.2] * 3)
    whole = pairs_of(made(rollouts, "random", seed=5))
    assert pairs_of(made(rollouts, "random", seed=5, max_pairs_per_task=2)) == whole[:2]
    assert len(whole) == 9


def test_the_cap_counts_pairs_of_a_task_over_its_prompts_and_keeps_the_widest():
    rollouts: list[Rollout] = [
        (0, "t", "p", "a", 1.0),
        (1, "t", "p", "b", 0.75),
        (2, "t", "q", "a", 1.0),
        (3, "t", "q", "b", 0.0),
        (4, "u", "p", "a", 1.0),
        (5, "u", "p", "b", 0.5),
    ]
    result = made(rollouts, "all", max_pairs_per_task=1)
    assert result.pairs.rows() == [("t", 2, 3, 1.0), ("u", 4, 5, 0.5)]
    assert reasons_of(result) == {0: "spare", 1: "spare"}


def test_tasks_come_in_the_order_of_their_first_rollout_whatever_the_order_of_the_frame():
    rollouts: list[Rollout] = [(7, "a", "p", "x", 1.0), (2, "b", "p", "x", 0.0), (9, "b", "p", "y", 1.0), (3, "a", "p", "y", 0.0)]
    assert made(rollouts).pairs.rows() == [("b", 9, 2, 1.0), ("a", 7, 3, 1.0)]


def test_another_prompt_is_no_sibling():
    result = made([(0, "t", "p", "a", 1.0), (1, "t", "q", "b", 0.0)])
    assert reasons_of(result) == {0: "no_partner", 1: "no_partner"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_unpaired_rollout_has_its_reason(strategy: PairStrategy):
    assert reasons_of(made(siblings(1.0), strategy)) == {0: "no_partner"}
    assert reasons_of(made(siblings(1.0, 1.0), strategy)) == {0: "tie", 1: "tie"}
    assert reasons_of(made(siblings(1.0, 0.5), strategy, min_margin=0.5)) == {0: "small_margin", 1: "small_margin"}
    assert pairs_of(made(siblings(1.0, 0.5), strategy, min_margin=0.25)) == [(0, 1)]
    assert reasons_of(made(siblings(1.0, 0.5, answers="aa"), strategy)) == {0: "same_answer", 1: "same_answer"}
    assert reasons_of(made(siblings(0.5, 0.0), strategy, min_reward=0.6)) == {0: "low_reward", 1: "low_reward"}
    assert pairs_of(made(siblings(0.5, 0.0), strategy, min_reward=0.5)) == [(0, 1)]


def test_a_rollout_in_the_middle_may_be_too_close_to_both_ends():
    assert reasons_of(made(siblings(1.0, 0.5, 0.0), "all", min_margin=0.5)) == {1: "small_margin"}


def test_a_refused_pair_tells_why_though_its_members_could_be_in_others():
    assert reasons_of(made(siblings(1.0, 0.5, 0.0, answers="aba"))) == {0: "same_answer", 1: "spare", 2: "same_answer"}
    assert pairs_of(made(siblings(1.0, 0.5, 0.0, answers="aba"), "all")) == [(0, 1), (1, 2)]
    low = reasons_of(made(siblings(1.0, 0.5, 0.25), "adjacent", min_reward=0.75))
    assert low == {2: "low_reward"}


def test_no_rollouts_make_no_pairs():
    for strategy in STRATEGIES:
        result = made([], strategy)
        assert (len(result.pairs), len(result.unpaired), result.num_paired, result.num_unpaired()) == (0, 0, 0, {})
        assert result.pairs.columns == ["task_key", "chosen_row", "rejected_row", "margin"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "best_wurst"}, "did you mean 'best_worst'"),
        ({"min_margin": -0.1}, "expected 0 or more"),
        ({"min_margin": float("nan")}, "expected 0 or more"),
        ({"max_pairs_per_task": 0}, "expected 1 or more"),
    ],
)
def test_settings_that_are_no_such_thing_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        made(siblings(1.0, 0.0), **options)


def test_a_task_too_large_for_all_pairs_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pairing, "MAX_PAIRS_OF_A_TASK", 8)
    with pytest.raises(ConfigError, match="look at 9 pairs of siblings of task 't', more than 8; take adjacent"):
        made(siblings(1.0, 0.0, 0.5), "all")
    assert len(made(siblings(1.0, 0.0, 0.5), "adjacent").pairs) == 2


def test_the_pairs_of_a_huge_task_are_counted_beyond_32_bits():
    with pytest.raises(ConfigError, match=f"look at {2**32} pairs"):
        made(siblings(*[0.0, 1.0] * 2**15), "all")


# A slow reference: loops over lists, by the definitions.


def draw(row: int, seed: int, purpose: str) -> int:
    key = int.from_bytes(hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=8).digest(), "big")
    z = ((row + 1) * 0x9E3779B97F4A7C15 + key) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def drawn_pairs(group: list[Rollout], strategy: PairStrategy, seed: int) -> list[tuple[Rollout, Rollout]]:
    if strategy == "best_worst":
        return [(max(group, key=lambda one: one[4]), min(group, key=lambda one: one[4]))]
    if strategy == "all":
        return list(itertools.permutations(group, 2))
    if strategy == "adjacent":
        ordered = sorted(group, key=lambda one: one[4])
        return [(after, before) for before, after in itertools.pairwise(ordered)]
    ordered = sorted(group, key=lambda one: (one[4], draw(one[0], seed, "tie")))
    half = len(group) // 2
    upper = sorted(ordered[len(group) - half :], key=lambda one: draw(one[0], seed, "order"))
    return list(zip(upper, ordered[:half], strict=True))


STAGES = ["no_partner", "tie", "small_margin", "same_answer", "low_reward", "spare"]


def stage(chosen: Rollout, rejected: Rollout, min_margin: float, min_reward: float) -> int:
    """How far a pair comes, as an index of STAGES."""
    if chosen[4] == rejected[4]:
        return 1
    if chosen[4] - rejected[4] <= min_margin:
        return 2
    if chosen[3] == rejected[3]:
        return 3
    return 4 if chosen[4] < min_reward else 5


def reference(
    rollouts: list[Rollout],
    strategy: PairStrategy,
    *,
    min_margin: float,
    max_pairs_per_task: int | None,
    min_reward: float,
    seed: int,
) -> tuple[list[Pair], dict[int, str]]:
    rollouts = sorted(rollouts)
    groups: dict[tuple[str, str], list[Rollout]] = {}
    tasks: dict[str, list[tuple[Rollout, Rollout]]] = {}
    for one in rollouts:
        groups.setdefault((one[1], one[2]), []).append(one)
        tasks.setdefault(one[1], [])
    reached, refused = dict.fromkeys((one[0] for one in rollouts), 0), dict.fromkeys((one[0] for one in rollouts), 0)
    for group in groups.values():
        for pair in itertools.permutations(group, 2):
            rejected, chosen = sorted(pair, key=lambda one: one[4])
            for member in pair:
                reached[member[0]] = max(reached[member[0]], stage(chosen, rejected, min_margin, min_reward))
        for pair in drawn_pairs(group, strategy, seed):
            far = stage(pair[0], pair[1], min_margin, min_reward)
            if pair[0][4] > pair[1][4] and far >= 3:
                for member in pair:
                    refused[member[0]] = max(refused[member[0]], far)
            if pair[0][4] > pair[1][4] and far == 5:
                tasks[pair[0][1]].append(pair)
    kept: list[Pair] = []
    for pairs in tasks.values():
        key = (lambda one: draw(one[0][0], seed, "order")) if strategy == "random" else (lambda one: one[1][4] - one[0][4])
        pairs.sort(key=lambda one: (key(one), one[0][0], one[1][0]))
        kept += [(chosen[0], rejected[0]) for chosen, rejected in pairs[:max_pairs_per_task]]
    used = {row for pair in kept for row in pair}
    return kept, {row: STAGES[refused[row] or reached[row]] for row in reached if row not in used}


ROLLOUTS = st.lists(
    st.tuples(
        st.sampled_from("ab"), st.sampled_from("ppq"), st.sampled_from("xyz"), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0])
    ),
    max_size=14,
).flatmap(
    lambda members: st.permutations(range(3, 3 + len(members))).map(
        lambda rows: [(row, *member) for row, member in zip(rows, members, strict=True)]
    )
)


@settings(deadline=None, max_examples=150)
@given(
    rollouts=ROLLOUTS,
    strategy=st.sampled_from(STRATEGIES),
    min_margin=st.sampled_from([0.0, 0.0, 0.25, 0.6]),
    cap=st.sampled_from([None, None, 1, 2]),
    min_reward=st.sampled_from([None, None, 0.25, 1.0]),
    seed=st.integers(-2, 2),
)
def test_a_slow_reference_agrees_and_no_rollout_is_lost_or_counted_twice(
    rollouts: list[Rollout], strategy: PairStrategy, min_margin: float, cap: int | None, min_reward: float | None, seed: int
):
    result = made(rollouts, strategy, min_margin=min_margin, max_pairs_per_task=cap, min_reward=min_reward, seed=seed)
    pairs, reasons = reference(
        rollouts,
        strategy,
        min_margin=min_margin,
        max_pairs_per_task=cap,
        min_reward=float("-inf") if min_reward is None else min_reward,
        seed=seed,
    )
    assert pairs_of(result) == pairs
    assert reasons_of(result) == reasons
    assert result.num_unpaired() == Counter(reasons.values())
    by_row = {one[0]: one for one in rollouts}
    paired = {row for pair in pairs_of(result) for row in pair}
    assert paired | set(reasons_of(result)) == set(by_row)
    assert result.num_paired + len(result.unpaired) == len(rollouts)
    for task, chosen, rejected, margin in result.pairs.iter_rows():
        assert by_row[chosen][:3] == (chosen, task, by_row[rejected][2])
        assert margin == by_row[chosen][4] - by_row[rejected][4] > min_margin


@settings(deadline=None, max_examples=20)
@given(rollouts=ROLLOUTS, at_once=st.integers(1, 40))
def test_all_pairs_do_not_depend_on_how_many_tasks_are_looked_at_at_once(rollouts: list[Rollout], at_once: int):
    whole = made(rollouts, "all", max_pairs_per_task=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairing, "PAIRS_AT_ONCE", at_once)
        parts = made(rollouts, "all", max_pairs_per_task=3)
    assert parts.pairs.equals(whole.pairs)
    assert parts.unpaired.equals(whole.unpaired)
