"""The tokens of a rollout: which trained, with which log-probs, advantage and policy version."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gym_bridge.io.step_records import read_step, recorded_origins, recorded_steps
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.tokens import Segment, TrainingSequence, TurnTokens
from gym_bridge.tokens.tokenizer import Tokenizer
from gym_bridge.tokens.trajectory import build_trajectory, rollout_name

REPLACEMENT = "\ufffd"
MAX_BYTES = 4
"""Of a character in UTF-8: so many tokens may stand for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token; those that only together are a character have its text at the last of them."""

    id: int
    text: str
    trained: bool
    logprob: float | None = None
    """As the sampler reported it."""
    gap: float | None = None
    """The sampler's log-prob less the trainer's, before the update."""
    advantage: float | None = None
    version: int | None = None
    """The policy version that sampled it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A rollout in tokens."""

    segments: Sequence[Sequence[Token]]
    step: int | None
    """The training step that took it, where that was recorded."""

    @property
    def num_tokens(self) -> int:
        """Of all segments."""
        return sum(map(len, self.segments))

    @property
    def num_trained(self) -> int:
        """Tokens that train."""
        return sum(token.trained for segment in self.segments for token in segment)

    @property
    def mean_gap(self) -> float | None:
        """Mean exp |gap| over the trained tokens, as the metric `gap`; None where no trainer's log-probs are known."""
        gaps = [abs(token.gap) for segment in self.segments for token in segment if token.gap is not None]
        return math.fsum(map(math.exp, gaps)) / len(gaps) if gaps else None

    @property
    def mean_logprob(self) -> float | None:
        """Over the sampled tokens."""
        told = [token.logprob for segment in self.segments for token in segment if token.logprob is not None]
        return math.fsum(told) / len(told) if told else None


class RecordedSequences:
    """What a run's recorded steps say of its rollouts."""

    def __init__(self, directory: Path):
        """`directory` is the run's `steps`; there need not be one."""
        self._directory = directory
        self._steps: dict[str, list[int]] = {}
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def find(self, key: RolloutKey) -> tuple[int, list[TrainingSequence]] | None:
        """The first step that took a rollout, and its sequences in it. Raises DataError for a damaged record."""
        name = rollout_name(key)
        with self._lock:
            for number in recorded_steps(self._directory):
                if number not in self._seen:
                    for origin in set(recorded_origins(self._directory, number)):
                        self._steps.setdefault(origin, []).append(number)
                    self._seen.add(number)
        for number in sorted(self._steps.get(name, ())):
            step = read_step(self._directory, number)
            return number, [one for batch in step.microbatches for one in batch if one.origin == name]
        return None


def token_view(
    key: RolloutKey,
    turns: Sequence[TurnTokens],
    tokenizer: Tokenizer | None,
    recorded: tuple[int, Sequence[TrainingSequence]] | None,
) -> TokenView:
    """The tokens of a rollout's turns; without a tokenizer they have their ids for text.

    Raises DataError for turns that contradict each other.
    """
    trajectory = build_trajectory(key, turns)
    step, sequences = recorded or (None, ())
    by_ids = {one.token_ids.tobytes(): one for one in sequences}
    versions = _versions(turns)
    segments = []
    for segment, own in zip(trajectory.segments, versions, strict=True):
        ids = segment.token_ids.astype(np.int32)
        segments.append(_tokens(segment, own, tokenizer, by_ids.get(ids.tobytes())))
    return TokenView(segments=segments, step=step)


def _versions(turns: Sequence[TurnTokens]) -> list[list[int | None]]:
    """For each segment the version of each of its tokens; None where nothing was sampled."""
    found: list[list[int | None]] = []
    for turn in turns:
        if turn.starts_segment or not found:
            found.append([])
        new = len(turn.prompt_ids) - len(found[-1])
        found[-1] += [None] * new + [turn.policy_version] * len(turn.completion_ids)
    return found


def _tokens(
    segment: Segment, versions: Sequence[int | None], tokenizer: Tokenizer | None, sequence: TrainingSequence | None
) -> list[Token]:
    ids = segment.token_ids.tolist()
    columns = _trained_columns(sequence) if sequence is not None else {}
    texts = _texts(ids, tokenizer)
    tokens = []
    for place, id in enumerate(ids):
        logprob = _finite(segment.rollout_logprobs[place])
        ours = _at(columns, "old_logprobs", place)
        sampled = bool(segment.completion_mask[place])
        trained = sampled if sequence is None else bool(sequence.train_mask[place])
        tokens.append(
            Token(
                id=id,
                text=texts[place],
                trained=trained,
                logprob=logprob if sampled else None,
                gap=logprob - ours if logprob is not None and ours is not None and trained else None,
                advantage=_at(columns, "advantages", place) if trained else None,
                version=versions[place],
            )
        )
    return tokens


def _trained_columns(sequence: TrainingSequence) -> Mapping[str, np.ndarray | None]:
    """[T] of a sequence; one advantage for all of its tokens is one for each."""
    advantages = sequence.advantages
    if advantages is None:
        advantages = np.full(len(sequence.token_ids), sequence.advantage, dtype=np.float32)
    return {"old_logprobs": sequence.old_logprobs, "advantages": advantages}


def _at(columns: Mapping[str, np.ndarray | None], name: str, place: int) -> float | None:
    column = columns.get(name)
    return None if column is None else _finite(column[place])


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _texts(ids: Sequence[int], tokenizer: Tokenizer | None) -> list[str]:
    if tokenizer is None:
        return [f" {id}" for id in ids]
    texts: list[str] = []
    waiting: list[int] = []
    for id in ids:
        waiting.append(id)
        text = tokenizer.decode(waiting)
        if text.endswith(REPLACEMENT) and len(waiting) < MAX_BYTES:
            texts.append("")
            continue
        texts.append(text)
        waiting = []
    if waiting:
        texts[-1] = tokenizer.decode(waiting)
    return texts
