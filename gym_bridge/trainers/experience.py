"""Experience: a verified rollout as a batch trains on it. T = tokens of a sequence, N = trained tokens of the rollout."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from gym_bridge.algorithms.rewards import overlong_penalty, scaled
from gym_bridge.config import load_object
from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.schemas.rollouts import Rollout, RolloutKey, Row
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.trajectory import build_trajectory, rollout_name, training_sequences
from gym_bridge.trainers.group_stream import PlayedGroup

Advantage = float | np.ndarray
"""Of a rollout's every trained token, or [N] float32 of each, over its sequences in order."""
Shaping = Callable[[Row, float], float]
"""(row, reward) -> the reward to train on."""

COMPONENT_PREFIX = "reward/"

log = logging.getLogger(__name__)

MAX_LOGPROB = 1e-3  # a log-prob is at most 0, but for the rounding of a sampler in low precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A rollout that was verified: its rewards, and a sequence for each of its segments."""

    key: RolloutKey
    reward: float
    """What trains: scaled, shaped, penalised."""
    components: Mapping[str, float] = field(default_factory=dict)
    """Parts of what /verify gave by name, where the verifier tells them."""
    turn_rewards: tuple[float, ...] = ()
    """What each turn earned, where the environment tells it; their sum is what /verify gave."""
    truncated: bool = False
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


def experiences_of(played: Sequence[PlayedGroup], settings: GRPOSettings) -> list[ExperienceGroup]:
    """For each group its members that were verified and are not masked by `mask_sample`; it may be empty.

    A rollout without tokens among others that have them, and one whose completions are all empty, has no sequences: its reward
    counts in the baseline, and nothing of it trains.

    Raises PolicyError where no rollout has tokens, and for a token without a log-prob; ConfigError for a reward_shaping that gives
    no number.
    """
    shaping = _shaping(settings.algorithm.reward_shaping)
    members = [[rollout for rollout in one.group.verified if not is_masked(rollout.row)] for one in played]
    _check_tokens([rollout for group in members for rollout in group])
    return [tuple(_experience(rollout, settings, shaping) for rollout in group) for group in members]


def is_masked(row: Row) -> bool:
    """True for a rollout that its environment says is not to be trained on."""
    instance = row.get("instance_config")
    return bool(row.get("mask_sample") or (isinstance(instance, Mapping) and instance.get("mask_sample")))


def reward_components(row: Row) -> dict[str, float]:
    """The parts of the verified reward: the finite numbers of `reward_components`, and of top-level keys `reward/NAME`."""
    told = row.get("reward_components")
    parts = dict(told) if isinstance(told, Mapping) else {}
    parts |= {name.removeprefix(COMPONENT_PREFIX): value for name, value in row.items() if name.startswith(COMPONENT_PREFIX)}
    return {name: float(value) for name, value in parts.items() if isinstance(value, int | float) and math.isfinite(value)}


def version_of(rollout: Rollout, *, started: int = 0) -> int:
    """The oldest policy version that sampled a token of it, as its turns tell, else its row; `started` where neither does."""
    versions = [turn.policy_version for turn in rollout.turns] or (rollout.row.get("gym_bridge") or {}).get("policy_versions")
    return min(versions) if versions else started


def _experience(rollout: Rollout, settings: GRPOSettings, shaping: Shaping | None) -> Experience:
    _check_logprobs(rollout)
    sequences = training_sequences(build_trajectory(rollout.key, rollout.turns), advantage=0.0)
    return Experience(
        key=rollout.key,
        reward=_trained_reward(rollout, settings, shaping),
        components=reward_components(rollout.row),
        turn_rewards=_turn_rewards(rollout, needed=settings.algorithm.credit == "turn"),
        truncated=rollout.truncated,
        sequences=tuple(replace(one, origin=rollout_name(rollout.key)) for one in sequences),
        turn_lengths=tuple(len(turn.completion_ids) for turn in rollout.turns),
        trains=not (settings.algorithm.overlong_filter and rollout.truncated),
    )


