import itertools
import math
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.evaluation.estimates import (
    Estimate,
    best_at_k,
    cons_at_k,
    mean_over_tasks,
    mean_reward,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    student_t_p_value,
    student_t_quantile,
)

rewards_by_task = st.dictionaries(st.integers(0, 50), st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=5), min_size=2)


@pytest.mark.parametrize(
    ("dof", "quantile"),
    [(1, 12.7062047362), (2, 4.3026527297), (5, 2.5705818356), (9, 2.2621571628), (30, 2.0422724563), (100, 1.9839715185)],
)
def test_the_t_quantile_agrees_with_tables(dof, quantile):
    assert student_t_quantile(0.975, dof) == pytest.approx(quantile, abs=1e-9)


@pytest.mark.parametrize("probability", [0.001, 0.2, 0.5, 0.6, 0.9, 0.975, 0.9999])
def test_the_t_quantile_agrees_with_closed_forms_for_one_and_two_degrees_of_freedom(probability):
    assert student_t_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)), rel=1e-9, abs=1e-12)
    two = (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    assert student_t_quantile(probability, 2) == pytest.approx(two, rel=1e-9, abs=1e-12)


def test_the_t_quantile_nears_the_normal_one_as_cornish_and_fisher_say():
    # Abramowitz and Stegun 26.7.5: t = x + (x^3 + x) / (4 n) + (5 x^5 + 16 x^3 + 3 x) / (96 n^2) + O(n^-3)
    x, n = statistics.NormalDist().inv_cdf(0.975), 100_000
    assert student_t_quantile(0.975, n) == pytest.approx(
        x + (x**3 + x) / (4 * n) + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * n**2), abs=1e-9
    )


@pytest.mark.parametrize("t", [0.01, 0.5, 1.0, 2.5, 40.0])
def test_the_p_value_agrees_with_closed_forms_and_has_no_sign(t):
    assert student_t_p_value(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-10)
    assert student_t_p_value(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-10)
    assert student_t_p_value(-t, 7) == student_t_p_value(t, 7)


def test_the_p_value_spans_one_to_zero():
    assert student_t_p_value(0.0, 5) == 1.0
    assert student_t_p_value(1e200, 5) == 0.0


@given(st.integers(1, 100_000), st.floats(0, 50))
def test_the_p_value_is_a_probability_that_falls_with_t(dof, t):
    assert 1 >= student_t_p_value(t, dof) >= student_t_p_value(t + 0.5, dof) >= 0


def test_ten_tasks_have_the_interval_worked_out_by_hand():
    # Means 0.0 to 0.9: mean 0.45, variance 0.825 / 9, standard error sqrt(0.0916667 / 10) = 0.0957427108.
    estimate = mean_reward({task: [task / 10] for task in range(10)})
    assert (estimate.mean, estimate.num_tasks, estimate.p_value) == (0.45, 10, None)
    assert estimate.high - estimate.mean == pytest.approx(2.2621571628 * 0.0957427108, abs=1e-9)
    assert estimate.mean - estimate.low == pytest.approx(2.2621571628 * 0.0957427108, abs=1e-9)


@given(rewards_by_task, st.integers(1, 100))
def test_identical_attempts_add_nothing(rewards, num_copies):
    once = {task: attempts[:1] for task, attempts in rewards.items()}
    assert mean_reward({task: attempts * num_copies for task, attempts in once.items()}) == mean_reward(once)


def test_a_hundred_equal_attempts_have_exactly_their_reward_as_mean():
    estimate = mean_reward({task: [0.1] * 100 for task in range(7)})
    assert estimate == Estimate(mean=0.1, low=0.1, high=0.1, num_tasks=7)


def test_tasks_weigh_the_same_however_often_they_were_attempted():
    assert mean_reward({"often": [1.0] * 9, "once": [0.0]}).mean == 0.5


def test_one_task_alone_has_no_bounds():
    assert mean_reward({0: [1.0, 0.0]}) == Estimate(mean=0.5, low=-math.inf, high=math.inf, num_tasks=1)
    assert paired_difference({0: [0.0]}, {0: [1.0]}) == Estimate(mean=1.0, low=-math.inf, high=math.inf, num_tasks=1)


@pytest.mark.parametrize("rewards", [{}, {3: []}, {3: [1.0, math.nan]}, {3: [math.inf]}])
def test_no_reward_or_one_that_is_no_number_is_refused(rewards):
    with pytest.raises(ConfigError, match=r"no task has a reward|task 3 has rewards"):
        mean_reward(rewards)


def test_a_paired_difference_is_worked_out_by_hand():
    # Differences 1, 1, 0, 0: mean 1/2, variance 1/3, standard error 1/sqrt(12), t = sqrt(3) with 3 degrees of freedom.
    # There P(|T| > t) = 1 - 2/pi (u + sin u cos u) with u = atan(t / sqrt(3)) = pi/4, so 1 - 2/pi (pi/4 + 1/2).
    before = {"a": [0.0], "b": [0.0, 0.0], "c": [1.0], "d": [0.5]}
    after = {"d": [0.0, 1.0], "c": [1.0, 1.0], "b": [1.0], "a": [1.0]}
    estimate = paired_difference(before, after)
    assert (estimate.mean, estimate.num_tasks) == (0.5, 4)
    assert estimate.p_value == pytest.approx(0.5 - 1 / math.pi, abs=1e-12)
    assert estimate.high == pytest.approx(0.5 + 3.1824463053 / math.sqrt(12), abs=1e-9)


