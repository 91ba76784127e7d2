import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.algorithms.advantages import (
    component_advantages,
    group_advantages,
    have_spread,
    rank_rewards,
    turn_advantages,
    whitened,
)

REWARDS = st.lists(st.floats(-100, 100), max_size=32)


def test_without_scaling_an_advantage_is_the_reward_less_the_mean():
    assert group_advantages([1.0, 0.0, 0.0, 1.0], scale_by_std=False) == [0.5, -0.5, -0.5, 0.5]


def test_with_scaling_it_is_divided_by_the_sample_standard_deviation():
    # mean 2, sample variance (4 + 0 + 4) / 2 = 4, so the standard deviation is 2
    assert group_advantages([0.0, 2.0, 4.0], scale_by_std=True) == pytest.approx([-2 / 2.000001, 0.0, 2 / 2.000001], abs=1e-12)


def test_left_out_of_its_own_baseline_a_reward_is_compared_with_its_siblings():
    assert group_advantages([3.0, 0.0, 0.0], baseline="leave_one_out", scale_by_std=False) == [3.0, -1.5, -1.5]


def test_of_two_each_is_the_others_baseline():
    assert group_advantages([0.1, 0.4], baseline="leave_one_out", scale_by_std=False) == [0.1 - 0.4, 0.4 - 0.1]


def test_a_lone_success_among_equal_siblings_is_scaled_by_the_whole_groups_deviation():
    # the siblings' own deviation is 0; the group's is sqrt((0.75^2 + 3 * 0.25^2) / 3) = 0.5
    found = group_advantages([1.0, 0.0, 0.0, 0.0], baseline="leave_one_out", scale_by_std=True)
    assert found == pytest.approx([1 / 0.500001, *[-1 / 3 / 0.500001] * 3], abs=1e-12)


def test_without_a_baseline_a_reward_is_its_own_advantage():
    assert group_advantages([0.3], baseline="none", scale_by_std=False) == [0.3]
    assert group_advantages([0.3, 0.3], baseline="none", scale_by_std=True) == [0.3, 0.3]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("rewards", [[], [1.0], [0.1] * 3, [1 / 3] * 7, [0.0, -0.0], [0.1 + 0.2, 0.3], [0.7, 0.1 * 7, 0.7]])
def test_groups_without_spread_have_advantages_of_exactly_zero(rewards, baseline, scale):
    assert group_advantages(rewards, baseline=baseline, scale_by_std=scale) == [0.0] * len(rewards)


def test_a_spread_is_told_from_rounding_at_any_size():
    assert not have_spread([0.1 + 0.2, 0.3])
    assert not have_spread([1e9, 1e9 + 1e-3])
    assert have_spread([0.0, 1e-12])
    assert have_spread([1.0, 1.0 + 1e-6])


@given(REWARDS, st.sampled_from(["mean", "leave_one_out"]), st.booleans())
def test_advantages_add_up_to_zero(rewards, baseline, scale):
    advantages = group_advantages(rewards, baseline=baseline, scale_by_std=scale)
    assert len(advantages) == len(rewards)
    assert sum(advantages) == pytest.approx(0.0, abs=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=32), st.sampled_from(["mean", "leave_one_out", "none"]), st.booleans())
def test_a_higher_reward_never_has_a_lower_advantage(rewards, baseline, scale):
    advantages = group_advantages(rewards, baseline=baseline, scale_by_std=scale)
    ordered = [advantage for _, advantage in sorted(zip(rewards, advantages, strict=True))]
    assert all(one <= other + 1e-9 for one, other in itertools.pairwise(ordered))


def test_turns_are_credited_with_what_was_earned_from_them_on():
    found = turn_advantages([[1.0, 2.0, 4.0], [0.5]], baseline="none", scale_by_std=False)
    assert found == [[7.0, 6.0, 4.0], [0.5]]


