"""From rollouts with token ids to training sequences: what was sampled trains, token for token, and nothing is rendered."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from gym_bridge.io.rollout_reader import view_row
from gym_bridge.schemas.rollouts import RolloutKey, Row
from gym_bridge.schemas.tokens import TrainingSequence, TurnTokens
from gym_bridge.tokens.chat_samples import weight_of
from gym_bridge.tokens.conversation_samples import TrainOn
from gym_bridge.tokens.rollout_turns import RolloutTurns, token_directory
from gym_bridge.tokens.trajectory import build_trajectory, training_sequences


class RolloutSamples:
    """The sequences of the rollouts of one file, `R.jsonl`, whose ids stand in its rows or in `R.tokens/` beside it."""

    def __init__(self, path: Path, *, train_on: TrainOn = "all", weight: str | None = None, min_reward: float | None = None):
        self._turns = RolloutTurns(token_directory(path))
        self._train_on: TrainOn = train_on
        self._weight, self._min_reward = weight, min_reward

    def samples(self, row: Row) -> tuple[TrainingSequence, ...] | str:
        """A sequence for each segment of a rollout, or why it is dropped: failure, masked, no_token_ids, low_reward, ...

        Raises DataError for a field of the wrong type and for ids that contradict themselves.
        """
        view = view_row(row)
        if reason := view.drop_reason():
            return reason
        if self._min_reward is not None and view.reward is not None and view.reward < self._min_reward:
            return "low_reward"
        turns = self._turns.of(row, view)
        if self._train_on == "final":
            turns = _last_segment(turns)
        if not any(turn.completion_ids for turn in turns):
            return "no_token_ids"
        key = RolloutKey(view.task_index or 0, view.rollout_index or 0)
        sequences = training_sequences(build_trajectory(key, turns), advantage=1.0)
        if self._train_on == "final":
            sequences = [_trained_at_the_end(sequences[-1], len(turns[-1].completion_ids))]
        weight = weight_of(row, self._weight)
        return tuple(replace(one, weight=weight) for one in sequences)


def _last_segment(turns: tuple[TurnTokens, ...]) -> tuple[TurnTokens, ...]:
    """The turns from the last one on that started a segment, without calls at the end that sampled nothing."""
    while turns and not turns[-1].completion_ids:
        turns = turns[:-1]
    starts = [number for number, turn in enumerate(turns) if turn.starts_segment]
    return turns[starts[-1] :] if starts else turns


def _trained_at_the_end(sequence: TrainingSequence, count: int) -> TrainingSequence:
    """The sequence with its last `count` tokens trained, of those that were sampled."""
    mask = np.zeros(len(sequence.token_ids), dtype=bool)
    mask[-count:] = True
    logprobs = sequence.rollout_logprobs
    assert logprobs is not None, "rollouts have those of their sampler"
    return replace(sequence, train_mask=mask, rollout_logprobs=np.where(mask, logprobs, np.float32("nan")))
