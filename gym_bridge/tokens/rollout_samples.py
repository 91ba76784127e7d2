"""From rollouts with token ids to training sequences: what was sampled trains, token for token, and nothing is rendered."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from gym_bridge.errors import DataError
from gym_bridge.io.inline_tokens import inline_turns
from gym_bridge.io.rollout_reader import RolloutView, view_row
from gym_bridge.io.token_store import TokenStore
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, RolloutKey, Row
from gym_bridge.schemas.tokens import TrainingSequence, TurnTokens
from gym_bridge.tokens.chat_samples import weight_of
from gym_bridge.tokens.conversation_samples import TrainOn
from gym_bridge.tokens.trajectory import build_trajectory, training_sequences


class RolloutSamples:
    """The sequences of the rollouts of one file, `R.jsonl`, whose ids stand in its rows or in `R.tokens/` beside it."""

    def __init__(self, path: Path, *, train_on: TrainOn = "all", weight: str | None = None, min_reward: float | None = None):
        store = token_directory(path)
        self._store = TokenStore(store) if store.is_dir() else None
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
        turns = self._turns(row, view)
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

    def _turns(self, row: Row, view: RolloutView) -> tuple[TurnTokens, ...]:
        """The model calls of a rollout; none where its endpoint did not report the ids of each."""
        stored = self._stored(row, view)
        return stored or inline_turns(row)

    def _stored(self, row: Row, view: RolloutView) -> tuple[TurnTokens, ...]:
        if self._store is None or view.task_index is None or view.rollout_index is None:
            return ()
        attempt = (row.get("gym_bridge") or {}).get("attempt", row.get(ATTEMPT_INDEX, 0))
        try:
            return self._store.read((view.task_index, view.rollout_index, attempt if type(attempt) is int else 0))
        except DataError as error:
            if error.path == self._store.directory:  # it holds none of this rollout; a torn chunk is another matter
                return ()
            raise


def token_directory(path: Path) -> Path:
    """`R.tokens` for `R.jsonl`, `R.jsonl.gz` and `R.jsonl.zst`."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".jsonl") + ".tokens")


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
