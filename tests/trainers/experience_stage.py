"""Rollouts as a collector gives them, groups of them, and settings for what becomes of them."""

from gym_bridge.schemas.rollouts import Failure, FailureType, Group, Rollout, RolloutKey
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.trainers.group_stream import PlayedGroup


def grpo(sampler=None, data=None, **algorithm):
    """Settings of an online run with these values under `algorithm`."""
    values = {"data": data or {"train": "tasks.jsonl"}, "env": {"server": "arithmetic"}, "sampler": sampler or {}}
    return GRPOSettings.model_validate({**values, "algorithm": algorithm})


def turn(prompt, completion, *, logprobs=None, version=0, starts_segment=False):
    """A model call; each sampled token has the log-prob -1/2 unless told otherwise."""
    given = [-0.5] * len(completion) if logprobs is None else logprobs
    return TurnTokens(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(given),
        policy_version=version,
        starts_segment=starts_segment,
    )


def rollout(reward=1.0, turns=None, *, index=0, task=3, truncated=False, ours=None, **fields):
    """A verified rollout of one turn with two sampled tokens, unless told otherwise."""
    played = (turn([1, 2], [5, 6]),) if turns is None else tuple(turns)
    bridge = {"truncated": truncated, "num_turns": len(played), **(ours or {})}
    row = {"reward": reward, "gym_bridge": bridge, **fields}
    return Rollout(key=RolloutKey(task, index), attempt=0, row=row, turns=played)


def failed(index=0, task=3):
    """A rollout that broke."""
    failure = Failure(type=FailureType.TOOL, message="it broke")
    return Rollout(key=RolloutKey(task, index), attempt=0, row={"reward": None}, failure=failure)


def played(*rollouts, environment="arithmetic", version=0):
    """A group of these members."""
    group = Group(task_index=rollouts[0].key.task_index, rollouts=rollouts)
    return PlayedGroup(group=group, environment=environment, version=version)
