"""The estimators over a whole vocabulary: their means, and the means of their gradients, against sums over all tokens."""

import math

import pytest
import torch

from gym_bridge.algorithms.kl import divergences, kl_estimates, kl_loss_terms, sampler_gap

LOGITS = torch.tensor([0.3, -1.2, 0.9, 0.1], dtype=torch.float64)
REF = torch.tensor([0.5, 0.1, -0.4, 0.8], dtype=torch.float64).log_softmax(0)
OLD = torch.tensor([-0.2, -0.9, 1.1, 0.6], dtype=torch.float64).log_softmax(0)


def kl(first, second):
    return (first.exp() * (first - second)).sum()


def gradient_of(value, leaf):
    return torch.autograd.grad(value, leaf)[0].tolist()


def exact_gradient():
    leaf = LOGITS.clone().requires_grad_()
    return gradient_of(kl(leaf.log_softmax(0), REF), leaf)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_two_estimators_are_unbiased(estimator):
    logprobs = LOGITS.log_softmax(0)
    mean = (logprobs.exp() * kl_estimates(logprobs, REF, estimator=estimator)).sum()
    assert mean.item() == pytest.approx(kl(logprobs, REF).item(), abs=1e-12)


def test_each_estimate_equals_its_formula():
    one, other = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)
    found = {name: kl_estimates(one, other, estimator=name).item() for name in ("k1", "k2", "k3")}
    assert found == pytest.approx({"k1": 0.5, "k2": 0.125, "k3": math.exp(-0.5) - 1 + 0.5}, abs=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_every_loss_term_has_the_gradient_of_the_divergence_whichever_policy_sampled(estimator):
    leaf = LOGITS.clone().requires_grad_()
    terms = kl_loss_terms(leaf.log_softmax(0), OLD, REF, estimator=estimator)
    assert gradient_of((OLD.exp() * terms).sum(), leaf) == pytest.approx(exact_gradient(), abs=1e-12)


def test_the_plain_estimates_have_other_gradients():
    found = {}
    for estimator in ("k1", "k2", "k3"):
        leaf = LOGITS.clone().requires_grad_()
        logprobs = leaf.log_softmax(0)
        found[estimator] = gradient_of((logprobs.detach().exp() * kl_estimates(logprobs, REF, estimator=estimator)).sum(), leaf)
    leaf = LOGITS.clone().requires_grad_()
    forward = gradient_of(kl(REF, leaf.log_softmax(0)), leaf)
    assert found["k1"] == pytest.approx([0.0] * 4, abs=1e-12)
    assert found["k2"] == pytest.approx(exact_gradient(), abs=1e-12)
    assert found["k3"] == pytest.approx(forward, abs=1e-12)
    assert found["k3"] != pytest.approx(exact_gradient(), abs=1e-2)


def test_tokens_far_apart_keep_values_and_gradients_finite():
    for estimator in ("k1", "k2", "k3"):
        leaf = torch.tensor([-500.0, -1e-6]).requires_grad_()
        terms = kl_loss_terms(leaf, torch.tensor([-1e-6, -500.0]), torch.tensor([-1e-6, -500.0]), estimator=estimator)
        terms.sum().backward()
        assert leaf.grad is not None
        assert torch.isfinite(terms).all()
        assert torch.isfinite(leaf.grad).all()


def test_divergences_both_ways_are_unbiased_and_never_negative():
    forward, backward = divergences(OLD, REF)
    assert (OLD.exp() * forward).sum().item() == pytest.approx(kl(OLD, REF).item(), abs=1e-12)
    assert (OLD.exp() * backward).sum().item() == pytest.approx(kl(REF, OLD).item(), abs=1e-12)
    assert min(forward.min(), backward.min()) >= 0


def test_the_gap_is_1_where_sampler_and_trainer_agree_and_tells_no_direction():
    gap = sampler_gap(torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-1.0, -1.0, -2.0]))
    assert gap.tolist() == pytest.approx([1.0, math.e, math.e])
