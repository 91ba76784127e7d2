"""The estimators of advantages, one for each rollout of a batch or one for each of its tokens. T = tokens of a sequence, N = those
of a rollout that train, over its sequences in order.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from gym_bridge.algorithms.advantages import component_advantages, group_advantages, turn_advantages, whitened
from gym_bridge.algorithms.gae import generalised_advantages
from gym_bridge.algorithms.kl import kl_estimates
from gym_bridge.algorithms.rewards import slope
from gym_bridge.errors import PolicyError
from gym_bridge.schemas.settings import GRPOAlgorithm
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.trajectory import rollout_name
from gym_bridge.trainers.experience import Advantage, Experience, ExperienceGroup

Estimator = Callable[[Sequence[ExperienceGroup]], list[list[Advantage]]]
"""For each group of a batch the advantage of each member."""


def group_estimator(settings: GRPOAlgorithm) -> Estimator:
    """A rollout's reward against those of its group; with credit=turn each turn's return-to-go against the group's."""

    def estimate(groups: Sequence[ExperienceGroup]) -> list[list[Advantage]]:
        return [by_turn(group) if settings.credit == "turn" else by_rollout(group) for group in groups]

    def by_rollout(group: ExperienceGroup) -> list[Advantage]:
        rewards = [one.reward for one in group]
        return list(group_advantages(rewards, baseline=settings.baseline, scale_by_std=settings.scale == "std"))

    def by_turn(group: ExperienceGroup) -> list[Advantage]:
        rewards = [_turn_rewards(one, settings) for one in group]
        found = turn_advantages(rewards, baseline=settings.baseline, scale_by_std=settings.scale == "std")
        return [np.repeat(np.array(turns), one.turn_lengths) for one, turns in zip(group, found, strict=True)]

    return estimate


def component_estimator(settings: GRPOAlgorithm) -> Estimator:
    """GDPO: each component of the reward normalised apart in its group, their weighted sum whitened over the batch.

    Each rollout counts once in that, whatever its length, as in the paper; groups without a signal do not count.
    """

    def estimate(groups: Sequence[ExperienceGroup]) -> list[list[Advantage]]:
        found = [one_group(group) for group in groups]
        counting = [settings.baseline == "none" or any(one) for one in found]
        white = iter(whitened([np.array(one) for one, counts in zip(found, counting, strict=True) if counts]))
        return [next(white).tolist() if counts else list(one) for one, counts in zip(found, counting, strict=True)]

    def one_group(group: ExperienceGroup) -> list[float]:
        _check_components(group)
        components = [one.components for one in group]
        scaled = settings.scale == "std"
        return component_advantages(components, weights=settings.component_weights, baseline=settings.baseline, scale_by_std=scaled)

    return estimate


def gae_estimator(settings: GRPOAlgorithm) -> Estimator:
    """Generalised advantages of each token, from values that stand in the sequences. Raises PolicyError where there are none."""

    def estimate(groups: Sequence[ExperienceGroup]) -> list[list[Advantage]]:
        return [[of(one) for one in group] for group in groups]

    def of(one: Experience) -> np.ndarray:
        values = chained(one, "old_values")
        rewards = -kl_penalties(one, settings)
        if len(rewards):
            rewards[-1] += one.reward
        return generalised_advantages(rewards, values, gamma=settings.critic.gamma, lam=settings.critic.lam)[0]

    return estimate


def teacher_estimator(settings: GRPOAlgorithm) -> Estimator:
    """On-policy distillation: each token's advantage is by how much likelier the teacher finds it than the sampler did.

    A_n = teacher_weight (teacher_n - rollout_n), the mean of which over what the policy samples is -KL(pi || teacher) at that
    token (Agarwal et al. 2024, arXiv 2306.13649, with reverse KL; Lu 2025, "On-policy distillation").
    """

    def estimate(groups: Sequence[ExperienceGroup]) -> list[list[Advantage]]:
        return [[teacher_part(one, settings) for one in group] for group in groups]

    return estimate


def trained_values(sequence: TrainingSequence, name: str) -> np.ndarray:
    """[n] of a column at the trained tokens, in float64. Raises PolicyError where it is missing."""
    column = getattr(sequence, name)
    if column is None or np.isnan(values := column[sequence.train_mask]).any():
        raise PolicyError(f"{sequence.origin or 'a sequence'}: a trained token has no {name}, which its advantage is made of")
    return values.astype(np.float64)


def chained(one: Experience, name: str) -> np.ndarray:
    """[N] of a column over all sequences."""
    return np.concatenate([np.zeros(0), *(trained_values(sequence, name) for sequence in one.sequences)])


def kl_penalties(one: Experience, settings: GRPOAlgorithm) -> np.ndarray:
    """[N] what the KL to the reference takes off each token's reward; 0 unless it is in the reward."""
    if settings.beta == 0 or settings.kl_in != "reward":
        return np.zeros(sum(sequence.num_trained for sequence in one.sequences))
    logprobs = chained(one, "old_logprobs" if settings.old_logprobs == "trainer" else "rollout_logprobs")
    estimates = kl_estimates(torch.from_numpy(logprobs), torch.from_numpy(chained(one, "ref_logprobs")), estimator=settings.kl)
    return settings.beta * estimates.numpy()


def teacher_part(one: Experience, settings: GRPOAlgorithm) -> np.ndarray:
    """[N] by how much likelier the teacher finds each token than the sampler did, weighed. Raises PolicyError without a teacher."""
    said = [column[sequence.train_mask] for column, sequence in zip(one.teacher_logprobs, one.sequences, strict=False)]
    if len(said) != len(one.sequences) or any(np.isnan(part).any() for part in said):
        told = "a trained token has no log-prob of the teacher, which its advantage is made of"
        raise PolicyError(f"{rollout_name(one.key)}: {told}")
    return settings.teacher_weight * (np.concatenate([np.zeros(0), *said]) - chained(one, "rollout_logprobs"))


def _turn_rewards(one: Experience, settings: GRPOAlgorithm) -> list[float]:
    """What each turn earned, on the scale of the reward that trains, whose other changes fall to the last turn.

    Where the environment does not tell, the last turn earned all.
    """
    if not one.turn_lengths:
        return []
    scale = settings.reward_scale
    factor = 1.0 if scale is None else slope(source=scale.source, target=scale.target)
    turns = [factor * reward for reward in one.turn_rewards] or [0.0] * len(one.turn_lengths)
    turns[-1] = one.reward - sum(turns[:-1])
    return turns


def _check_components(group: ExperienceGroup) -> None:
    """Raises PolicyError unless all members have the same components, and some."""
    names = {name for one in group for name in one.components}
    for one in group:
        if not names or names - one.components.keys():
            lacking = ", ".join(sorted(names - one.components.keys())) or "reward_components and no reward/NAME"
            raise PolicyError(
                f"{rollout_name(one.key)}: its row has no {lacking}; "
                "algorithm.estimator=components needs the same components of the reward in every rollout of a group"
            )
