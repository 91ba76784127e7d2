"""Generalised advantage estimation. N = sampled tokens of a rollout, in order, all its segments one after the other."""

import numpy as np


def generalised_advantages(
    rewards: np.ndarray,  # [N] of each token: the rollout's stands at the last one
    values: np.ndarray,  # [N] of the state in which each token was chosen
    *,
    gamma: float,
    lam: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages [N] and returns [N] in float64 (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    delta_n = r_n + gamma V_(n+1) - V_n,   A_n = delta_n + gamma lam A_(n+1),   R_n = A_n + V_n,   V_N = A_N = 0

    What the environment writes between two turns takes no time: the state after a turn's last token is that of the next turn's
    first. Nothing is expected after the last token, also where a limit ended the rollout: its reward was given as it stood.
    """
    advantages = np.zeros(len(values))
    following = next_value = 0.0
    for index in range(len(values) - 1, -1, -1):
        value = float(values[index])
        following = float(rewards[index]) + gamma * next_value - value + gamma * lam * following
        advantages[index], next_value = following, value
    return advantages, advantages + values


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for values that foresee all, 0 for constant ones; 0 when all returns are equal.

    A ratio of sums over the whole batch, so no mean of those of its parts.
    """
    variance = float(np.var(returns)) if len(returns) else 0.0
    return 1 - float(np.var(returns - values)) / variance if variance > 0 else 0.0
