"""Each loss and its gradient against the formula pair by pair, in plain floats with derivatives taken by hand."""

import math
from functools import partial

import pytest
import torch

from gym_bridge.algorithms.preference_losses import (
    bradley_terry_loss,
    by_sequence,
    dpo_loss,
    ipo_loss,
    kto_loss,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_dpo(chosen, rejected, *, beta, label_smoothing=0.0):
    h = beta * (chosen - rejected)
    slope = beta * (label_smoothing * sigmoid(h) - (1 - label_smoothing) * sigmoid(-h))
    return -(1 - label_smoothing) * math.log(sigmoid(h)) - label_smoothing * math.log(sigmoid(-h)), slope, -slope


def slow_robust(chosen, rejected, *, beta, label_smoothing):
    right, right_slope, _ = slow_dpo(chosen, rejected, beta=beta)
    wrong, _, wrong_slope = slow_dpo(rejected, chosen, beta=beta)
    scale = 1 - 2 * label_smoothing
    slope = ((1 - label_smoothing) * right_slope - label_smoothing * wrong_slope) / scale
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / scale, slope, -slope


def slow_ipo(chosen, rejected, *, beta):
    off = chosen - rejected - 0.5 / beta
    return off**2, 2 * off, -2 * off


def slow_simpo(chosen, rejected, *, beta, margin):
    h = beta * (chosen - rejected) - margin
    return -math.log(sigmoid(h)), -beta * sigmoid(-h), beta * sigmoid(-h)


def slow_odds_ratio(chosen, rejected):
    p, q = math.exp(chosen), math.exp(rejected)
    h = math.log((p / (1 - p)) / (q / (1 - q)))
    # d/dl log(p / (1 - p)) = 1 / (1 - p)
    return -math.log(sigmoid(h)), -sigmoid(-h) / (1 - p), sigmoid(-h) / (1 - q)


def slow_kto(chosen, rejected, *, beta, baseline):
    good, bad = sigmoid(beta * (chosen - baseline)), sigmoid(beta * (baseline - rejected))
    return (1 - good + 1 - bad) / 2, -beta * good * (1 - good) / 2, beta * bad * (1 - bad) / 2


def slow_bradley_terry(chosen, rejected, *, margin, centring):
    h, both = chosen - rejected - margin, chosen + rejected
    pull = 2 * centring * both
    return -math.log(sigmoid(h)) + centring * both**2, pull - sigmoid(-h), pull + sigmoid(-h)


CASES = {
    "dpo": (dpo_loss, slow_dpo, {"beta": 0.3}),
    "cdpo": (dpo_loss, slow_dpo, {"beta": 0.3, "label_smoothing": 0.2}),
    "robust": (robust_dpo_loss, slow_robust, {"beta": 0.3, "label_smoothing": 0.2}),
    "ipo": (ipo_loss, slow_ipo, {"beta": 0.3}),
    "simpo": (simpo_loss, slow_simpo, {"beta": 2.0, "margin": 0.7}),
    "odds ratio": (odds_ratio_loss, slow_odds_ratio, {}),
    "kto": (kto_loss, slow_kto, {"beta": 0.3, "baseline": 0.4}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_each_loss_and_its_gradient_equal_the_formula_pair_by_pair(name, seed):
    fast, slow, options = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = (-3 * torch.rand(2, 50, generator=generator, dtype=torch.float64) - 0.01).requires_grad_()
    chosen.retain_grad()
    rejected.retain_grad()
    loss = fast(chosen, rejected, **options, num_pairs=83)
    loss.backward()
    expected = [slow(c, r, **options) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert loss.item() == pytest.approx(sum(one[0] for one in expected) / 83, abs=1e-10)
    for tensor, place in ((chosen, 1), (rejected, 2)):
        assert tensor.grad is not None
        assert tensor.grad.tolist() == pytest.approx([one[place] / 83 for one in expected], abs=1e-10)


def test_bradley_terrys_loss_and_its_gradient_equal_the_formula_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, margins = torch.randn(3, 50, generator=generator, dtype=torch.float64).abs() * torch.tensor([[2], [2], [1]])
    chosen, rejected = (one.clone().requires_grad_() for one in (chosen, rejected))
    loss = bradley_terry_loss(chosen, rejected, margins, centring=0.05, num_pairs=61)
    loss.backward()
    rows = zip(chosen.tolist(), rejected.tolist(), margins.tolist(), strict=True)
    expected = [slow_bradley_terry(c, r, margin=margin, centring=0.05) for c, r, margin in rows]
    assert loss.item() == pytest.approx(sum(one[0] for one in expected) / 61, abs=1e-10)
    for tensor, place in ((chosen, 1), (rejected, 2)):
        assert tensor.grad is not None
        assert tensor.grad.tolist() == pytest.approx([one[place] / 61 for one in expected], abs=1e-10)


def test_at_the_reference_dpo_is_ln_2_and_ipo_the_square_of_its_target():
    zero = torch.zeros(4, dtype=torch.float64)
    for smoothing in (0.0, 0.3):
        loss = dpo_loss(zero, zero, beta=0.1, label_smoothing=smoothing, num_pairs=4)
        assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert robust_dpo_loss(zero, zero, beta=0.1, label_smoothing=0.3, num_pairs=4).item() == pytest.approx(math.log(2), abs=1e-12)
    assert ipo_loss(zero, zero, beta=0.1, num_pairs=4).item() == pytest.approx(25.0, abs=1e-12)
    assert kto_loss(zero, zero, beta=0.1, baseline=0.0, num_pairs=4).item() == pytest.approx(0.5, abs=1e-12)


def test_robust_dpo_averages_to_dpo_over_labels_that_flip():
    chosen, rejected = torch.tensor([[-1.0, 0.5], [-2.0, 1.5]], dtype=torch.float64)
    robust = partial(robust_dpo_loss, beta=0.5, label_smoothing=0.1, num_pairs=2)
    mixed = 0.9 * robust(chosen, rejected) + 0.1 * robust(rejected, chosen)
    assert mixed.item() == pytest.approx(dpo_loss(chosen, rejected, beta=0.5, num_pairs=2).item(), abs=1e-12)


def test_losses_of_parts_add_up_to_that_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = -torch.rand(2, 10, generator=generator, dtype=torch.float64) - 0.01
    for fast, _, options in CASES.values():
        whole = fast(chosen, rejected, **options, num_pairs=10)
        parts = [fast(chosen[cut], rejected[cut], **options, num_pairs=10) for cut in (slice(0, 3), slice(3, 10))]
        assert sum(part.item() for part in parts) == pytest.approx(whole.item(), abs=1e-12)


def test_far_apart_sides_keep_losses_and_gradients_finite():
    for fast, _, options in CASES.values():
        far, near = torch.tensor([-1e4]).requires_grad_(), torch.tensor([0.0]).requires_grad_()
        loss = fast(far, near, **options, num_pairs=1)
        loss.backward()
        assert all(torch.isfinite(one).all() for one in (loss, far.grad, near.grad))


def test_values_are_summed_or_averaged_by_sequence():
    values, sequence = torch.tensor([1.0, 2.0, 5.0, 7.0, 9.0]), torch.tensor([0, 0, 1, 2, 2])
    assert by_sequence(values, sequence, mean=False).tolist() == [3.0, 5.0, 16.0]
    assert by_sequence(values, sequence, mean=True).tolist() == [1.5, 5.0, 8.0]
