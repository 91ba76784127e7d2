import pytest

from gym_bridge.algorithms.rewards import overlong_penalty, scaled, slope


def test_a_reward_is_moved_on_the_line_between_two_ranges():
    line = {"source": (0.0, 10.0), "target": (-1.0, 1.0)}
    assert [scaled(one, **line) for one in (0.0, 2.5, 5.0, 10.0)] == [-1.0, -0.5, 0.0, 1.0]
    assert slope(**line) == 0.2


def test_a_reward_outside_of_its_range_counts_as_its_border():
    assert [scaled(one, source=(0.0, 1.0), target=(2.0, 4.0)) for one in (-3.0, 7.0)] == [2.0, 4.0]


def test_a_target_that_runs_backwards_turns_a_cost_into_a_reward():
    assert scaled(3.0, source=(0.0, 4.0), target=(1.0, 0.0)) == 0.25


@pytest.mark.parametrize(("num_tokens", "expected"), [(0, 0.0), (80, 0.0), (81, -0.1), (90, -1.0), (100, -2.0), (101, -2.0)])
def test_the_overlong_penalty_falls_linearly_through_the_buffer_and_no_further(num_tokens, expected):
    # limit 100, buffer 20, whole penalty 2: a twentieth of it a token
    assert overlong_penalty(num_tokens, limit=100, buffer=20, size=2.0) == pytest.approx(expected, abs=1e-12)


def test_a_buffer_longer_than_the_limit_begins_with_the_first_token():
    assert [overlong_penalty(one, limit=4, buffer=50, size=1.0) for one in (0, 1, 4)] == [0.0, -0.25, -1.0]
