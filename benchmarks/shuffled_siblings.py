"""`algorithm.estimator=benchmarks.shuffled_siblings:shuffled`: GRPO's advantages of rewards that were dealt out anew in each group.

A control: rewards, groups and their spread stay what they are, and nothing can be learnt from them.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from gym_bridge.schemas.settings import GRPOAlgorithm
from gym_bridge.trainers.estimator_kinds import Estimator, group_estimator
from gym_bridge.trainers.experience import Advantage, ExperienceGroup


def shuffled(settings: GRPOAlgorithm) -> Estimator:
    """The group estimator, of the same rewards in an order that the rollouts' keys decide."""
    estimate = group_estimator(settings)

    def over(groups: Sequence[ExperienceGroup]) -> list[list[Advantage]]:
        return estimate([_dealt_anew(group) for group in groups])

    return over


def _dealt_anew(group: ExperienceGroup) -> ExperienceGroup:
    rewards = [one.reward for one in group]
    random.Random(repr([one.key for one in group])).shuffle(rewards)
    return tuple(replace(one, reward=reward) for one, reward in zip(group, rewards, strict=True))
