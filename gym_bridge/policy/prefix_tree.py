"""The prefix tree of a microbatch's sequences. R = runs of tokens in it, T = tokens in all runs.

The runs stand in one row depth first, so that what is under a run follows it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from gym_bridge.schemas.tokens import TrainingSequence


def shareable(sequence: TrainingSequence) -> int:
    """How many tokens stand before the first trained one."""
    return int(sequence.train_mask.argmax())


def common_prefix(first: TrainingSequence, second: TrainingSequence, start: int = 0) -> int:
    """First position from `start` on at which the two differ or either one trains."""
    end = min(shareable(first), shareable(second))
    differs = first.token_ids[start:end] != second.token_ids[start:end]
    return start + int(differs.argmax()) if differs.any() else max(start, end)


class PrefixTree:
    """Runs of the prefix tree in packed order, and where each sequence's tokens went."""

    def __init__(self, sequences: Sequence[TrainingSequence], *, share_prefixes: bool):
        self.sequences = sequences
        self.token_ids: list[np.ndarray] = []
        self.position_ids: list[np.ndarray] = []
        self.starts: list[int] = []
        self.parents: list[int] = []
        self.places = [np.empty(len(one.token_ids), dtype=np.int64) for one in sequences]
        self.num_tokens = 0
        everyone = list(range(len(sequences)))
        pending = [(part, 0, -1) for part in ([everyone] if share_prefixes else [[one] for one in reversed(everyone)])]
        while pending:
            members, start, parent = pending.pop()
            end = self._shared_end(members, start)
            if end > start:
                parent = self._add(members, start, end, parent)
            pending += [(part, end, parent) for part in self._branches(members, end)][::-1]

    def _shared_end(self, members: list[int], start: int) -> int:
        first = self.sequences[members[0]]
        if len(members) == 1:
            return len(first.token_ids)
        return min(common_prefix(first, self.sequences[other], start) for other in members[1:])

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
        self.starts.append(self.num_tokens)
        self.parents.append(parent)
        for member in members:
            self.places[member][start:end] = np.arange(self.num_tokens, self.num_tokens + end - start)
        self.num_tokens += end - start
        return len(self.parents) - 1

    def until(self) -> np.ndarray:
        """[T] packed position at which the subtree of each token's run ends."""
        ends = [*self.starts[1:], self.num_tokens]
        for run in range(len(ends) - 1, -1, -1):
            if self.parents[run] >= 0:
                ends[self.parents[run]] = max(ends[self.parents[run]], ends[run])
        lengths = [end - start for start, end in pairwise([*self.starts, self.num_tokens])]
        return np.repeat(ends, lengths)
