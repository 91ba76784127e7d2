"""Advantage estimators: from the experience of a batch to sequences with advantages. T = tokens of a sequence, N = trained tokens
of a rollout, over its sequences in order.

What is done to a batch, in this order:
1. the estimator that `algorithm.estimator` names gives each rollout one advantage, or one for each of its tokens;
2. a group whose advantages are all 0 has no signal and is left out, which no other group of the batch has a part in;
3. with kl_in=reward each token's advantage loses beta times the KL of all tokens from it on, as Hu et al. 2025 (REINFORCE++, arXiv
   2501.03262) have it; for gae, whose rewards lose it before, this has been done;
4. with `whiten` the advantages are centred and scaled over the batch, each token counting once: so do PPO's implementations and
   REINFORCE++, and so the pushes on all tokens of the batch add up to nothing (rollouts that do not train count as well);
5. beside an estimator of rewards a teacher's part is added.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from gym_bridge.algorithms.advantages import whitened
from gym_bridge.algorithms.gae import explained_variance
from gym_bridge.config import Registry
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.schemas.settings import GRPOAlgorithm, GRPOSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.trainers.estimator_kinds import Estimator, chained, kl_penalties, teacher_part, trained_values
from gym_bridge.trainers.experience import Advantage, Experience, ExperienceGroup

Rollouts = list[tuple[TrainingSequence, ...]]
"""For each rollout its sequences."""

REGISTRY: Registry[Callable[[GRPOAlgorithm], Estimator]] = Registry(
    "estimator",
    {
        "group": "gym_bridge.trainers.estimator_kinds:group_estimator",
        "components": "gym_bridge.trainers.estimator_kinds:component_estimator",
        "gae": "gym_bridge.trainers.estimator_kinds:gae_estimator",
        "teacher": "gym_bridge.trainers.estimator_kinds:teacher_estimator",
    },
)


def advantaged(groups: Sequence[ExperienceGroup], settings: GRPOSettings) -> list[Rollouts]:
    """For each group the rollouts that train, each as its sequences with advantages; none for a group without a signal.

    Where a value model has spoken, they carry its returns too, advantage + value. Raises PolicyError for columns that are missing,
    ConfigError for weights of components that there are not, and for an estimator whose result has the wrong shape.
    """
    algorithm = settings.algorithm
    _check_weights(groups, settings)
    found = _checked(estimator(algorithm)(groups), groups, algorithm)
    signals = [_always_trains(algorithm) or _any_signal(one) for one in found]
    members = [one for group, signal in zip(groups, signals, strict=True) if signal for one in group]
    advantages = [one for group, signal in zip(found, signals, strict=True) if signal for one in group]
    returns = [_returns(one, advantage) for one, advantage in zip(members, advantages, strict=True)]
    laid = map(_laid_out, members, _finished(members, advantages, algorithm), returns)
    return [
        [sequences for one in group if (sequences := next(laid)) and one.trains] if signal else []
        for group, signal in zip(groups, signals, strict=True)
    ]


def estimator(settings: GRPOAlgorithm) -> Estimator:
    """The estimator that `settings.estimator` names; a dotted path leads to a function of these settings that gives one.

    Raises ConfigError when there is none.
    """
    made = REGISTRY.load(settings.estimator)(settings)
    if not callable(made):
        raise ConfigError(f"algorithm.estimator={settings.estimator!r} gave {type(made).__name__}; expected a function of groups")
    return made


def has_signal(group: ExperienceGroup, settings: GRPOAlgorithm) -> bool:
    """Whether the group would train, by its rewards alone."""
    return bool(group) and (_always_trains(settings) or _any_signal(estimator(settings)([group])[0]))


def value_metrics(rollouts: Iterable[Sequence[TrainingSequence]]) -> dict[str, float]:
    """What a value model foresaw of a batch: `explained_variance`, and the means `value` and `return`; nothing without one.

    Over the whole batch and before its first update, as the share of a variance is no mean over microbatches.
    """
    learning = [one for rollout in rollouts for one in rollout if one.returns is not None and one.old_values is not None]
    if not learning:
        return {}
    values, returns = (np.concatenate([trained_values(one, name) for one in learning]) for name in ("old_values", "returns"))
    means = {"value": float(values.mean()), "return": float(returns.mean())}
    return {"explained_variance": explained_variance(values, returns), **means}


def _always_trains(settings: GRPOAlgorithm) -> bool:
    """Whether every group has a signal: what it is compared with lies outside of it, or a teacher speaks of its every token."""
    against_batch = settings.baseline == "none" and (
        settings.estimator == "components" or (settings.estimator == "group" and settings.whiten)
    )
    return settings.estimator in ("gae", "teacher") or settings.teacher is not None or against_batch


def _any_signal(advantages: Sequence[Advantage]) -> bool:
    return any(np.any(one) for one in advantages)


def _finished(members: Sequence[Experience], advantages: list[Advantage], settings: GRPOAlgorithm) -> list[Advantage]:
    """Steps 3 to 5: the KL, the whitening and the teacher's part."""
    if settings.beta > 0 and settings.kl_in == "reward" and settings.estimator != "gae":
        penalties = [kl_penalties(one, settings) for one in members]
        advantages = [one - np.cumsum(own[::-1])[::-1] for one, own in zip(advantages, penalties, strict=True)]
    if settings.whiten:
        arrays = [np.atleast_1d(np.asarray(one, dtype=np.float64)) for one in advantages]
        counts = [1 if isinstance(one, np.ndarray) else sum(of.turn_lengths) for one, of in zip(advantages, members, strict=True)]
        white = whitened(arrays, counts)
        advantages = [
            one if isinstance(before, np.ndarray) else float(one[0]) for before, one in zip(advantages, white, strict=True)
        ]
    if settings.teacher is not None and settings.estimator != "teacher":
        advantages = [one + teacher_part(of, settings) for one, of in zip(advantages, members, strict=True)]
    return advantages


