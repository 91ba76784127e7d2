"""Losses over packed trained tokens. N = trained tokens of the microbatch; no padding reaches a loss.

Each is divided by the totals of the whole step, so that microbatches add up to the same loss however the step was cut.
"""

import torch
from torch import Tensor


def negative_log_likelihood(
    logprobs: Tensor,  # [N] current policy, requires grad
    weights: Tensor | float = 1.0,  # [N] of each token's sequence
    *,
    num_tokens: int,  # trained tokens of the whole step
) -> Tensor:
    """Mean negative log-likelihood of the step's trained tokens: a long sequence counts more than a short one.

    L = -1/num_tokens  sum_n w_n logprobs_n

    With rewards as weights this is reward-weighted regression, Peters and Schaal 2007 (ICML), on what was sampled.
    """
    return -(weights * logprobs).sum() / num_tokens


def sequence_negative_log_likelihood(
    logprobs: Tensor,  # [N] current policy, requires grad
    sequence: Tensor,  # [N] int64, sequence of each token
    weights: Tensor | float = 1.0,  # [N] of each token's sequence
    *,
    num_sequences: int,  # sequences of the whole step
) -> Tensor:
    """Mean over the step's sequences of each one's mean negative log-likelihood: all sequences count alike.

    L = -1/num_sequences  sum_s 1/N_s  sum_(n in s) w_n logprobs_n
    """
    lengths = torch.bincount(sequence)[sequence]
    return -(weights * logprobs / lengths).sum() / num_sequences
