"""How far evaluated policies have gone from their baseline."""

from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge.api.models import model_directory
from gym_bridge.errors import ConfigError, DataError
from gym_bridge.schemas.play_settings import EvalSettings
from gym_bridge.schemas.policy_settings import PolicySettings

if TYPE_CHECKING:
    from gym_bridge.evaluation.drift import Drift
    from gym_bridge.policy.frozen_model import FrozenModel
    from gym_bridge.schemas.tokens import TrainingSequence
    from gym_bridge.trainers.stored_rollouts import StoredRollouts

AT_ONCE = 64
"""Rollouts that are read together."""


def measure_drift(played: EvalSettings, baseline: EvalSettings) -> "Drift":
    """The KL of the policy that played `played`, a finished evaluation, from the one of `baseline`.

    There is none, and the drift says why, where one of the two is no model of this process, or one of other tokens, and where
    rollouts were not sampled at temperature 1. Raises PolicyError when memory runs out.
    """
    from gym_bridge.evaluation.drift import Drift
    from gym_bridge.policy.frozen_model import FrozenModel, check_same_tokens
    from gym_bridge.trainers.stored_rollouts import StoredRollouts

    if not (played.samples_here and baseline.samples_here):
        return Drift(unmeasured="both must be models of this process")
    directory, other = model_directory(played.model), model_directory(baseline.model)
    try:
        check_same_tokens(other, directory, where=baseline.model)
        rollouts = StoredRollouts(Path(played.output))
    except (ConfigError, DataError) as error:
        return Drift(unmeasured=str(error))
    with closing(rollouts):
        settings = PolicySettings(model=played.model, device=played.device, compute_dtype=played.compute_dtype)
        return _measured(rollouts, FrozenModel(directory, settings), FrozenModel(other, settings))


def _measured(rollouts: "StoredRollouts", policy: "FrozenModel", baseline: "FrozenModel") -> "Drift":
    from gym_bridge.evaluation.drift import drift_of
    from gym_bridge.policy.divergence import divergence

    found: dict[int, list[float]] = defaultdict(list)
    for first in range(0, len(rollouts), AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, len(rollouts)))
        sampled = [(rollouts.task_indices.item(number), one) for number in numbers for one in _sequences(rollouts, number)]
        estimates = divergence([one for _, one in sampled], policy, baseline) if sampled else []
        for (task, _), values in zip(sampled, estimates, strict=True):
            found[task] += values.tolist()
    return drift_of(found)


def _sequences(rollouts: "StoredRollouts", number: int) -> "list[TrainingSequence]":
    from gym_bridge.tokens.trajectory import build_trajectory, training_sequences

    rollout = rollouts.read(number)
    return training_sequences(build_trajectory(rollout.key, rollout.turns), advantage=0.0)