def test_a_turn_is_compared_with_the_same_turn_of_rollouts_that_reached_it():
    # returns-to-go: [3, 2], [5, 1], [1]
    rewards = [[1.0, 2.0], [4.0, 1.0], [1.0]]
    assert turn_advantages(rewards, baseline="mean", scale_by_std=False) == [[0.0, 0.5], [2.0, -0.5], [-2.0]]
    assert turn_advantages(rewards, baseline="leave_one_out", scale_by_std=False) == [[0.0, 1.0], [3.0, -1.0], [-3.0]]


def test_where_no_sibling_came_so_far_the_last_turn_that_one_reached_is_the_baseline():
    found = turn_advantages([[0.0, 0.0, 1.0], [0.0, 0.25], [0.5]], baseline="leave_one_out", scale_by_std=False)
    assert found == [[1 - 0.375, 0.75, 0.75], [0.25 - 0.75, 0.25 - 1.0], [0.5 - 0.625]]


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("siblings", [[], [[]], [[], []]])
@pytest.mark.parametrize("scale", [True, False])
def test_a_rollout_none_of_whose_siblings_has_a_turn_learns_nothing_from_a_baseline(baseline, siblings, scale):
    found = turn_advantages([[0.5, 0.5], *siblings], baseline=baseline, scale_by_std=scale)
    assert found == [[0.0, 0.0], *siblings]


def test_turns_are_scaled_by_the_deviation_of_all_returns_of_the_group():
    # returns-to-go 2, 2, 0, 0: mean 1, sample variance 4/3
    found = turn_advantages([[0.0, 2.0], [0.0, 0.0]], baseline="mean", scale_by_std=True)
    scale = math.sqrt(4 / 3) + 1e-6
    assert found == [pytest.approx([1 / scale] * 2, abs=1e-12), pytest.approx([-1 / scale] * 2, abs=1e-12)]


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_rollouts_of_equal_rewards_and_different_lengths_have_turns_of_exactly_zero(baseline):
    rewards = [[0.0, 0.0, 0.1], [0.1], [0.0, 0.1], []]
    assert turn_advantages(rewards, baseline=baseline, scale_by_std=True) == [[0.0] * 3, [0.0], [0.0] * 2, []]


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "none"])
@pytest.mark.parametrize("scale", [True, False])
def test_rollouts_of_one_turn_have_the_advantages_of_their_group(baseline, scale):
    rewards = [0.1, 0.7, 0.4]
    found = turn_advantages([[one] for one in rewards], baseline=baseline, scale_by_std=scale)
    assert [one for (one,) in found] == pytest.approx(group_advantages(rewards, baseline=baseline, scale_by_std=scale), abs=1e-12)


STAY, GOOD = 0.3, -0.4  # logits of going on after the first turn, and of the better move in the second
ENDS = {"stop": [0.6], "good": [0.2, 1.0], "bad": [0.2, 0.3]}  # rewards of the turns of each possible rollout


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def chance_and_scores(end):
    """The chance of a rollout, and the derivative of each turn's log-prob by its own logit."""
    stay, good = sigmoid(STAY), sigmoid(GOOD)
    if end == "stop":
        return 1 - stay, [-stay]
    return stay * (good if end == "good" else 1 - good), [1 - stay, (1 - good) if end == "good" else -good]


def expected_gradient(baseline, size):
    """The mean over all groups of `size` of the policy gradient by both logits, each group weighed by its chance."""
    total = np.zeros(2)
    for ends in itertools.product(ENDS, repeat=size):
        found = turn_advantages([ENDS[end] for end in ends], baseline=baseline, scale_by_std=False)
        chance = math.prod(chance_and_scores(end)[0] for end in ends)
        for end, advantages in zip(ends, found, strict=True):
            for turn, (score, advantage) in enumerate(zip(chance_and_scores(end)[1], advantages, strict=True)):
                total[turn] += chance * score * advantage / size
    return total


