"""Advantages of a group's rollouts, and rewards of ranked ones. G = rewarded members of the group. Plain floats, no tensors."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean, stdev
from typing import Literal

import numpy as np

Baseline = Literal["mean", "leave_one_out", "none"]

EPSILON = 1e-6
RESIDUE = 1e-9
"""Values nearer to each other than this part of the largest one are equal: sums of tenths differ in their last digit."""


def have_spread(values: Sequence[float]) -> bool:
    """True when the values differ by more than rounding does."""
    return len(values) > 1 and max(values) - min(values) > RESIDUE * max(map(abs, values))


def group_advantages(rewards: Sequence[float], *, baseline: Baseline = "mean", scale_by_std: bool) -> list[float]:
    """Rewards [G] less a baseline; with `scale_by_std` divided by the group's sample standard deviation.

    mean           A_i = (R_i - mean(R)) / (std(R) + 1e-6)    Shao et al. 2024 (GRPO), arXiv 2402.03300, section 4.1.2
                   A_i =  R_i - mean(R)                       Liu et al. 2025 (Dr. GRPO), arXiv 2503.20783, section 3.2
    leave_one_out  A_i =  R_i - mean of the siblings' R       Ahmadian et al. 2024 (RLOO), arXiv 2402.14740
    none           A_i =  R_i

    With either baseline a group of one, and a group whose rewards are all equal, has advantages of exactly 0; without one its
    rewards stand, undivided. The deviation is the whole group's for leave_one_out too: that of the siblings alone is 0 where all
    of them are equal.
    """
    spread = have_spread(rewards)
    if baseline != "none" and not spread:
        return [0.0] * len(rewards)
    if baseline == "leave_one_out":
        centred = [reward - fmean([*rewards[:index], *rewards[index + 1 :]]) for index, reward in enumerate(rewards)]
    else:
        centre = fmean(rewards) if baseline == "mean" else 0.0
        centred = [reward - centre for reward in rewards]
    scale = stdev(rewards) + EPSILON if scale_by_std and spread else 1.0
    return [one / scale for one in centred]


def turn_advantages(turn_rewards: Sequence[Sequence[float]], *, baseline: Baseline, scale_by_std: bool) -> list[list[float]]:
    """For each of G rollouts the advantage of each of its turns: what it earned from there on, less a baseline of that turn.

    G_(i,t) = sum_(u >= t) r_(i,u)
    mean           A_(i,t) = G_(i,t) - mean of G_(j,t) over all rollouts j that reached turn t, this one among them
    leave_one_out  A_(i,t) = G_(i,t) - mean of G_(j,t) over the siblings j that reached turn t; where none did, over those that
                             reached the last turn that any of them reached; 0 where no sibling has any turn
    none           A_(i,t) = G_(i,t)
    with `scale_by_std` divided by the sample standard deviation of all G of the group + 1e-6.

    The baseline of leave_one_out is a function of the siblings alone, so that the policy gradient is unbiased although rollouts
    end when the policy wants them to: no action of the rollout, stopping least of all, moves what it is compared with. That of
    mean holds the rollout itself, as one of as many as reached turn t: it shrinks the gradient of turn t by 1 - 1/n_t, which
    would be the same for all turns only if all rollouts had equally many, and a turn that one rollout alone reached never learns.
    Never centred is each turn's reward on its own (Zeng et al. 2025, MT-GRPO, arXiv 2505.11821): the sum of these baselines has as
    many terms as the rollout has turns left, which fines each further turn by its mean reward (verl issue 7244).
    Division by the deviation, which the rollout is part of, biases either one as it does GRPO.
    """
    returns = [list(accumulate(reversed(rewards)))[::-1] for rewards in turn_rewards]
    everything = [one for own in returns for one in own]
    spread = have_spread(everything)
    if baseline != "none" and not spread:
        return [[0.0] * len(own) for own in returns]
    scale = stdev(everything) + EPSILON if scale_by_std and spread else 1.0
    return [
        [(one - _turn_baseline(returns, index, turn, baseline)) / scale for turn, one in enumerate(own)]
        for index, own in enumerate(returns)
    ]


def _turn_baseline(returns: Sequence[Sequence[float]], index: int, turn: int, baseline: Baseline) -> float:
    if baseline == "none":
        return 0.0
    if baseline == "mean":
        return fmean(own[turn] for own in returns if len(own) > turn)
    siblings = [own for other, own in enumerate(returns) if other != index and own]
    reached = min(turn, max(map(len, siblings), default=0) - 1)
    return fmean(own[reached] for own in siblings if len(own) > reached) if siblings else returns[index][turn]


def component_advantages(
    components: Sequence[Mapping[str, float]], *, weights: Mapping[str, float], baseline: Baseline, scale_by_std: bool
) -> list[float]:
    """The weighted sum of the advantages that each component of G rewards has by itself; a component without a weight weighs 1.

    A_i = sum_k w_k (R_(i,k) - mean(R_k)) / (std(R_k) + 1e-6)    Liu et al. 2026 (GDPO), arXiv 2601.05242

    Divided apart, a component that seldom differs counts as much as one that differs always. The paper then whitens them over the
    batch, see `whitened`. Every mapping has the same names.
    """
    total = [0.0] * len(components)
    for name in sorted(components[0]) if components else ():
        own = group_advantages([one[name] for one in components], baseline=baseline, scale_by_std=scale_by_std)
        total = [sum_ + weights.get(name, 1.0) * one for sum_, one in zip(total, own, strict=True)]
    return total


def whitened(values: Sequence[np.ndarray], counts: Sequence[int] | None = None) -> list[np.ndarray]:
    """Arrays less the mean of all their entries, divided by their standard deviation + 1e-6; all 0 when none differ.

    `counts`: how often each array's entries count. An advantage that holds for n tokens is an array of one entry that counts n
    times when tokens are to weigh alike, and once when rollouts are.
    """
    weights = [np.full(len(one), count, dtype=np.float64) for one, count in zip(values, counts or [1] * len(values), strict=True)]
    entries, weight = (np.concatenate(parts) if parts else np.zeros(0) for parts in (values, weights))
    counting = entries[weight > 0].tolist()
    if not have_spread(counting):
        return [np.zeros(len(one)) for one in values]
    mean = float(np.average(entries, weights=weight))
    std = float(np.sqrt(np.average(np.square(entries - mean), weights=weight)))
    return [(one - mean) / (std + EPSILON) for one in values]


def rank_rewards(ranks: Sequence[float]) -> list[float]:
    """Rewards of G ranked rollouts, the lowest the best: the share of its siblings that each one beats, a tie being half a win.

    A rollout without siblings has 0.5. The mean is always 0.5.
    """
    if len(ranks) < 2:
        return [0.5] * len(ranks)
    return [
        (sum(other > rank for other in ranks) + 0.5 * (sum(other == rank for other in ranks) - 1)) / (len(ranks) - 1)
        for rank in ranks
    ]
