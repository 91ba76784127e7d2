"""The loss of a policy and that of a value model, as the settings put them together. N = trained tokens of the microbatch.

Where several things may be meant:
- a sequence is a segment: a rollout whose history was rewritten is several sequences to every mean over sequences and to GSPO;
- corrections of the sampler's gap weigh the policy's term alone; the KL to the reference and the entropy pull on every token;
- the KL is averaged as the policy's term is, the entropy over the step's tokens;
- the KL's gradient is that of the divergence at the token, see `algorithms.kl`, not that of the plain k3 in GRPO's paper.
"""

import torch
from torch import Tensor

from gym_bridge.algorithms.kl import divergences, kl_estimates, kl_loss_terms, sampler_gap
from gym_bridge.algorithms.policy_losses import (
    TokenTerms,
    clipped_surrogate,
    clipped_value_loss,
    clipped_weight,
    reinforce,
    sampler_weights,
    sequence_ratios,
    step_mean,
    token_ratios,
)
from gym_bridge.errors import PolicyError
from gym_bridge.schemas.seams import Loss, LossFn, TrainedTokens
from gym_bridge.schemas.settings import GRPOAlgorithm, GRPOSettings
from gym_bridge.trainers.own_loss import own_loss


def policy_loss(settings: GRPOSettings) -> LossFn:
    """The loss that `algorithm` describes; one that a dotted path names is made of `algorithm` alone.

    Reports, as means over the step's trained tokens, with the extremes `ratio_min`, `ratio_max` and `gap_max`:
    - `ratio`, and `clip_fraction`, `clip_fraction_low`, `clip_fraction_high`: tokens that a bound of the ratio holds back;
    - `gap`: exp |difference| between the log-probs of sampler and trainer, 1 when they agree; `gap_max` the largest difference in
      nats; `gap_outside`: tokens whose probabilities differ by a factor outside of correction_low to correction_high;
      `kl_rollout_old` and `kl_old_rollout`: KL(sampler || trainer) and KL(trainer || sampler). The trainer's are those before the
      batch's first update where algorithm.old_logprobs=trainer, else those of now;
    - `kl` to the reference, by k3, where there is one.

    The loss raises PolicyError where a sampled token has no log-prob, and where the reference's are missing.
    """
    algorithm = settings.algorithm
    if ":" in algorithm.loss:
        return own_loss(algorithm)
    fixed_length = algorithm.fixed_length or settings.sampler.max_tokens

    def loss(logprobs: Tensor, columns: TrainedTokens) -> Loss:
        _check(algorithm, columns)
        ratios = _ratios(algorithm, logprobs, columns)
        terms = _policy_terms(algorithm, logprobs, ratios, columns)
        losses = terms.losses * sampler_weights(
            columns.old_logprobs,
            columns.rollout_logprobs,
            columns.sequence,
            correction=algorithm.correction,
            low=algorithm.correction_low,
            high=algorithm.correction_high,
        )
        if algorithm.beta > 0 and algorithm.kl_in == "loss":
            losses = losses + algorithm.beta * kl_loss_terms(
                logprobs, columns.old_logprobs, columns.ref_logprobs, estimator=algorithm.kl
            )
        value = step_mean(
            losses,
            columns.sequence,
            over=algorithm.normalise_by,
            num_tokens=columns.num_tokens,
            num_sequences=columns.num_sequences,
            fixed_length=fixed_length,
        )
        if algorithm.entropy_bonus and columns.entropies is not None:
            value = value - algorithm.entropy_bonus * columns.entropies.sum() / columns.num_tokens
        return _reported(algorithm, value, logprobs.detach(), ratios.detach(), terms, columns)

    return loss


def _check(algorithm: GRPOAlgorithm, columns: TrainedTokens) -> None:
    """Raises PolicyError where log-probs are missing that the loss compares with."""
    if torch.isnan(columns.rollout_logprobs).any() or torch.isnan(columns.old_logprobs).any():
        raise PolicyError("a sampled token has no log-prob; the sampler must report one for every token")
    if algorithm.beta > 0 and torch.isnan(columns.ref_logprobs).any():
        raise PolicyError(f"algorithm.beta={algorithm.beta} holds the policy to a reference, of which a token has no log-prob")


def _ratios(algorithm: GRPOAlgorithm, logprobs: Tensor, columns: TrainedTokens) -> Tensor:
    if algorithm.ratio == "sequence":
        return sequence_ratios(logprobs, columns.old_logprobs, columns.sequence)
    return token_ratios(logprobs, columns.old_logprobs)


def _policy_terms(algorithm: GRPOAlgorithm, logprobs: Tensor, ratios: Tensor, columns: TrainedTokens) -> TokenTerms:
    low, high = algorithm.clip_low, algorithm.clip_high
    if algorithm.loss == "reinforce":
        return reinforce(logprobs, columns.advantages)
    if algorithm.loss == "cispo":
        return clipped_weight(logprobs, ratios, columns.advantages, clip_low=low, clip_high=high)
    return clipped_surrogate(ratios, columns.advantages, clip_low=low, clip_high=high, dual_clip=algorithm.dual_clip)


@torch.no_grad()
def _reported(
    algorithm: GRPOAlgorithm, value: Tensor, logprobs: Tensor, ratios: Tensor, terms: TokenTerms, columns: TrainedTokens
) -> Loss:
    """The loss with its metrics; all of them leave the device at once."""
    trainer = columns.old_logprobs if algorithm.old_logprobs == "trainer" else logprobs
    differences = trainer - columns.rollout_logprobs
    weights = differences.exp()
    forward, backward = divergences(columns.rollout_logprobs, trainer)
    sums = {
        "ratio": ratios,
        "clip_fraction": terms.clipped_low | terms.clipped_high,
        "clip_fraction_low": terms.clipped_low,
        "clip_fraction_high": terms.clipped_high,
        "gap": sampler_gap(columns.rollout_logprobs, trainer),
        "gap_outside": (weights < algorithm.correction_low) | (weights > algorithm.correction_high),
        "kl_rollout_old": forward,
        "kl_old_rollout": backward,
    }
    if algorithm.beta > 0:
        sums["kl"] = kl_estimates(logprobs, columns.ref_logprobs, estimator="k3")
    extremes = [ratios.max(), differences.abs().max(), ratios.min()]
    *totals, ratio_max, gap_max, ratio_min = torch.stack([*(one.sum() for one in sums.values()), *extremes]).tolist()
    return Loss(
        value,
        {name: total / columns.num_tokens for name, total in zip(sums, totals, strict=True)},
        largest={"ratio_max": ratio_max, "gap_max": gap_max},
        smallest={"ratio_min": ratio_min},
    )


def value_loss(settings: GRPOSettings) -> LossFn:
    """The loss of a value model, a mean over the step's trained tokens, whatever the policy's is a mean of.

    Reports `value_loss`, and `value_clip_fraction`: tokens whose gradient `critic.clip` stops. The loss raises PolicyError where
    the returns, or the values before the update, are missing.
    """
    clip = settings.algorithm.critic.clip

    def loss(values: Tensor, columns: TrainedTokens) -> Loss:
        if torch.isnan(columns.returns).any() or torch.isnan(columns.old_values).any():
            raise PolicyError("a token has no return or no value to learn from; they come with algorithm.estimator=gae")
        terms = clipped_value_loss(values, columns.old_values, columns.returns, clip=clip)
        value = terms.losses.sum() / columns.num_tokens
        clipped = (terms.clipped_low | terms.clipped_high).sum()
        return Loss(value, {"value_loss": value.item(), "value_clip_fraction": clipped.item() / columns.num_tokens})

    return loss