def true_gradient():
    """By hand, of J = (1 - s) 0.6 + s (0.2 + g 1.0 + (1 - g) 0.3)."""
    stay, good = sigmoid(STAY), sigmoid(GOOD)
    return np.array([stay * (1 - stay) * (0.2 + good * 1.0 + (1 - good) * 0.3 - 0.6), stay * good * (1 - good) * 0.7])


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("baseline", ["leave_one_out", "none"])
def test_the_unbiased_credit_of_turns_has_the_gradient_of_the_mean_reward(baseline, size):
    assert expected_gradient(baseline, size) == pytest.approx(true_gradient(), abs=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_groups_own_mean_shrinks_the_gradient_of_turns_that_few_reach(size):
    first, second = expected_gradient("mean", size) / true_gradient()
    assert first == pytest.approx(1 - 1 / size, abs=1e-12)
    others = [math.comb(size - 1, k) * sigmoid(STAY) ** k * (1 - sigmoid(STAY)) ** (size - 1 - k) for k in range(size)]
    assert second == pytest.approx(sum(chance * (1 - 1 / (1 + k)) for k, chance in enumerate(others)), abs=1e-12)
    assert second < first - 0.05


def test_components_are_normalised_apart_so_that_a_rare_one_counts_as_much():
    components = [{"right": 1.0, "short": 10.0}, {"right": 0.0, "short": 10.0}, {"right": 0.0, "short": 40.0}]
    apart = {name: group_advantages([one[name] for one in components], scale_by_std=True) for name in ("right", "short")}
    found = component_advantages(components, weights={"short": 0.5}, baseline="mean", scale_by_std=True)
    assert found == pytest.approx([one + 0.5 * other for one, other in zip(apart["right"], apart["short"], strict=True)], abs=1e-12)


def test_components_that_cancel_in_the_sum_still_have_advantages_of_their_own():
    components = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}]
    assert component_advantages(components, weights={"a": 2.0}, baseline="mean", scale_by_std=False) == [0.5, -0.5]


def test_whitened_values_have_mean_0_and_deviation_1():
    found = whitened([np.array([1.0, 2.0]), np.array([3.0, 6.0])])
    everything = np.concatenate(found)
    assert everything.mean() == pytest.approx(0.0, abs=1e-12)
    assert everything.std() == pytest.approx(1.0, abs=1e-6)
    assert [len(one) for one in found] == [2, 2]


def test_an_entry_that_counts_n_times_whitens_as_n_entries_do():
    once = whitened([np.array([1.0]), np.array([4.0])], [3, 1])
    spelt = whitened([np.array([1.0, 1.0, 1.0]), np.array([4.0])])
    assert [once[0][0], once[1][0]] == pytest.approx([spelt[0][0], spelt[1][0]], abs=1e-12)
    # mean 7/4, variance (3 * 9/16 + 81/16) / 4 = 27/16
    assert once[1][0] == pytest.approx(2.25 / (math.sqrt(27 / 16) + 1e-6), abs=1e-12)


@pytest.mark.parametrize("values", [[], [[]], [[0.1, 0.1], [0.1]], [[5.0]]])
def test_values_without_spread_are_whitened_to_exactly_0(values):
    assert [one.tolist() for one in whitened([np.array(one) for one in values])] == [[0.0] * len(one) for one in values]


def test_what_counts_nothing_moves_no_other():
    with_it = whitened([np.array([1.0]), np.array([3.0]), np.array([100.0])], [2, 2, 0])
    assert [with_it[0][0], with_it[1][0]] == pytest.approx([-1.0, 1.0], abs=1e-5)


def test_ranked_rollouts_have_the_share_of_siblings_that_they_beat():
    assert rank_rewards([0, 1, 2]) == [1.0, 0.5, 0.0]
    assert rank_rewards([3, 1, 1]) == [0.0, 0.75, 0.75]
    assert rank_rewards([7]) == [0.5]
    assert rank_rewards([]) == []


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_the_mean_of_rank_rewards_is_one_half(ranks):
    assert sum(rank_rewards(ranks)) / len(ranks) == pytest.approx(0.5, abs=1e-12)
