"""Divergence of two policies from tokens that one of them sampled. N = those tokens."""

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""Exponents of ratios are at most this: beyond it, float32 would soon be infinite, and such a token says nothing more."""


def bounded_exp(log_ratios: Tensor) -> Tensor:
    """exp of each, at most e^20, without gradient above."""
    return log_ratios.clamp(max=MAX_LOG_RATIO).exp()


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: Estimator) -> Tensor:
    """For each token [N] that pi sampled an estimate of KL(pi || pi_ref), Schulman 2020, "Approximating KL divergence".

    k1 = -x                unbiased, of either sign, noisy
    k2 = x^2 / 2           biased, small where the two are near
    k3 = exp(x) - 1 - x    unbiased, never negative,           x = ref_logprobs - logprobs

    Their gradients by themselves are other things: their means are for k1 0, for k2 the gradient of KL(pi || pi_ref), and for k3
    that of KL(pi_ref || pi). `kl_loss_terms` is there to be differentiated.
    """
    log_ratios = ref_logprobs - logprobs
    match estimator:
        case "k1":
            return -log_ratios
        case "k2":
            return log_ratios.square() / 2
        case "k3":
            return bounded_exp(log_ratios) - 1 - log_ratios


def kl_loss_terms(logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, *, estimator: Estimator) -> Tensor:
    """For each token [N] that the old policy sampled its part of KL(pi || pi_ref), to be differentiated.

    k1, k3   r k            r = exp(logprobs - old_logprobs)    DeepSeek-AI 2025 (V3.2), eq. 7, for k3
    k2       sg(r) k

    The mean of each one's gradient is that of KL(pi || pi_ref) at the token, whichever policy sampled. The plain k3 of GRPO pulls
    another way, and with the weight pi_ref/pi, without bound on tokens that the policy has learnt to avoid. What a token does to
    the divergence of later ones counts in none of these, but only in a reward.
    """
    ratios = bounded_exp(logprobs - old_logprobs)
    return (ratios.detach() if estimator == "k2" else ratios) * kl_estimates(logprobs, ref_logprobs, estimator=estimator)


def divergences(sampled_logprobs: Tensor, other_logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """For each token [N] that p sampled its estimates of KL(p || q) and KL(q || p), both never negative.

    w - 1 - log w   and   w log w - (w - 1),   w = q/p

    Unbiased, as the mean of w over what p samples is 1.
    """
    log_ratios = other_logprobs - sampled_logprobs
    ratios = bounded_exp(log_ratios)
    return ratios - 1 - log_ratios, ratios * log_ratios - (ratios - 1)


def sampler_gap(rollout_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """exp |difference| [N] between what the sampler and the trainer say of each token, 1 where they agree."""
    return torch.exp((rollout_logprobs - logprobs).abs())
