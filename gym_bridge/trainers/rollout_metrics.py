"""What the rollouts of a batch were, in numbers. One that failed, or that its verifier masked, is counted and is in no mean."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from gym_bridge.evaluation.summary import SOLVED_REWARD
from gym_bridge.schemas.rollouts import Rollout, Row
from gym_bridge.trainers.experience import is_masked, reward_components, version_of
from gym_bridge.trainers.group_stream import PlayedGroup


def batch_metrics(
    played: Sequence[PlayedGroup],
    *,
    num_groups_without_signal: int,
    version: int | None = None,
    environments: Collection[str] = (),
    seconds: float | None = None,
) -> dict[str, float]:
    """The numbers of all groups that were played for a batch; every one is finite, and a mean over nothing is left out.

    `num_groups_without_signal` is how many of the groups do not train. `version` is the trainer's, for the staleness;
    `environments` are those of the run: of several, each reward is told apart. `seconds` is how long the sampler was
    at work for the batch, for its tokens per second.
    """
    rollouts = [one for group in played for one in group.group.rollouts]
    verified = [one for group in played for one in _verified(group)]
    metrics: dict[str, float] = {
        **_rewards([_reward(one) for one in verified]),
        **_rewards_apart(played, environments),
        **_reward_parts([one.row for one in verified]),
        **_lengths(verified),
        **_turns(verified),
        **({} if version is None else _staleness(played, version)),
        **_stages([one.row for one in verified]),
        "num_rollouts": len(rollouts),
        "num_groups": len(played),
        "num_groups_without_signal": num_groups_without_signal,
        "num_masked": sum(one.failure is None for one in rollouts) - len(verified),
        **failures(rollouts),
        **_sampled(played, seconds),
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def failures(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """`num_failed`, and `num_failed/TYPE` of each type that there is."""
    failed = Counter(str(one.failure.type) for one in rollouts if one.failure is not None)
    return {"num_failed": failed.total(), **{f"num_failed/{name}": count for name, count in sorted(failed.items())}}


def completion_tokens(rollout: Rollout) -> float | None:
    """How many tokens the policy sampled: those that came with the rollout, else as its endpoint counted them; None: unknown."""
    if rollout.turns:
        return sum(len(turn.completion_ids) for turn in rollout.turns)
    return _number(_bridge(rollout.row).get("num_output_tokens")) or None  # an agent that counts nothing reports 0


def mean(values: Iterable[float]) -> float:
    """Their mean; NaN when there is none."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def _rewards(rewards: list[float]) -> dict[str, float]:
    return {
        "reward": mean(rewards),
        "reward_std": float(np.std(rewards)) if rewards else 0.0,
        "solved": mean(reward >= SOLVED_REWARD for reward in rewards),
    }


def _rewards_apart(played: Sequence[PlayedGroup], environments: Collection[str]) -> dict[str, float]:
    """Reward and number of rollouts of each environment, where there are several."""
    found: dict[str, list[PlayedGroup]] = defaultdict(list)
    for group in played:
        found[group.environment].append(group)
    if len({*found, *environments}) < 2:
        return {}
    metrics: dict[str, float] = {}
    for name, groups in sorted(found.items()):
        metrics[f"reward/{name}"] = mean(_reward(one) for group in groups for one in _verified(group))
        metrics[f"num_rollouts/{name}"] = sum(len(group.group.rollouts) for group in groups)
    return metrics


def _reward_parts(rows: list[Row]) -> dict[str, float]:
    """The mean of each part of the reward over the rollouts that have it."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in reward_components(row).items():
            found[name].append(value)
    return {f"reward_component/{name}": mean(values) for name, values in sorted(found.items())}


def _lengths(verified: list[Rollout]) -> dict[str, float]:
    lengths = [length for one in verified if (length := completion_tokens(one)) is not None]
    return {
        "completion_tokens": mean(lengths),
        "completion_tokens_min": min(lengths, default=math.nan),
        "completion_tokens_max": max(lengths, default=math.nan),
        "truncated": mean(one.truncated for one in verified),
    }


def _turns(verified: list[Rollout]) -> dict[str, float]:
    """Means of turns, tool calls and tool errors, and the share of rollouts whose history was rewritten."""
    bridged = [_bridge(one.row) for one in verified]
    names = ("num_turns", "num_tool_calls", "num_tool_errors")
    means = {name: mean(value for one in bridged if (value := _number(one.get(name))) is not None) for name in names}
    told = [one.turns for one in verified if one.turns]
    return {**means, "several_segments": mean(any(turn.starts_segment for turn in turns[1:]) for turns in told)}


def _staleness(played: Sequence[PlayedGroup], version: int) -> dict[str, float]:
    """By how many versions the oldest weights that sampled a rollout are older than the trainer's: mean, largest, and how many
    rollouts are that old."""
    ages = [max(0, version - version_of(one, started=group.version)) for group in played for one in _verified(group)]
    counts = {f"staleness/{age}": count for age, count in sorted(Counter(ages).items())}
    return {"staleness": mean(ages), "staleness_max": max(ages, default=math.nan), **counts}


def _stages(rows: list[Row]) -> dict[str, float]:
    """Mean seconds of a rollout by stage, `total` among them."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in (_bridge(row).get("timings_s") or {}).items():
            if (seconds := _number(value)) is not None:
                found[name].append(seconds)
    return {f"rollout_s/{name}": mean(values) for name, values in found.items()}


def _sampled(played: Sequence[PlayedGroup], seconds: float | None) -> dict[str, float]:
    """Tokens that the sampler gave, those of failed attempts too."""
    count = sum(completion_tokens(one) or 0 for group in played for one in (*group.group.rollouts, *group.group.retried))
    return {"num_sampled_tokens": count, **({"sampled_tokens_per_s": count / seconds} if seconds else {})}


def _verified(played: PlayedGroup) -> list[Rollout]:
    return [one for one in played.group.verified if not is_masked(one.row)]


def _reward(rollout: Rollout) -> float:
    return float(rollout.row["reward"])


def _bridge(row: Row) -> dict[str, Any]:
    return row.get("gym_bridge") or {}


def _number(value: object) -> float | None:
    """A finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
