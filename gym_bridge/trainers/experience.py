"""Experience: a verified rollout as a batch trains on it. T = tokens of a sequence, N = trained tokens of the rollout."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.tokens import TrainingSequence

Advantage = float | np.ndarray
"""Of a rollout's every trained token, or [N] float32 of each, over its sequences in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A rollout that was verified: its rewards, and a sequence for each of its segments."""

    key: RolloutKey
    environment: str
    """Which of the run's environments it was played in."""
    verified_reward: float
    """What /verify gave."""
    reward: float
    """What trains: scaled, shaped, penalised."""
    components: Mapping[str, float] = field(default_factory=dict)
    """Parts of the verified reward by name, where the verifier tells them."""
    turn_rewards: tuple[float, ...] = ()
    """What each turn earned, where the environment tells it; their sum is the verified reward."""
    truncated: bool = False
    policy_version: int = 0
    """The oldest version that sampled a token of it."""
    sequences: tuple[TrainingSequence, ...]
    """One a segment that sampled anything; what the policy, the reference and the value model say of them stands in them."""
    turn_lengths: tuple[int, ...]
    """Sampled tokens of each turn; they add up to N."""
    teacher_logprobs: tuple[np.ndarray, ...] = ()
    """[T] of each sequence, NaN outside the trained tokens; empty without a teacher."""
    trains: bool = True
    """False: it counts in its group's baseline and does not train."""


ExperienceGroup = tuple[Experience, ...]
"""The verified members of a group."""
