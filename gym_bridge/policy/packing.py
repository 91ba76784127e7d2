"""Sequences of different lengths in one row of tokens, without padding, each beginning computed once.

T = packed tokens of a microbatch, N = trained tokens in it, R = runs of tokens in the prefix tree.

Sequences that begin with the same untrained tokens share them: the packed row holds a prefix tree, and a token attends to its
own run up to itself and to every run above it. Hidden states, and so losses and gradients, equal those of the separate sequences.
The tree stands in the row depth first, so that what is under a run follows it: a token sees those before it whose subtree has
not ended.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gym_bridge.errors import PolicyError
from gym_bridge.policy.context_parallel import TokenShare
from gym_bridge.policy.prefix_tree import PrefixTree, common_prefix, shareable
from gym_bridge.schemas.tokens import TrainingSequence

ATTENTION_COST = 1 / 6000
"""What a token costs by attending to one other, where all else costs 1: 4 of 24 H FLOPs of a layer, at a hidden size H of 1000."""
SHARED_PART = 0.25
"""Neighbours stay together when they share at least this part of their tokens."""

Place = Literal["predictors", "trained"]
"""Where a trained token is read off: at the state that predicts it, or at its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """One microbatch as the model reads it."""

    token_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64, position of each token in its sequences
    until: Tensor  # [T] int64, token i is attended to from packed positions i to until[i] - 1
    predictors: Tensor  # [N] int64, packed position whose hidden state predicts each trained token
    targets: Tensor  # [N] int64, the trained tokens
    trained: Tensor  # [N] int64, packed position of each trained token
    sequence: Tensor  # [N] int64, sequence of each trained token
    starts: tuple[int, ...]
    """[R] packed position at which each run starts; the next one starts where it ends."""
    parents: tuple[int, ...]
    """[R] the run above each run, -1 for none."""
    num_tokens: int
    """Without the filler after the last sequence."""
    share: TokenShare | None = None
    """Which tokens this process computes; None: all."""
    own: Mapping[Place, Tensor] = field(default_factory=dict)
    """With a share: which of the N trained tokens are read off states that this process computes, by where they are read."""

    @property
    def here(self) -> slice:
        """Packed positions of the tokens that this process computes."""
        return slice(None) if self.share is None else self.share.here(len(self.token_ids))

    def read(
        self, hidden: Tensor, place: Place, read: Callable[[Tensor, Tensor | slice], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What `read` finds at the predictors of the trained tokens, or at themselves, each [N]: called with the states [n, H] that
        this process computes of these, and with which of the N they are. `hidden`: [T, H] of this process's tokens."""
        places = self.predictors if place == "predictors" else self.trained
        if self.share is None:
            return read(hidden[places], slice(None))
        own = self.own[place]
        found = read(hidden[places[own] - self.here.start], own)
        return tuple(self.share.everywhere(one, own, len(places)) for one in found)


def pack(
    sequences: Sequence[TrainingSequence],
    *,
    share_prefixes: bool = True,
    device: torch.device | str = "cpu",
    multiple_of: int = 1,
    share: TokenShare | None = None,
) -> Pack:
    """The prefix tree of `sequences`, laid out in one row; without `share_prefixes` each sequence is a tree of its own. Filler, a
    run of its own, makes T a multiple of `multiple_of`. `share`: which of the tokens this process computes; all by default.

    Raises PolicyError when a sequence trains its first token.
    """
    if any(sequence.train_mask[0] for sequence in sequences):
        raise PolicyError("the first token of a sequence trains, but nothing predicts it; the prompt is empty")
    tree = PrefixTree(sequences, share_prefixes=share_prefixes)
    predictors, targets, places, owners = [], [], [], []
    for index, sequence in enumerate(sequences):
        trained = np.flatnonzero(sequence.train_mask)
        predictors.append(tree.places[index][trained - 1])
        targets.append(sequence.token_ids[trained])
        places.append(tree.places[index][trained])
        owners.append(np.full(len(trained), index))
    until = tree.until()
    num_tokens, filler = len(until), -len(until) % multiple_of
    read: dict[Place, list[np.ndarray]] = {} if share is None else {"predictors": predictors, "trained": places}

    def own(places: list[np.ndarray]) -> Tensor:
        assert share is not None
        return _tensor([share.own(np.concatenate(places), num_tokens + filler)], device)

    return Pack(
        token_ids=_tensor([*tree.token_ids, np.zeros(filler, np.int64)], device),
        position_ids=_tensor([*tree.position_ids, np.arange(filler)], device),
        until=_tensor([until, np.full(filler, num_tokens + filler)], device),
        predictors=_tensor(predictors, device),
        targets=_tensor(targets, device),
        trained=_tensor(places, device),
        sequence=_tensor(owners, device),
        starts=(*tree.starts, *[num_tokens][:filler]),
        parents=(*tree.parents, *[-1][:filler]),
        num_tokens=num_tokens,
        share=share,
        own={place: own(one) for place, one in read.items()},
    )


def plan_microbatches(
    units: Sequence[Sequence[TrainingSequence]], *, max_tokens: int, share_prefixes: bool = True, multiple_of: int = 1
) -> list[list[TrainingSequence]]:
    """The sequences of `units` in microbatches of at most `max_tokens` packed tokens each, in which no unit is parted.

    A unit is what must stay together, such as the two sides of a pair. Units that share much of their beginning stay together as
    far as the limit lets them. The microbatches are few and cost about the same; a unit longer than `max_tokens` has one of its
    own. The same units in the same order give the same plan. Their number is a multiple of `multiple_of` where there are enough
    units, so that as many processes have as much to do.
    """
    plan = assign_units(units, max_tokens=max_tokens, share_prefixes=share_prefixes, multiple_of=multiple_of)
    return [[one for index in batch for one in units[index]] for batch in plan]


def assign_units(
    units: Sequence[Sequence[TrainingSequence]], *, max_tokens: int, share_prefixes: bool = True, multiple_of: int = 1
) -> list[list[int]]:
    """The plan of `plan_microbatches` as positions in `units`, ascending in each microbatch."""
    clusters = _clusters([_Unit(unit, share_prefixes) for unit in units], share_prefixes)
    pieces = [piece for cluster in clusters for piece in _cut_evenly(cluster, max_tokens)]
    fewest = _first_fit(pieces, max_tokens)
    count = -(-len(fewest) // multiple_of) * multiple_of
    if len(fewest) < count:
        share = -(-sum(piece.tokens for piece in pieces) // count)
        pieces = [piece for cluster in clusters for piece in _cut_evenly(cluster, share)]
    batches = _longest_first(pieces, count, max_tokens) or fewest
    return sorted(sorted(index for piece in batch for index in piece.units) for batch in batches if batch)


class _Unit:
    """Packed tokens of a unit and what they cost; neighbours within it share their beginnings."""

    def __init__(self, sequences: Sequence[TrainingSequence], share_prefixes: bool):
        self.first = sequences[0]
        shared = [common_prefix(*both) for both in pairwise(sequences)] if share_prefixes else []
        lengths = [len(one.token_ids) for one in sequences]
        self.tokens = sum(lengths) - sum(shared)
        self.cost = sum(map(_cost, lengths)) - sum(map(_cost, shared))
        self.order = self.first.token_ids[: shareable(self.first)].astype(">i4").tobytes()


@dataclass(slots=True)
class _Piece:
    """Units that go into one microbatch together."""

    units: list[int]
    tokens: int
    cost: float


@dataclass(frozen=True, slots=True)
class _Member:
    """A unit of a cluster: its tokens and cost, and how much of both the unit before it has computed."""

    index: int
    unit: _Unit
    shared: int


def _cost(length: int) -> float:
    """Computing cost of the first `length` tokens of a sequence, in tokens."""
    return length + ATTENTION_COST * length * (length + 1) / 2


def _clusters(units: list[_Unit], share_prefixes: bool) -> list[list[_Member]]:
    """The units in order of their beginnings, cut where neighbours share little."""
    if not share_prefixes:
        return [[_Member(index, unit, 0)] for index, unit in enumerate(units)]
    order = sorted(range(len(units)), key=lambda index: (units[index].order, index))
    clusters: list[list[_Member]] = []
    for place, index in enumerate(order):
        unit = units[index]
        shared = common_prefix(units[order[place - 1]].first, unit.first) if place else 0
        if place and shared >= SHARED_PART * unit.tokens:
            clusters[-1].append(_Member(index, unit, shared))
        else:
            clusters.append([_Member(index, unit, 0)])
    return clusters


def _cut_evenly(cluster: list[_Member], max_tokens: int) -> list[_Piece]:
    """The cluster in the fewest pieces of at most `max_tokens`, the longest of which is as short as can be."""
    best = _cut(cluster, max_tokens)
    low, high = 0, max_tokens
    while len(best) > 1 and low + 1 < high:
        middle = (low + high) // 2
        found = _cut(cluster, middle)
        if len(found) > len(best):
            low = middle
        else:
            best, high = found, middle
    return best


def _cut(cluster: list[_Member], max_tokens: int) -> list[_Piece]:
    pieces: list[_Piece] = []
    for one in cluster:
        added = one.unit.tokens - one.shared
        if pieces and pieces[-1].tokens + added <= max_tokens:
            pieces[-1].units.append(one.index)
            pieces[-1].tokens += added
            pieces[-1].cost += one.unit.cost - _cost(one.shared)
        else:
            pieces.append(_Piece([one.index], one.unit.tokens, one.unit.cost))
    return pieces


def _first_fit(pieces: list[_Piece], max_tokens: int) -> list[list[_Piece]]:
    """Pieces, longest first, each in the first microbatch that has room."""
    batches: list[list[_Piece]] = []
    room: dict[int, int] = {}  # of those batches that have any for the smallest piece
    smallest = min((piece.tokens for piece in pieces), default=0)
    for piece in sorted(pieces, key=lambda one: (-one.tokens, one.units[0])):
        place = next((index for index, free in room.items() if piece.tokens <= free), len(batches))
        if place == len(batches):
            batches.append([])
            room[place] = max_tokens
        batches[place].append(piece)
        room[place] -= piece.tokens
        if room[place] < smallest:
            del room[place]
    return batches


def _longest_first(pieces: list[_Piece], count: int, max_tokens: int) -> list[list[_Piece]] | None:
    """Pieces, costliest first, each in the cheapest of `count` microbatches that has room (Graham 1969).

    None where no microbatch has room for one of them.
    """
    batches: list[list[_Piece]] = [[] for _ in range(count)]
    tokens = [0] * count
    cheapest = [(0.0, place) for place in range(count)]  # a heap
    for piece in sorted(pieces, key=lambda one: (-one.cost, one.units[0])):
        full = []
        while cheapest:
            cost, place = heappop(cheapest)
            if not batches[place] or tokens[place] + piece.tokens <= max_tokens:
                break
            full.append((cost, place))
        else:
            return None
        batches[place].append(piece)
        tokens[place] += piece.tokens
        for one in (*full, (cost + piece.cost, place)):
            heappush(cheapest, one)
    return batches


def _tensor(parts: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)
