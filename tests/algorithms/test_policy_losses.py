"""The terms of single tokens by hand; whole losses are held against a slow reference in tests/trainers/test_policy_loss.py."""

import math

import pytest
import torch

from gym_bridge.algorithms.policy_losses import (
    clipped_surrogate,
    clipped_value_loss,
    clipped_weight,
    reinforce,
    sampler_weights,
    sequence_ratios,
    step_mean,
    token_ratios,
)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def surrogate(ratios, advantages, **options):
    """Losses, slopes by the log-probs and clipped tokens, low and high, of ratios to an old log-prob of 0."""
    leaf = doubles(*(math.log(one) for one in ratios)).requires_grad_()
    terms = clipped_surrogate(token_ratios(leaf, torch.zeros_like(leaf)), doubles(*advantages), **options)
    (slopes,) = torch.autograd.grad(terms.losses.sum(), leaf)
    return terms.losses.tolist(), slopes.tolist(), terms.clipped_low.tolist(), terms.clipped_high.tolist()


def test_a_ratio_above_the_upper_bound_earns_no_more_and_has_no_gradient():
    losses, slopes, low, high = surrogate([2.0], [3.0], clip_low=0.2, clip_high=0.5)
    assert losses == pytest.approx([-4.5], abs=1e-12)
    assert (slopes, low, high) == ([0.0], [False], [True])


def test_a_ratio_below_the_lower_bound_of_a_bad_token_has_no_gradient():
    losses, slopes, low, high = surrogate([0.25], [-2.0], clip_low=0.5, clip_high=0.2)
    assert losses == pytest.approx([1.0], abs=1e-12)
    assert (slopes, low, high) == ([0.0], [True], [False])


def test_the_clip_never_stops_a_correction():
    losses, slopes, low, high = surrogate([4.0, 0.25], [-1.0, 1.0])
    assert losses == pytest.approx([4.0, -0.25], abs=1e-12)
    assert slopes == pytest.approx([4.0, -0.25], abs=1e-12)
    assert (low, high) == ([False] * 2, [False] * 2)


def test_at_ratio_one_the_slope_is_minus_the_advantage():
    assert surrogate([1.0, 1.0], [0.5, -1.5])[1] == pytest.approx([-0.5, 1.5], abs=1e-12)


def test_the_dual_clip_bounds_what_a_bad_token_costs():
    losses, slopes, low, high = surrogate([5.0, 2.0, 5.0], [-1.0, -1.0, 0.1], dual_clip=3.0)
    assert losses == pytest.approx([3.0, 2.0, -0.12], abs=1e-12)
    assert slopes == pytest.approx([0.0, 2.0, 0.0], abs=1e-12)
    assert (low, high) == ([False] * 3, [True, False, True])


def test_a_token_without_an_advantage_is_never_clipped():
    assert surrogate([9.0, 0.1], [0.0, 0.0], dual_clip=3.0) == ([0.0, 0.0], [0.0, 0.0], [False] * 2, [False] * 2)


def test_ratios_far_off_stay_finite():
    leaf = torch.tensor([0.0, -300.0], requires_grad=True)
    terms = clipped_surrogate(token_ratios(leaf, torch.tensor([-300.0, 0.0])), torch.tensor([-1.0, 0.0]))
    terms.losses.sum().backward()
    assert torch.isfinite(terms.losses).all()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()


def test_a_sequences_ratio_is_the_geometric_mean_and_each_token_keeps_its_own_slope():
    leaf = doubles(math.log(2.0), math.log(8.0), math.log(0.5)).requires_grad_()
    ratios = sequence_ratios(leaf, torch.zeros_like(leaf), torch.tensor([0, 0, 1]))
    assert ratios.tolist() == pytest.approx([4.0, 4.0, 0.5], abs=1e-12)
    (slopes,) = torch.autograd.grad((ratios * doubles(1.0, 0.0, 0.0)).sum(), leaf)
    assert slopes.tolist() == pytest.approx([4.0, 0.0, 0.0], abs=1e-12)


