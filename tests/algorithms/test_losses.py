import math

import pytest
import torch

from gym_bridge.algorithms.losses import clipped_surrogate, negative_log_likelihood, sequence_negative_log_likelihood


def slow_surrogate(logprobs, old_logprobs, advantages, *, clip_low, clip_high, num_tokens):
    """Loss, gradient and clipped tokens of PPO's surrogate, token by token, from the formula and its derivative."""
    total, gradient, clipped = 0.0, [], []
    for new, old, advantage in zip(logprobs, old_logprobs, advantages, strict=True):
        ratio = math.exp(new - old)
        bounded = min(max(ratio, 1 - clip_low), 1 + clip_high)
        total -= min(ratio * advantage, bounded * advantage) / num_tokens
        stopped = (advantage > 0 and ratio > 1 + clip_high) or (advantage < 0 and ratio < 1 - clip_low)
        gradient.append(0.0 if stopped else -ratio * advantage / num_tokens)
        clipped.append(stopped)
    return total, gradient, clipped


def surrogate_and_gradient(logprobs, old, advantages, **options):
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    loss, clipped = clipped_surrogate(leaf, *torch.tensor([old, advantages], dtype=torch.float64), **options)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad.tolist(), clipped.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_clipped_surrogate_and_its_gradient_equal_the_formula_token_by_token(seed):
    generator = torch.Generator().manual_seed(seed)
    old = (torch.rand(200, generator=generator, dtype=torch.float64) * -3).tolist()
    new = [one + shift for one, shift in zip(old, torch.randn(200, generator=generator).mul(0.4).tolist(), strict=True)]
    advantages = torch.randn(200, generator=generator, dtype=torch.float64).tolist()
    options = {"clip_low": 0.2, "clip_high": 0.28, "num_tokens": 731}
    loss, gradient, clipped = surrogate_and_gradient(new, old, advantages, **options)
    expected, expected_gradient, expected_clipped = slow_surrogate(new, old, advantages, **options)
    assert loss == pytest.approx(expected, abs=1e-10)
    assert gradient == pytest.approx(expected_gradient, abs=1e-10)
    assert clipped == expected_clipped
    assert 10 < sum(clipped) < 190


def test_a_ratio_above_the_upper_bound_earns_no_more_and_has_no_gradient():
    loss, gradient, clipped = surrogate_and_gradient([math.log(2.0)], [0.0], [3.0], clip_low=0.2, clip_high=0.5, num_tokens=1)
    assert loss == pytest.approx(-4.5, abs=1e-12)
    assert (gradient, clipped) == ([0.0], [True])


def test_a_ratio_below_the_lower_bound_of_a_bad_token_has_no_gradient():
    loss, gradient, clipped = surrogate_and_gradient([math.log(0.25)], [0.0], [-2.0], clip_low=0.5, clip_high=0.2, num_tokens=1)
    assert loss == pytest.approx(1.0, abs=1e-12)
    assert (gradient, clipped) == ([0.0], [True])


def test_the_clip_never_stops_a_correction():
    loss, gradient, clipped = surrogate_and_gradient([math.log(4.0), math.log(0.25)], [0.0, 0.0], [-1.0, 1.0], num_tokens=2)
    assert loss == pytest.approx((4.0 - 0.25) / 2, abs=1e-12)
    assert gradient == pytest.approx([2.0, -0.125], abs=1e-12)
    assert clipped == [False, False]


def test_at_ratio_one_the_gradient_is_minus_the_advantage_over_the_steps_tokens():
    _, gradient, clipped = surrogate_and_gradient([-1.0, -2.0], [-1.0, -2.0], [0.5, -1.5], num_tokens=10)
    assert gradient == pytest.approx([-0.05, 0.15], abs=1e-12)
    assert clipped == [False, False]


def test_the_negative_log_likelihood_is_divided_by_the_tokens_of_the_whole_step():
    logprobs = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    loss = negative_log_likelihood(logprobs, num_tokens=4)
    loss.backward()
    assert loss.item() == 1.5
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.25, -0.25, -0.25]


def test_weights_multiply_each_tokens_part():
    logprobs = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    loss = negative_log_likelihood(logprobs, torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64), num_tokens=4)
    loss.backward()
    assert loss.item() == (2 + 4 + 1.5) / 4
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.5, -0.5, -0.125]


def test_by_sequence_each_counts_alike_whatever_its_length():
    logprobs = torch.tensor([-1.0, -3.0, -5.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64)
    loss = sequence_negative_log_likelihood(logprobs, torch.tensor([0, 0, 1]), weights, num_sequences=4)
    loss.backward()
    assert loss.item() == (1 * 2 + 3 * 5) / 4
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.125, -0.125, -0.75]
