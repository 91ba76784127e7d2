"""Losses over pairs of a chosen and a rejected sequence. N = trained tokens of the microbatch, S = its sequences, P = its pairs.

Each is divided by the pairs of the whole step, so that microbatches add up to the same loss however the step was cut. What a
side's score is, the caller says: for the losses with a reference the log-ratio log pi(y|x) - log pi_ref(y|x) of the whole
sequence, or its mean over the tokens; for those without one the mean log-prob.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def by_sequence(values: Tensor, sequence: Tensor, *, mean: bool) -> Tensor:
    """Sum, or mean, [S] of the `values` [N] of each sequence's tokens; `sequence` [N] numbers them from 0."""
    lengths = torch.bincount(sequence)
    sums = values.new_zeros(len(lengths)).index_add(0, sequence, values)
    return sums / lengths if mean else sums


def dpo_loss(
    chosen: Tensor,  # [P] log-ratio to the reference, requires grad
    rejected: Tensor,  # [P] the same of the other side
    *,
    beta: float,
    label_smoothing: float = 0.0,  # in [0, 0.5): how often a pair stands the wrong way round
    num_pairs: int,
) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), with smoothed labels cDPO (Mitchell 2023,
    "A note on DPO with noisy preferences"); on mean log-ratios length-normalised DPO (Lambert et al. 2024, arXiv 2411.15124).

    L = -1/num_pairs  sum_p (1 - eps) log sigmoid(h_p) + eps log sigmoid(-h_p),   h = beta (chosen - rejected)
    """
    logits = beta * (chosen - rejected)
    return -((1 - label_smoothing) * logsigmoid(logits) + label_smoothing * logsigmoid(-logits)).sum() / num_pairs


def robust_dpo_loss(
    chosen: Tensor,  # [P] log-ratio to the reference, requires grad
    rejected: Tensor,  # [P]
    *,
    beta: float,
    label_smoothing: float,
    num_pairs: int,
) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): its mean over labels that flip with chance eps is that of DPO.

    L = -1/num_pairs  sum_p ((1 - eps) log sigmoid(h_p) - eps log sigmoid(-h_p)) / (1 - 2 eps),   h = beta (chosen - rejected)
    """
    logits = beta * (chosen - rejected)
    unbiased = (1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
    return -unbiased.sum() / (1 - 2 * label_smoothing) / num_pairs


def ipo_loss(
    chosen: Tensor,  # [P] log-ratio to the reference, requires grad
    rejected: Tensor,  # [P]
    *,
    beta: float,
    num_pairs: int,
) -> Tensor:
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17; its tau is beta).

    L = 1/num_pairs  sum_p (chosen_p - rejected_p - 1/(2 beta))^2
    """
    return (chosen - rejected - 1 / (2 * beta)).square().sum() / num_pairs


def simpo_loss(
    chosen: Tensor,  # [P] mean log-prob, requires grad
    rejected: Tensor,  # [P]
    *,
    beta: float,
    margin: float,
    num_pairs: int,
) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv 2405.14734; its gamma is margin), which needs no reference.

    L = -1/num_pairs  sum_p log sigmoid(beta (chosen_p - rejected_p) - margin)
    """
    return -logsigmoid(beta * (chosen - rejected) - margin).sum() / num_pairs


def odds_ratio_loss(
    chosen: Tensor,  # [P] mean log-prob, below 0, requires grad
    rejected: Tensor,  # [P]
    *,
    num_pairs: int,
) -> Tensor:
    """The odds-ratio term of ORPO (Hong et al. 2024, arXiv 2403.07691), which stands beside a likelihood term.

    L = -1/num_pairs  sum_p log sigmoid(o(chosen_p) - o(rejected_p)),   o(l) = log(p / (1 - p)) = l - log(1 - exp(l)),   p = exp(l)
    """

    def log_odds(logprob: Tensor) -> Tensor:
        bounded = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)  # a certain answer's rounds to 0, whose odds are infinite
        return bounded - torch.log(-torch.expm1(bounded))

    return -logsigmoid(log_odds(chosen) - log_odds(rejected)).sum() / num_pairs


def bradley_terry_loss(
    chosen: Tensor,  # [P] scores, requires grad
    rejected: Tensor,  # [P]
    margins: Tensor,  # [P] by how much a pair's scores should at least differ
    *,
    centring: float = 0.0,
    num_pairs: int,
) -> Tensor:
    """Likelihood of the preferences under Bradley and Terry's model, with margins (Touvron et al. 2023, Llama 2, arXiv 2307.09288,
    eq. 2) and a term that holds the scores around 0 (Eisenstein et al. 2023, arXiv 2312.09244), as only differences count else.

    L = 1/num_pairs  sum_p -log sigmoid(chosen_p - rejected_p - margin_p) + centring (chosen_p + rejected_p)^2
    """
    return (centring * (chosen + rejected).square() - logsigmoid(chosen - rejected - margins)).sum() / num_pairs


def kto_loss(
    chosen: Tensor,  # [P] log-ratio to the reference, requires grad
    rejected: Tensor,  # [P]
    *,
    beta: float,
    baseline: float,  # the step's mean log-ratio of answers to other prompts, at least 0
    num_pairs: int,
) -> Tensor:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306), chosen answers desirable, rejected ones not, both
    of weight 1; a mean over the answers.

    L = 1/(2 num_pairs)  sum_p (1 - sigmoid(beta (chosen_p - z))) + (1 - sigmoid(beta (z - rejected_p))),   z = baseline
    """
    desirable = torch.sigmoid(beta * (baseline - chosen))  # 1 - sigmoid(x) = sigmoid(-x)
    undesirable = torch.sigmoid(beta * (rejected - baseline))
    return (desirable + undesirable).sum() / (2 * num_pairs)