def _check_tokens(rollouts: Sequence[Rollout]) -> None:
    """Raises PolicyError where model calls were made and none has token ids; tells of rollouts that are alone in that."""
    without = [one for one in rollouts if not one.turns and one.row.get("gym_bridge", {}).get("num_turns", 1)]
    if without and len(without) == len(rollouts):
        raise PolicyError(
            f"{rollout_name(without[0].key)}: its model calls have no token ids, nor have those of any other rollout; the sampler "
            "must report token ids and log-probs: play with sampler.kind=local or vllm, or have the model endpoint of the agents "
            "report them"
        )
    for one in without:
        name = rollout_name(one.key)
        log.warning("%s: its model calls have no token ids; it counts in its group's baseline and does not train", name)


def _check_logprobs(rollout: Rollout) -> None:
    """Raises PolicyError unless every sampled token has a log-prob."""
    name = rollout_name(rollout.key)
    for number, turn in enumerate(rollout.turns):
        if len(turn.logprobs) != len(turn.completion_ids):
            raise PolicyError(
                f"{name}: turn {number} has {len(turn.logprobs)} log-probs for {len(turn.completion_ids)} sampled "
                "tokens; the sampler must report one for every token"
            )
        wrong = [one for one in turn.logprobs if one is None or not -math.inf < one <= MAX_LOGPROB]
        if wrong:
            raise PolicyError(
                f"{name}: turn {number} has the log-prob {wrong[0]} for a sampled token; the sampler must "
                "report a finite number of at most 0 for every token"
            )


def _trained_reward(rollout: Rollout, settings: GRPOSettings, shaping: Shaping | None) -> float:
    """Scaled, then shaped, then lessened where the rollout is truncated, then penalised where it is overlong."""
    algorithm, reward = settings.algorithm, float(rollout.row["reward"])
    if algorithm.reward_scale is not None:
        reward = scaled(reward, source=algorithm.reward_scale.source, target=algorithm.reward_scale.target)
    if shaping is not None:
        reward = shaping(rollout.row, reward)
        if isinstance(reward, bool) or not isinstance(reward, int | float | np.number) or not math.isfinite(reward):
            told = f"{reward!r} for {rollout_name(rollout.key)}; expected a finite number"
            raise ConfigError(f"algorithm.reward_shaping={algorithm.reward_shaping!r} gave {told}")
    if algorithm.truncated_factor is not None and rollout.truncated:
        reward *= algorithm.truncated_factor
    if algorithm.overlong_buffer is not None:
        reward += _penalty(rollout, settings, buffer=algorithm.overlong_buffer)
    return float(reward)


def _penalty(rollout: Rollout, settings: GRPOSettings, *, buffer: int) -> float:
    """DAPO's, of the rollout's longest completion: each turn has the limit of tokens to itself."""
    params = rollout.row.get("responses_create_params") or {}
    limit = min(settings.sampler.max_tokens, params.get("max_output_tokens") or settings.sampler.max_tokens)
    longest = max((len(turn.completion_ids) for turn in rollout.turns), default=0)
    return overlong_penalty(longest, limit=limit, buffer=buffer, size=settings.algorithm.overlong_penalty)


def _shaping(path: str | None) -> Shaping | None:
    """Raises ConfigError when there is no such function."""
    if path is None:
        return None
    shaping = load_object(path)
    if not callable(shaping):
        raise ConfigError(f"algorithm.reward_shaping={path!r} is {type(shaping).__name__}, no function of a row and its reward")
    return cast(Shaping, shaping)


def _turn_rewards(rollout: Rollout, *, needed: bool) -> tuple[float, ...]:
    """Raises PolicyError where they are needed and not as many as turns."""
    told = rollout.row.get("gym_bridge", {}).get("turn_rewards")
    if isinstance(told, list) and len(told) == len(rollout.turns):
        return tuple(map(float, told))
    if told is not None and needed:
        count = f"{len(told)} entries" if isinstance(told, list) else f"the value {told!r}"
        expected = f"expected a number for each of {len(rollout.turns)} turns"
        raise PolicyError(f"{rollout_name(rollout.key)}: gym_bridge.turn_rewards has {count}; {expected}")
    return ()