def test_with_one_advantage_a_sequence_its_ratio_has_the_gradient_of_gspo():
    """GSPO's own form has one ratio a sequence, whose gradient spreads over all tokens."""
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    sequence = torch.tensor([0] * 3 + [1] * 7 + [2] * 2)
    advantages = doubles(1.5, -0.5, 2.0)
    totals = {"num_tokens": 12, "num_sequences": 3}
    leaf = new.clone().requires_grad_()
    whole = doubles().new_zeros(3).index_add(0, sequence, leaf - old) / doubles(3, 7, 2)
    (expected,) = torch.autograd.grad(-(whole.exp() * advantages).mean(), leaf)
    ratios = sequence_ratios(leaf, old, sequence)
    value = step_mean(-ratios * advantages[sequence], sequence, over="sequences", **totals)
    (found,) = torch.autograd.grad(value, leaf)
    assert value.item() == pytest.approx(-(whole.exp() * advantages).mean().item(), abs=1e-12)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_a_clipped_weight_stops_no_gradient():
    leaf = doubles(math.log(9.0), math.log(0.5), math.log(0.1)).requires_grad_()
    ratios = token_ratios(leaf, torch.zeros_like(leaf))
    terms = clipped_weight(leaf, ratios, doubles(2.0, -1.0, 1.0), clip_low=0.75, clip_high=4.0)
    (slopes,) = torch.autograd.grad(terms.losses.sum(), leaf)
    assert slopes.tolist() == pytest.approx([-10.0, 0.5, -0.25], abs=1e-12)
    assert (terms.clipped_low.tolist(), terms.clipped_high.tolist()) == ([False, False, True], [True, False, False])


def test_reinforce_has_the_advantage_as_slope_whatever_the_ratio():
    leaf = doubles(-1.0, -4.0).requires_grad_()
    (slopes,) = torch.autograd.grad(reinforce(leaf, doubles(2.0, -3.0)).losses.sum(), leaf)
    assert slopes.tolist() == [-2.0, 3.0]


def test_means_are_over_the_whole_step():
    values, sequence = doubles(1.0, 2.0, 6.0), torch.tensor([0, 0, 1])
    totals = {"num_tokens": 10, "num_sequences": 4}
    assert step_mean(values, sequence, over="tokens", **totals).item() == pytest.approx(0.9)
    assert step_mean(values, sequence, over="sequences", **totals).item() == pytest.approx((1.5 + 6.0) / 4)
    assert step_mean(values, sequence, over="fixed", fixed_length=3, **totals).item() == pytest.approx(9.0 / 12)


def test_each_correction_weighs_or_drops_what_the_sampler_and_the_trainer_see_differently():
    # w = 4, 1/2 in the first sequence, of geometric mean sqrt 2; 1/8, 1/2 in the second, of geometric mean 1/4
    old, rollout = doubles(math.log(4), math.log(0.5), math.log(0.125), math.log(0.5)), torch.zeros(4, dtype=torch.float64)
    sequence = torch.tensor([0, 0, 1, 1])

    def weights(correction):
        return sampler_weights(old, rollout, sequence, correction=correction, low=0.4, high=2.0).tolist()

    assert weights("none") == [1.0] * 4
    assert weights("tis") == pytest.approx([2.0, 0.5, 0.125, 0.5], abs=1e-12)
    assert weights("icepop") == pytest.approx([0.0, 0.5, 0.0, 0.5], abs=1e-12)
    assert weights("seq_mask") == [1.0, 1.0, 0.0, 0.0]


def test_corrections_of_a_gap_beyond_all_numbers_stay_finite():
    for correction, expected in (("tis", 2.0), ("icepop", 0.0), ("seq_mask", 0.0)):
        far = sampler_weights(
            torch.tensor([0.0]), torch.tensor([-200.0]), torch.tensor([0]), correction=correction, low=0.5, high=2.0
        )
        assert far.tolist() == [expected]


def test_the_value_loss_is_half_the_squared_error_of_the_worse_of_two_values():
    # values 1.0, old 0.0, clip 0.2: bounded at 0.2
    leaf = doubles(1.0, 1.0, -1.0, 0.1).requires_grad_()
    terms = clipped_value_loss(leaf, doubles(0.0, 0.0, 0.0, 0.0), doubles(2.0, 0.0, -2.0, 1.0), clip=0.2)
    (slopes,) = torch.autograd.grad(terms.losses.sum(), leaf)
    assert terms.losses.tolist() == pytest.approx([1.8**2 / 2, 0.5, 1.8**2 / 2, 0.9**2 / 2], abs=1e-12)
    assert slopes.tolist() == pytest.approx([0.0, 1.0, 0.0, -0.9], abs=1e-12)
    assert terms.clipped_high.tolist() == [True, False, False, False]
    assert terms.clipped_low.tolist() == [False, False, True, False]


def test_without_a_clip_the_value_loss_is_half_the_squared_error():
    leaf = doubles(1.0).requires_grad_()
    terms = clipped_value_loss(leaf, doubles(0.0), doubles(3.0), clip=None)
    assert (terms.losses.tolist(), terms.clipped_high.tolist()) == ([2.0], [False])
