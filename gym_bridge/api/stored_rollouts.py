"""What a run of reinforcement learning takes instead of playing: groups in files, and the steps of another run."""

from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge.errors import ConfigError
from gym_bridge.io.digests import digest_file, digest_json
from gym_bridge.schemas.settings import GRPOAlgorithm, GRPOSettings

if TYPE_CHECKING:
    from gym_bridge.api.runs import Begun
    from gym_bridge.trainers.recorded_steps import RecordedSteps
    from gym_bridge.trainers.stored_groups import StoredGroups

NEEDS_NUMBERS = {"estimator": "components", "credit": "turn"}
"""Settings of the algorithm whose values take rewards apart."""


def stored_groups(settings: GRPOSettings) -> "StoredGroups":
    """The groups of data.rollouts or data.groups.

    Raises ConfigError for settings that do not fit them and for a file without groups, DataError with path and line for a row
    that cannot train.
    """
    from gym_bridge.trainers.ranked_groups import RankedGroups
    from gym_bridge.trainers.stored_groups import RolloutGroups, StoredGroups

    if settings.data.groups is not None:
        _check_ranks_will_do(settings.algorithm)
        return StoredGroups(RankedGroups(settings.data.groups))
    assert settings.data.rollouts is not None, "one of the two is asked for"
    return StoredGroups(RolloutGroups(settings.data.rollouts))


def replayed_steps(settings: GRPOSettings, begun: "Begun") -> "RecordedSteps":
    """The recorded steps of data.replay, for a run that has begun.

    Raises ConfigError for a run that recorded none, or not all, and for settings or a model that would make other weights of them.
    """
    from gym_bridge.trainers.recorded_steps import RecordedSteps, check_same_training, recorded_identity

    assert settings.data.replay is not None, "it is asked for"
    model = recorded_identity(begun.run.path)["digests"]["model"]
    check_same_training(settings.data.replay, settings, digests={"model": model})
    return RecordedSteps(settings.data.replay)


def stored_digests(settings: GRPOSettings) -> dict[str, str]:
    """What tells a run from one on other stored data: `data`, over all files that it reads; of a replay over what was recorded.

    Raises ConfigError for a file that is not there, DataError for a line of data.groups that is no JSON object.
    """
    data = settings.data
    if data.replay is not None:
        from gym_bridge.trainers.recorded_steps import recorded_identity

        return {"data": digest_json(recorded_identity(data.replay))}
    return {"data": digest_json([digest_file(path) for path in _files(settings)])}


def _files(settings: GRPOSettings) -> list[Path]:
    from gym_bridge.trainers.ranked_groups import ranked_files
    from gym_bridge.trainers.stored_rollouts import rollout_files

    if settings.data.groups is not None:
        return ranked_files(settings.data.groups)
    assert settings.data.rollouts is not None, "one of the two is asked for"
    return rollout_files(settings.data.rollouts)


def _check_ranks_will_do(algorithm: GRPOAlgorithm) -> None:
    for name, value in NEEDS_NUMBERS.items():
        if getattr(algorithm, name) == value:
            raise ConfigError(f"algorithm.{name}={value} needs rewards in numbers; the groups of data.groups have ranks alone")
