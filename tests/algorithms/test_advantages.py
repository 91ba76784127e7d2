import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.algorithms.advantages import group_advantages


def test_without_scaling_an_advantage_is_the_reward_less_the_mean():
    assert group_advantages([1.0, 0.0, 0.0, 1.0], scale_by_std=False) == [0.5, -0.5, -0.5, 0.5]


def test_with_scaling_it_is_divided_by_the_sample_standard_deviation():
    # mean 2, sample variance (4 + 0 + 4) / 2 = 4, so the standard deviation is 2
    assert group_advantages([0.0, 2.0, 4.0], scale_by_std=True) == pytest.approx([-2 / 2.000001, 0.0, 2 / 2.000001], abs=1e-12)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("rewards", [[], [1.0], [0.1] * 3, [1 / 3] * 7, [0.0, -0.0]])
def test_groups_without_spread_have_advantages_of_exactly_zero(rewards, scale):
    assert group_advantages(rewards, scale_by_std=scale) == [0.0] * len(rewards)


@given(st.lists(st.floats(-100, 100), max_size=32), st.booleans())
def test_advantages_add_up_to_zero(rewards, scale):
    advantages = group_advantages(rewards, scale_by_std=scale)
    assert len(advantages) == len(rewards)
    assert sum(advantages) == pytest.approx(0.0, abs=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=32), st.booleans())
def test_a_higher_reward_never_has_a_lower_advantage(rewards, scale):
    advantages = group_advantages(rewards, scale_by_std=scale)
    ordered = [advantage for _, advantage in sorted(zip(rewards, advantages, strict=True))]
    assert ordered == sorted(ordered)
