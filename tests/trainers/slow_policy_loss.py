"""The policy's loss and its gradient from the papers' formulas, token by token in plain floats, with derivatives taken by hand."""

import math
from dataclasses import dataclass


@dataclass
class Token:
    """One trained token; `new` is the log-prob that the gradient is of."""

    new: float
    old: float
    rollout: float
    ref: float
    advantage: float
    entropy: float = 0.0


def policy_term(token, ratio, chosen):
    """Loss and slope of one token."""
    advantage = token.advantage
    if chosen.loss == "reinforce":
        return -advantage * token.new, -advantage
    bounded = min(max(ratio, 1 - chosen.clip_low), 1 + chosen.clip_high)
    if chosen.loss == "cispo":
        return -bounded * advantage * token.new, -bounded * advantage
    if advantage >= 0:
        return (-ratio * advantage, -ratio * advantage) if ratio <= 1 + chosen.clip_high else (-bounded * advantage, 0.0)
    if chosen.dual_clip is not None and ratio > chosen.dual_clip:
        return -chosen.dual_clip * advantage, 0.0
    return (-ratio * advantage, -ratio * advantage) if ratio >= 1 - chosen.clip_low else (-bounded * advantage, 0.0)


def kl_term(token, kind):
    """Estimate of the KL to the reference, weighed by the ratio, and its slope."""
    ratio, x = math.exp(token.new - token.old), token.ref - token.new
    if kind == "k1":
        return ratio * -x, ratio * (1 - x)
    if kind == "k2":
        return ratio * x * x / 2, ratio * -x
    k3 = math.exp(x) - 1 - x
    return ratio * k3, ratio * (k3 + 1 - math.exp(x))


def correction(token, sequence, chosen):
    """What the gap between sampler and trainer makes of a token's term."""
    low, high = chosen.correction_low, chosen.correction_high
    weight = math.exp(token.old - token.rollout)
    if chosen.correction == "tis":
        return min(weight, high)
    if chosen.correction == "icepop":
        return weight if low <= weight <= high else 0.0
    if chosen.correction == "seq_mask":
        mean = math.exp(sum(one.old - one.rollout for one in sequence) / len(sequence))
        return 1.0 if low <= mean <= high else 0.0
    return 1.0


def slow_loss(sequences, chosen, *, max_tokens):
    """Loss over all sequences of a step, and the gradients by each token's log-prob and entropy, sequence after sequence."""
    num_tokens = sum(map(len, sequences))
    total, slopes, entropy_slopes = 0.0, [], []
    for sequence in sequences:
        mean_log = sum(one.new - one.old for one in sequence) / len(sequence)
        parts = {
            "tokens": 1 / num_tokens,
            "sequences": 1 / len(sequences) / len(sequence),
            "fixed": 1 / len(sequences) / (chosen.fixed_length or max_tokens),
        }
        part = parts[chosen.normalise_by]
        for token in sequence:
            ratio = math.exp(mean_log if chosen.ratio == "sequence" else token.new - token.old)
            value, slope = policy_term(token, ratio, chosen)
            weight = correction(token, sequence, chosen)
            value, slope = weight * value, weight * slope
            if chosen.beta and chosen.kl_in == "loss":
                divergence, pull = kl_term(token, chosen.kl)
                value, slope = value + chosen.beta * divergence, slope + chosen.beta * pull
            total += part * value - chosen.entropy_bonus * token.entropy / num_tokens
            slopes.append(part * slope)
            entropy_slopes.append(-chosen.entropy_bonus / num_tokens)
    return total, slopes, entropy_slopes
