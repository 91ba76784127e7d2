"""Advantages of a group's rollouts. G = rewarded members of the group. Plain floats."""

from collections.abc import Sequence
from statistics import fmean, stdev

EPSILON = 1e-6


def group_advantages(rewards: Sequence[float], *, scale_by_std: bool) -> list[float]:
    """Rewards [G] less their mean; with `scale_by_std` divided by their sample standard deviation.

    A_i = (R_i - mean(R)) / (std(R) + 1e-6)    Shao et al. 2024 (GRPO), arXiv 2402.03300, section 4.1.2
    A_i =  R_i - mean(R)                       Liu et al. 2025 (Dr. GRPO), arXiv 2503.20783, section 3.2

    A group of one, and a group whose rewards are all equal, has advantages of exactly 0.
    """
    if len(rewards) < 2 or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    scale = stdev(rewards) + EPSILON if scale_by_std else 1.0
    return [(reward - mean) / scale for reward in rewards]
