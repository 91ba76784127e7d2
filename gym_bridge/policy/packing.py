"""Sequences of different lengths in one row of tokens, without padding, each beginning computed once.

T = packed tokens of a microbatch, N = trained tokens in it, R = runs of tokens in the prefix tree.

Sequences that begin with the same untrained tokens share them: the packed row holds a prefix tree, and a token attends to its
own run up to itself and to every run above it. Hidden states, and so losses and gradients, equal those of the separate sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gym_bridge.errors import PolicyError
from gym_bridge.schemas.tokens import TrainingSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """One microbatch as the model reads it."""

    token_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64, position of each token in its sequences
    run: Tensor  # [T] int64, run of the prefix tree that a token stands in
    sees: Tensor  # [R, R] bool, sees[i, j]: tokens of run i attend to run j
    predictors: Tensor  # [N] int64, packed position whose hidden state predicts each trained token
    targets: Tensor  # [N] int64, the trained tokens
    trained: Tensor  # [N] int64, packed position of each trained token
    sequence: Tensor  # [N] int64, sequence of each trained token

    def attention_mask(self) -> Tensor:
        """[1, 1, T, T] bool, True where the row's token attends to the column's."""
        visible = self.sees[self.run][:, self.run]
        return torch.tril(visible)[None, None]


def pack(sequences: Sequence[TrainingSequence], *, device: torch.device | str = "cpu") -> Pack:
    """The prefix tree of `sequences`, laid out in one row. Raises PolicyError when a sequence trains its first token."""
    if any(sequence.train_mask[0] for sequence in sequences):
        raise PolicyError("the first token of a sequence trains, but nothing predicts it; the prompt is empty")
    tree = _Tree(sequences)
    predictors, targets, places, owners = [], [], [], []
    for index, sequence in enumerate(sequences):
        trained = np.flatnonzero(sequence.train_mask)
        predictors.append(tree.places[index][trained - 1])
        targets.append(sequence.token_ids[trained])
        places.append(tree.places[index][trained])
        owners.append(np.full(len(trained), index))
    return Pack(
        token_ids=_tensor(tree.token_ids, device),
        position_ids=_tensor(tree.position_ids, device),
        run=_tensor([np.full(len(ids), run) for run, ids in enumerate(tree.token_ids)], device),
        sees=torch.from_numpy(tree.sees()).to(device),
        predictors=_tensor(predictors, device),
        targets=_tensor(targets, device),
        trained=_tensor(places, device),
        sequence=_tensor(owners, device),
    )


def plan_microbatches(sequences: Sequence[TrainingSequence], *, max_tokens: int, together: int = 1) -> list[list[TrainingSequence]]:
    """Cut `sequences`, in order, into microbatches of at most `max_tokens` packed tokens each.

    Neighbours that begin alike share their beginning, so pass the members of a group one after the other. Of every `together`
    sequences none leaves the others, as the two sides of a pair; what is longer than `max_tokens` makes a microbatch of its own.
    """
    batches: list[list[TrainingSequence]] = []
    room = 0
    for first in range(0, len(sequences), together):
        unit = list(sequences[first : first + together])
        own = sum(len(one.token_ids) for one in unit) - sum(map(_common_prefix, unit, unit[1:]))
        new = own - (_common_prefix(batches[-1][-1], unit[0]) if batches else 0)
        if not batches or new > room:
            batches.append([])
            new, room = own, max_tokens
        batches[-1] += unit
        room -= new
    return batches


def shareable(sequence: TrainingSequence) -> int:
    """How many tokens stand before the first trained one."""
    return int(sequence.train_mask.argmax())


class _Tree:
    """Runs of the prefix tree in packed order, and where each sequence's tokens went."""

    def __init__(self, sequences: Sequence[TrainingSequence]):
        self.sequences = sequences
        self.token_ids: list[np.ndarray] = []
        self.position_ids: list[np.ndarray] = []
        self.parents: list[int] = []
        self.places = [np.empty(len(one.token_ids), dtype=np.int64) for one in sequences]
        self.num_tokens = 0
        pending = [(list(range(len(sequences))), 0, -1)]
        while pending:
            members, start, parent = pending.pop()
            end = self._shared_end(members, start)
            if end > start:
                parent = self._add(members, start, end, parent)
            pending += [(part, end, parent) for part in self._branches(members, end)]

    def _shared_end(self, members: list[int], start: int) -> int:
        first = self.sequences[members[0]]
        if len(members) == 1:
            return len(first.token_ids)
        return min(_common_prefix(first, self.sequences[other], start) for other in members[1:])

    def _branches(self, members: list[int], end: int) -> Iterator[list[int]]:
        if len(members) == 1:
            return
        parts: dict[int, list[int]] = {}
        for member in members:
            sequence = self.sequences[member]
            own = -1 - member  # a trained token belongs to its sequence alone
            parts.setdefault(int(sequence.token_ids[end]) if end < shareable(sequence) else own, []).append(member)
        yield from parts.values()

    def _add(self, members: list[int], start: int, end: int, parent: int) -> int:
        self.token_ids.append(self.sequences[members[0]].token_ids[start:end])
        self.position_ids.append(np.arange(start, end))
        self.parents.append(parent)
        for member in members:
            self.places[member][start:end] = np.arange(self.num_tokens, self.num_tokens + end - start)
        self.num_tokens += end - start
        return len(self.parents) - 1

    def sees(self) -> np.ndarray:
        """[R, R] bool: a run sees itself and its ancestors."""
        sees = np.eye(len(self.parents), dtype=bool)
        for run, parent in enumerate(self.parents):
            if parent >= 0:
                sees[run] |= sees[parent]
        return sees


def _common_prefix(first: TrainingSequence, second: TrainingSequence, start: int = 0) -> int:
    """First position from `start` on at which the two differ or either one trains."""
    end = min(shareable(first), shareable(second))
    differs = first.token_ids[start:end] != second.token_ids[start:end]
    return start + int(differs.argmax()) if differs.any() else max(start, end)


def _tensor(parts: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)
