import numpy as np
import pytest

from gym_bridge.algorithms.gae import explained_variance, generalised_advantages


def slow_advantages(rewards, values, gamma, lam):
    """The sum over all later errors, written out: A_n = sum_l (gamma lam)^l delta_(n+l)."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * v_next - v for r, v_next, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** (m - n) * deltas[m] for m in range(n, len(deltas))) for n in range(len(deltas))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0)])
def test_advantages_equal_the_sum_over_all_later_errors(gamma, lam):
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(2, 40))
    advantages, returns = generalised_advantages(rewards, values, gamma=gamma, lam=lam)
    assert advantages.tolist() == pytest.approx(slow_advantages(rewards, values, gamma, lam), abs=1e-12)
    assert returns.tolist() == pytest.approx((advantages + values).tolist(), abs=1e-12)


def test_with_lambda_1_the_returns_are_the_discounted_rewards_whatever_the_values():
    _, returns = generalised_advantages(np.array([0.0, 0.0, 8.0]), np.array([3.0, -7.0, 0.5]), gamma=0.5, lam=1.0)
    assert returns.tolist() == [2.0, 4.0, 8.0]


def test_with_lambda_0_a_token_is_compared_with_the_next_value_alone():
    advantages, returns = generalised_advantages(np.array([0.0, 1.0]), np.array([0.25, 0.75]), gamma=1.0, lam=0.0)
    assert advantages.tolist() == [0.5, 0.25]
    assert returns.tolist() == [0.75, 1.0]


def test_nothing_sampled_has_no_advantages():
    assert [len(one) for one in generalised_advantages(np.zeros(0), np.zeros(0), gamma=1.0, lam=0.95)] == [0, 0]


def test_explained_variance_is_1_for_perfect_values_and_0_for_constant_ones():
    returns = np.array([0.0, 1.0, 2.0, 5.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns - 3, returns) == 1.0
    assert explained_variance(np.full(4, 2.0), returns) == 0.0
    assert explained_variance(-returns, returns) == -3.0
    assert explained_variance(np.array([0.0, 1.0]), np.array([1.0, 1.0])) == 0.0
