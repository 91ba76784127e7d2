"""Policy-gradient losses and the value loss. N = trained tokens of the microbatch, packed; S = sequences in it. No padding reaches
a loss.

A loss is a term for each token and a mean over the whole step: `step_mean` divides by the step's totals, so that microbatches add
up to the same loss however the step was cut. No sequence is parted by a cut.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gym_bridge.algorithms.kl import bounded_exp
from gym_bridge.algorithms.preference_losses import by_sequence

Normaliser = Literal["tokens", "sequences", "fixed"]
Correction = Literal["none", "tis", "icepop", "seq_mask"]


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """What each token adds to a loss, and which tokens a bound of the ratio holds back."""

    losses: Tensor  # [N], with gradient
    clipped_low: Tensor  # [N] bool
    clipped_high: Tensor  # [N] bool


def token_ratios(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The importance ratio of each token [N]: exp(logprobs - old_logprobs)."""
    return bounded_exp(logprobs - old_logprobs)


def sequence_ratios(
    logprobs: Tensor,  # [N] current policy, requires grad
    old_logprobs: Tensor,  # [N]
    sequence: Tensor,  # [N] int64, sequence of each token
) -> Tensor:
    """For each token [N] the geometric mean of the ratios of its sequence (Zheng et al. 2025, GSPO, arXiv 2507.18071, eq. 7), in
    the form that lets each token have an advantage of its own (GSPO-token, section 4.3).

    s_n = sg(s) pi_n / sg(pi_n),   s = exp(1/|y| sum_(n in y) (logprobs - old_logprobs))

    Value and gradient of the loss are GSPO's wherever the tokens of a sequence have one advantage.
    """
    log_ratios = (logprobs - old_logprobs).detach()
    mean = by_sequence(log_ratios, sequence, mean=True)[sequence]
    return bounded_exp(mean + logprobs - logprobs.detach())


def clipped_surrogate(
    ratios: Tensor,  # [N] with gradient
    advantages: Tensor,  # [N]
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> TokenTerms:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), with bounds of their own below and above (DAPO, Yu
    et al. 2025, arXiv 2503.14476, eq. 8) and a bound c on bad tokens (Ye et al. 2020, dual-clip PPO, arXiv 1912.09729).

    l_n = -min(r_n A_n, clip(r_n, 1 - clip_low, 1 + clip_high) A_n),   for A_n < 0 at most -c A_n

    A token is clipped where its gradient is 0: above the upper bound with A_n > 0 or beyond c, below the lower one with A_n < 0.
    """
    free = ratios * advantages
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    gains = torch.minimum(free, bounded)
    stopped = bounded < free
    high, low = stopped & (advantages > 0), stopped & (advantages < 0)
    if dual_clip is not None:
        floor = dual_clip * advantages
        beyond = (advantages < 0) & (gains < floor)
        gains, high = torch.where(beyond, floor, gains), high | beyond
    return TokenTerms(-gains, low, high)


def clipped_weight(
    logprobs: Tensor,  # [N] current policy, requires grad
    ratios: Tensor,  # [N]
    advantages: Tensor,  # [N]
    *,
    clip_low: float,
    clip_high: float,
) -> TokenTerms:
    """CISPO: the ratio is a clipped weight without gradient, so that every token keeps its own (MiniMax 2025, arXiv 2506.13585,
    eq. 4 and 5).

    l_n = -sg(clip(r_n, 1 - clip_low, 1 + clip_high)) A_n logprobs_n
    """
    fixed = ratios.detach()
    weights = fixed.clamp(1 - clip_low, 1 + clip_high)
    return TokenTerms(-weights * advantages * logprobs, fixed < 1 - clip_low, fixed > 1 + clip_high)


def reinforce(logprobs: Tensor, advantages: Tensor) -> TokenTerms:
    """REINFORCE (Williams 1992), for tokens that the current policy sampled: l_n = -A_n logprobs_n."""
    nowhere = torch.zeros_like(logprobs, dtype=torch.bool)
    return TokenTerms(-advantages * logprobs, nowhere, nowhere)


def step_mean(
    values: Tensor,  # [N]
    sequence: Tensor,  # [N] int64, sequence of each token
    *,
    over: Normaliser,
    num_tokens: int,  # trained tokens of the whole step
    num_sequences: int,  # sequences of the whole step
    fixed_length: int = 1,
) -> Tensor:
    """The microbatch's part of the mean over the step.

    tokens     1/num_tokens     sum_n v_n                             DAPO, arXiv 2503.14476, eq. 8
    sequences  1/num_sequences  sum_y 1/|y| sum_(n in y) v_n          GRPO, arXiv 2402.03300, eq. 3
    fixed      1/num_sequences  sum_y 1/fixed_length sum_(n in y) v_n Dr. GRPO, arXiv 2503.20783, section 3.2
    """
    if over == "tokens":
        return values.sum() / num_tokens
    if over == "fixed":
        return values.sum() / (num_sequences * fixed_length)
    return (values / torch.bincount(sequence)[sequence]).sum() / num_sequences


def sampler_weights(
    old_logprobs: Tensor,  # [N] of the trainer before the update
    rollout_logprobs: Tensor,  # [N] of the sampler
    sequence: Tensor,  # [N] int64
    *,
    correction: Correction,
    low: float,
    high: float,
) -> Tensor:
    """What each token's term [N] is multiplied by, as not the trainer but the sampler drew it; w = exp(old - rollout).

    none      1
    tis       min(w, high)                        Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL"
    icepop    w where low <= w <= high, else 0    Ling Team 2025, IcePop, arXiv 2510.18855
    seq_mask  1 where low <= geometric mean of w over the sequence <= high, else 0

    A masked token counts in the step's totals still.
    """
    log_weights = old_logprobs - rollout_logprobs
    if correction == "none":
        return torch.ones_like(log_weights)
    if correction == "tis":
        return log_weights.exp().clamp(max=high)
    if correction == "icepop":
        weights = log_weights.exp()
        return torch.where((weights >= low) & (weights <= high), weights, torch.zeros_like(weights))
    mean = by_sequence(log_weights, sequence, mean=True).exp()[sequence]
    return ((mean >= low) & (mean <= high)).to(log_weights.dtype)


def clipped_value_loss(
    values: Tensor,  # [N] value model, requires grad
    old_values: Tensor,  # [N] before this update
    returns: Tensor,  # [N] what it should have said
    *,
    clip: float | None,
) -> TokenTerms:
    """Half the squared error, of the worse of the value and one that moved at most `clip` (Schulman et al. 2017, PPO's reference
    implementation; Huang et al. 2022, "The 37 implementation details of PPO", detail 9).

    l_n = 1/2 max((v_n - R_n)^2, (clip(v_n, v_old - clip, v_old + clip) - R_n)^2)

    A token is clipped where that bound stops its gradient, below and above the old value apart.
    """
    free = (values - returns).square()
    if clip is None:
        nowhere = torch.zeros_like(values, dtype=torch.bool)
        return TokenTerms(free / 2, nowhere, nowhere)
    bounded = (torch.clamp(values, old_values - clip, old_values + clip) - returns).square()
    stopped = bounded > free
    return TokenTerms(torch.maximum(free, bounded) / 2, stopped & (values < old_values), stopped & (values > old_values))