@given(rewards_by_task, st.data())
def test_the_p_value_is_below_five_percent_where_the_interval_leaves_zero_out(before, data):
    after = {task: data.draw(st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=3)) for task in before}
    estimate, mirrored = paired_difference(before, after), paired_difference(after, before)
    assert mirrored.mean == -estimate.mean
    assert mirrored.p_value == estimate.p_value
    if min(abs(estimate.low), abs(estimate.high)) > 1e-6:
        assert (estimate.p_value < 0.05) == (estimate.low > 0 or estimate.high < 0)


def test_differences_without_spread_are_certain():
    assert paired_difference({0: [0.0], 1: [0.5]}, {0: [0.0], 1: [0.5]}).p_value == 1.0
    assert paired_difference({0: [0.0], 1: [0.5]}, {0: [0.5], 1: [1.0]}).p_value == 0.0


def test_a_task_that_one_side_lacks_is_named():
    with pytest.raises(ConfigError, match="task 'b' is missing from 'after'"):
        paired_difference({"a": [1.0], "b": [1.0]}, {"a": [1.0]})
    with pytest.raises(ConfigError, match="task 'c' is missing from 'before'"):
        paired_difference({"a": [1.0]}, {"a": [1.0], "c": [1.0]})


@pytest.mark.parametrize(("estimator", "of_subset"), [(pass_at_k, min), (pass_hat_k, max)])
def test_subsets_are_counted_in_which_any_or_all_attempts_are_solved(estimator, of_subset):
    for num_attempts in range(1, 9):
        for num_solved, k in itertools.product(range(num_attempts + 1), range(1, num_attempts + 1)):
            subsets = list(itertools.combinations(range(num_attempts), k))
            expected = sum(of_subset(subset) < num_solved for subset in subsets) / len(subsets)
            assert estimator(num_attempts, num_solved, k) == pytest.approx(expected, abs=1e-12)


def test_large_counts_of_solved_attempts_do_not_overflow():
    assert pass_hat_k(10_000, 9_999, 5_000) == 0.5


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.data())
def test_best_at_k_is_the_mean_over_all_subsets_of_the_highest_reward(rewards, data):
    k = data.draw(st.integers(1, len(rewards)))
    subsets = list(itertools.combinations(rewards, k))
    expected = math.fsum(map(max, subsets)) / len(subsets)
    assert best_at_k(rewards, k) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=12), st.data())
def test_with_rewards_of_0_and_1_the_best_is_whether_any_is_solved(rewards, data):
    k = data.draw(st.integers(1, len(rewards)))
    assert best_at_k(rewards, k) == pytest.approx(pass_at_k(len(rewards), int(sum(rewards)), k), abs=1e-12)


def voted(answers, rewards, k):
    """By all subsets."""
    mean = {one: statistics.fmean(r for a, r in zip(answers, rewards, strict=True) if a == one) for one in answers}
    found = []
    for subset in itertools.combinations(answers, k):
        votes = Counter(one for one in subset if one is not None)
        winners = [one for one, count in votes.items() if count == max(votes.values())]
        found.append(statistics.fmean(mean[one] for one in winners) if winners else 0.0)
    return statistics.fmean(found)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.floats(-2, 2)), min_size=1, max_size=9), st.data())
def test_cons_at_k_is_the_mean_over_all_subsets_of_what_the_majority_earns(attempts, data):
    answers, rewards = zip(*attempts, strict=True)
    k = data.draw(st.integers(1, len(attempts)))
    assert cons_at_k(answers, rewards, k) == pytest.approx(voted(answers, rewards, k), abs=1e-12)


def test_cons_at_k_in_closed_form():
    assert cons_at_k(["4", "4", "5"], [1.0, 1.0, 0.0], 3) == 1.0
    assert cons_at_k(["4", "5"], [1.0, 0.0], 2) == 0.5  # they tie
    assert cons_at_k([None, None], [0.0, 0.0], 2) == 0.0
    assert cons_at_k([None, "4"], [0.0, 1.0], 2) == 1.0  # who has no answer does not vote
    # 64 different answers, of which one is right: k of them tie, the right one is among them with k / 64.
    assert cons_at_k(range(64), [1.0] + [0.0] * 63, 32) == pytest.approx(1 / 64, abs=1e-12)
    # Of 33 right and 31 wrong all vote; of one attempt it is the share.
    halves = ["4"] * 33 + ["5"] * 31
    assert cons_at_k(halves, [1.0] * 33 + [0.0] * 31, 64) == 1.0
    assert cons_at_k(halves, [1.0] * 33 + [0.0] * 31, 1) == pytest.approx(33 / 64, abs=1e-12)


def test_a_value_a_task_gives_the_interval_of_as_many_tasks():
    assert mean_over_tasks([0.5, 1.0]) == mean_reward({"a": [0.0, 1.0], "b": [1.0] * 100})
    with pytest.raises(ConfigError, match="no task has a value"):
        mean_over_tasks([])


def test_pass_at_one_is_the_share_solved_and_large_counts_do_not_overflow():
    assert pass_at_k(10, 3, 1) == 0.3
    assert pass_at_k(10_000, 1, 5_000) == 0.5


@pytest.mark.parametrize(("num_attempts", "num_solved", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_impossible_counts_are_refused(num_attempts, num_solved, k):
    with pytest.raises(ConfigError, match=f"pass@{k} with {num_solved} of {num_attempts}"):
        pass_at_k(num_attempts, num_solved, k)
    with pytest.raises(ConfigError, match=rf"pass\^{k} with {num_solved} of {num_attempts}"):
        pass_hat_k(num_attempts, num_solved, k)


@pytest.mark.parametrize(("rewards", "k"), [([1.0], 2), ([1.0, 0.0], 0), ([], 1)])
def test_a_best_of_more_attempts_than_there_are_is_refused(rewards, k):
    with pytest.raises(ConfigError, match=f"best@{k} with"):
        best_at_k(rewards, k)
