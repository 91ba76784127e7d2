"""Sequences that grow side by side by a token at a time. R = rows, V = vocabulary, g = key and value heads, d = head size,
L = tokens of a buffer.

What several rows begin with stays in the tree, where all of them read it; what is a row's own stands in a buffer.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gym_bridge.policy.attention import KeptKeys, Scores
from gym_bridge.policy.samplers.partial_softmax import PartialSoftmax
from gym_bridge.policy.samplers.token_tree import Above, Node, TokenTree, runs_below, visible_keys

LEAST_SHARED = 1024  # tokens of several rows' buffers that reading a node in its place must save: it takes a call in each layer
ROOM = 128  # tokens by which a buffer is longer than what it is made for


class GrowingRows:
    """Rows that each begin where a node ends; nodes that are one row's alone leave the tree."""

    def __init__(self, tree: TokenTree, ends: Sequence[Node]):
        """`ends` must be sorted by their place."""
        self._tree, self._device = tree, tree.device
        chains = [one.chain for one in ends]
        below = {node: rows.stop - rows.start for node, rows in runs_below(chains, [1] * len(chains))}
        self._shared: list[list[Node]] = []
        own: list[list[Node]] = []
        for chain in chains:
            depth = 0
            while depth < len(chain) and len(chain[depth].ids) * (below[chain[depth]] - 1) >= LEAST_SHARED:
                depth += 1
            self._shared.append(list(chain[:depth]))
            own.append(list(chain[depth:]))
        self._starts = torch.tensor([chain[-1].end if chain else 0 for chain in self._shared], device=self._device)
        self._lengths = torch.tensor([sum(len(one.ids) for one in nodes) for nodes in own], device=self._device)
        self._layers = sorted(ends[0].states)
        self._buffers = {layer: self._begun(layer, own) for layer in self._layers}
        self._runs = runs_below(self._shared, [1] * len(self._shared))
        self._forget(own)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [R, V] of the token after `tokens` [R]."""
        length = int(self._lengths.max()) + 1
        if self._buffers[self._layers[0]][0].shape[2] < length:
            self._buffers = {layer: self._longer(states, length) for layer, states in self._buffers.items()}
        positions = self._starts + self._lengths
        columns = self._starts[:, None] + torch.arange(length, device=self._device)
        masks: dict[str, KeptKeys] = {}
        for kind, window in self._tree.windows().items():
            masks[kind] = KeptKeys.of(len(tokens), self._device)
            visible = visible_keys(positions[:, None], columns, window)[:, 0]
            above = [(node, rows, self._visible(node, positions[rows], window)) for node, rows in self._runs]
            masks[kind].attention = partial(self._attention, visible, above)
        logits = self._tree.forward(tokens, positions, masks, torch.arange(len(tokens), device=self._device))
        self._lengths = self._lengths + 1
        return logits

    def cut(self, alive: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        index = torch.tensor(alive, device=self._device)
        self._buffers = {layer: (keys[index], values[index]) for layer, (keys, values) in self._buffers.items()}
        self._starts, self._lengths = self._starts[index], self._lengths[index]
        self._shared = [self._shared[one] for one in alive]
        self._runs = runs_below(self._shared, [1] * len(self._shared))

    def keep(self, row: int, ids: Sequence[int]) -> None:
        """Give what a row has of the sequence `ids` back to the tree, to be gone on from."""
        parent = self._shared[row][-1] if self._shared[row] else None
        start = int(self._starts[row])
        length = min(int(self._lengths[row]), len(ids) - start)
        node = self._tree.add(tuple(ids[start : start + length]), parent)
        for layer, (keys, values) in self._buffers.items():
            node.states[layer] = keys[row, :, :length].clone(), values[row, :, :length].clone()

    def _attention(
        self, visible: Tensor, above: Above, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        keys, values = self._buffers[layer]
        rows = torch.arange(len(keys), device=self._device)
        keys[rows, :, self._lengths] = key[0].transpose(0, 1)
        values[rows, :, self._lengths] = value[0].transpose(0, 1)
        found = PartialSoftmax(query, keys.shape[1], scores)
        length = visible.shape[1]
        found.add_own(keys[:, :, :length], values[:, :, :length], visible)
        for node, below, seen in above:
            found.add_shared(below, *node.states[layer], seen)
        return found.attention()

    def _begun(self, layer: int, own: Sequence[Sequence[Node]]) -> tuple[Tensor, Tensor]:
        """Buffers [R, g, L, d] that hold the rows' own nodes."""
        like = next(iter(own[0] or self._shared[0])).states[layer]
        length = int(self._lengths.max()) + ROOM
        buffers = tuple(one.new_zeros((len(own), one.shape[0], length, one.shape[2])) for one in like)
        for row, nodes in enumerate(own):
            place = 0
            for node in nodes:
                part = slice(place, place := place + len(node.ids))
                for buffer, states in zip(buffers, node.states[layer], strict=True):
                    buffer[row, :, part] = states
        return buffers[0], buffers[1]

    def _longer(self, states: tuple[Tensor, Tensor], length: int) -> tuple[Tensor, Tensor]:
        grown = [one.new_zeros((*one.shape[:2], length + ROOM, one.shape[3])) for one in states]
        for one, before in zip(grown, states, strict=True):
            one[:, :, : before.shape[2]] = before
        return grown[0], grown[1]

    def _visible(self, node: Node, positions: Tensor, window: int | None) -> Tensor | None:
        if window is None:
            return None
        return visible_keys(positions, torch.arange(node.start, node.end, device=self._device), window)

    def _forget(self, own: Sequence[Sequence[Node]]) -> None:
        """Take nodes whose states the buffers hold out of the tree, unless other sequences go on from them."""
        for node in sorted({one for nodes in own for one in nodes}, key=lambda one: one.end, reverse=True):
            if not node.children:
                self._tree.remove(node)