def _returns(one: Experience, advantage: Advantage) -> np.ndarray | None:
    if not one.sequences or one.sequences[0].old_values is None:
        return None
    return advantage + chained(one, "old_values")


def _laid_out(one: Experience, advantage: Advantage, returns: np.ndarray | None) -> tuple[TrainingSequence, ...]:
    """The rollout's sequences with its advantages and returns."""
    laid: list[TrainingSequence] = []
    start = 0
    for sequence in one.sequences:
        part = slice(start, start := start + sequence.num_trained)
        if isinstance(advantage, np.ndarray):
            sequence = replace(sequence, advantages=_column(sequence, advantage[part]))
        else:
            sequence = replace(sequence, advantage=float(advantage))
        laid.append(sequence if returns is None else replace(sequence, returns=_column(sequence, returns[part])))
    return tuple(laid)


def _column(sequence: TrainingSequence, values: np.ndarray) -> np.ndarray:
    column = np.full(len(sequence.token_ids), np.nan, dtype=np.float32)
    column[sequence.train_mask] = values
    return column


def _checked(found: list[list[Advantage]], groups: Sequence[ExperienceGroup], settings: GRPOAlgorithm) -> list[list[Advantage]]:
    """The estimator's result. Raises ConfigError where it does not fit the groups."""
    fits = len(found) == len(groups) and all(len(own) == len(group) for own, group in zip(found, groups, strict=True))
    pairs = [pair for own, group in zip(found, groups, strict=True) for pair in zip(own, group, strict=True)] if fits else []
    if not fits or not all(np.shape(own) in ((), (sum(one.turn_lengths),)) and np.isfinite(own).all() for own, one in pairs):
        raise ConfigError(
            f"algorithm.estimator={settings.estimator!r} gave advantages of the wrong shape, or that are no finite numbers; "
            "expected for each member of each group a number, or an array with one for each of its trained tokens"
        )
    return found


def _check_weights(groups: Sequence[ExperienceGroup], settings: GRPOSettings) -> None:
    """Raises ConfigError for a weight of a component that no rollout has; of several environments one may be missing by chance."""
    known = {name for group in groups for one in group for name in one.components}
    for name in settings.algorithm.component_weights:
        if known and name not in known and len(settings.data.files) < 2:
            raise ConfigError(f"algorithm.component_weights.{name}: no rollout has such a component{nearest(name, known)}")
