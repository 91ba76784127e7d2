"""From turns to trajectories, and from trajectories to training sequences. T = tokens of a segment."""

from collections.abc import Sequence

import numpy as np

from gym_bridge.errors import DataError
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.tokens import Segment, TrainingSequence, Trajectory, TurnTokens


def rollout_name(key: RolloutKey) -> str:
    """What errors call a rollout: `rollout 3-0`."""
    return f"rollout {key.task_index}-{key.rollout_index}"


def build_trajectory(key: RolloutKey, turns: Sequence[TurnTokens]) -> Trajectory:
    """The segments of a rollout: a turn that extends the one before goes on with its segment, another starts a new one.

    Raises DataError when a turn that claims to extend its predecessor does not begin with its tokens.
    """
    segments: list[Segment] = []
    run: list[TurnTokens] = []
    for number, turn in enumerate(turns):
        if run and turn.starts_segment:
            segments.append(_segment(run))
            run = []
        if run and turn.prompt_ids[: len(run[-1].all_ids)] != run[-1].all_ids:
            told = f"the prompt of turn {number} does not begin with the tokens of turn {number - 1}"
            raise DataError(f"{rollout_name(key)}: {told}")
        run.append(turn)
    if run:
        segments.append(_segment(run))
    return Trajectory(task_index=key.task_index, rollout_index=key.rollout_index, segments=tuple(segments))


def training_sequences(trajectory: Trajectory, *, advantage: float) -> list[TrainingSequence]:
    """One sequence a segment that sampled anything; all of them carry the rollout's advantage."""
    return [
        TrainingSequence(
            token_ids=segment.token_ids,
            train_mask=segment.completion_mask,
            rollout_logprobs=segment.rollout_logprobs,
            advantage=advantage,
        )
        for segment in trajectory.segments
        if segment.completion_mask.any()
    ]


def _segment(turns: Sequence[TurnTokens]) -> Segment:
    ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    for turn in turns:
        new = turn.prompt_ids[len(ids) :]
        ids += [*new, *turn.completion_ids]
        mask += [False] * len(new) + [True] * len(turn.completion_ids)
        logprobs += [float("nan")] * len(new) + list(turn.logprobs)
    return Segment(
        token_ids=np.array(ids, dtype=np.int32),
        completion_mask=np.array(mask, dtype=bool),
        rollout_logprobs=np.array(logprobs, dtype=np.float32),
    )
