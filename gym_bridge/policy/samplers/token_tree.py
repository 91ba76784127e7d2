"""Token sequences as a tree whose nodes keep their keys and values: what sequences begin with in common is computed once.

P = prompts, V = vocabulary, T = tokens of a pass, g = key and value heads, n = tokens of a node, d = head size.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gym_bridge.errors import PolicyError
from gym_bridge.policy.attention import KERNEL, KeptKeys, Scores
from gym_bridge.policy.family import FULL, SLIDING, attention_kinds
from gym_bridge.policy.samplers.partial_softmax import PartialSoftmax

LEAST_SAVED = 64  # tokens that must be saved for a node of its own
PASS_TOKENS = 4096  # of one forward pass, unless one node has more
BLOCK = 256  # queries that are weighed against their node at a time
KEPT_BYTES = 1 << 30  # of keys and values, between batches

Ids = tuple[int, ...]
States = tuple[Tensor, Tensor]
"""Keys and values [g, n, d] of a layer."""


class Node:
    """Tokens that follow those of its parents."""

    __slots__ = ("children", "end", "ids", "parent", "serial", "states")

    def __init__(self, ids: Ids, parent: "Node | None", serial: int):
        self.ids, self.parent, self.serial = ids, parent, serial
        self.end: int = len(ids) + (0 if parent is None else parent.end)
        self.states: dict[int, States] = {}
        """By layer; empty until they are computed."""
        self.children: list[Node] = []

    @property
    def start(self) -> int:
        """Position of its first token."""
        return self.end - len(self.ids)

    @property
    def chain(self) -> "tuple[Node, ...]":
        """From the first node to this one."""
        return (*(() if self.parent is None else self.parent.chain), self)

    @property
    def place(self) -> tuple[int, ...]:
        """By which nodes are sorted so that those below one stand side by side."""
        return tuple(one.serial for one in self.chain)

    @property
    def num_bytes(self) -> int:
        """Of its keys and values."""
        return sum(one.nbytes for states in self.states.values() for one in states)


class TokenTree:
    """What a model has computed, under the same weights, to go on from. For one thread at a time."""

    def __init__(self, module: PreTrainedModel):
        """Raises PolicyError for a model that keeps anything but keys and values, or computes attention in its own way."""
        name, (kinds, _) = type(module).__name__, attention_kinds(module)
        if unknown := kinds - {FULL, SLIDING}:
            raise PolicyError(f"the in-process sampler cannot batch layers of {min(unknown)} of {name}; sample through vLLM")
        if not module.is_backend_compatible():
            raise PolicyError(
                f"{name} has attention code of its own, which the in-process sampler cannot batch; sample through vLLM"
            )
        if module.config._attn_implementation != KERNEL:
            module.set_attn_implementation(KERNEL)
        self.module, self.device = module, next(module.parameters()).device
        self.roots: list[Node] = []
        self._serials = count()

    def clear(self) -> None:
        """Forget everything: the weights have changed, or nobody goes on."""
        self.roots = []

    def ends(self, prompts: Sequence[Ids]) -> tuple[list[Node], Tensor]:
        """The node in which each of the prompts, all different, ends; and the logits [P, V] of the token after it."""
        begun: dict[Node | None, list[Ids]] = {}
        for one in prompts:
            begun.setdefault(self._found(one), []).append(one)
        levels: list[list[Node]] = []
        ended: dict[Ids, Node] = {}
        for node, ones in begun.items():
            self._grow(node, ones, 0, levels, ended)
        asked = {node: index for index, node in enumerate(ended.values())}
        logits: list[Tensor] = [torch.empty(0)] * len(asked)
        for level in levels:
            for nodes in _parted(sorted(level, key=lambda one: one.place), PASS_TOKENS):
                for node, found in zip(nodes, self._computed(nodes), strict=True):
                    if node in asked:
                        logits[asked[node]] = found
        return [ended[one] for one in prompts], torch.stack([logits[asked[ended[one]]] for one in prompts])

    def add(self, ids: Ids, parent: Node | None) -> Node:
        """A new node, without states yet."""
        node = Node(ids, parent, next(self._serials))
        self._siblings(node).append(node)
        return node

    def remove(self, node: Node) -> None:
        """Take a node out, with all below it."""
        self._siblings(node).remove(node)

    def trim(self) -> None:
        """Forget the oldest ends of sequences until what is kept is within bounds."""
        nodes = list(_all(self.roots))
        held = sum(one.num_bytes for one in nodes)
        for node in sorted(nodes, key=lambda one: one.serial):
            if held <= KEPT_BYTES:
                return
            if not node.children:
                held -= node.num_bytes
                self.remove(node)

    def forward(self, ids: Tensor, positions: Tensor, masks: dict[str, KeptKeys], keep: Tensor) -> Tensor:
        """Logits [K, V] float32 at the K places of `keep` of a pass [T] whose attention is what the masks, by kind, make of it."""
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        found = self.module(
            input_ids=ids[None], position_ids=positions[None], attention_mask=mask, use_cache=False, logits_to_keep=keep
        )
        return found.logits[0].float()

    def windows(self) -> dict[str, int | None]:
        """How far each kind of layer sees, in tokens; None: without bound."""
        kinds, window = attention_kinds(self.module)
        return {kind: window if kind == SLIDING else None for kind in sorted(kinds)}

    def _siblings(self, node: Node) -> list[Node]:
        return self.roots if node.parent is None else node.parent.children

    def _found(self, prompt: Ids) -> Node | None:
        """The last node that the prompt goes on from; at least one token of it is left to compute."""
        node, children, usable = None, self.roots, prompt[:-1]
        while True:
            depth = 0 if node is None else node.end
            rest = usable[depth:]
            whole = next((one for one in children if one.ids == rest[: len(one.ids)]), None)
            if whole is None:
                return self._split(children, rest) or node
            node, children = whole, whole.children

    def _split(self, children: Iterable[Node], rest: Ids) -> Node | None:
        """The beginning of a child that `rest` shares, cut off as a node of its own; None where it is short."""
        shared = [(common_length(one.ids, rest), one) for one in children if rest and one.ids[0] == rest[0]]
        length, child = max(shared, key=lambda one: one[0], default=(0, None))
        if child is None or length < LEAST_SAVED:
            return None
        self.remove(child)
        head = self.add(child.ids[:length], child.parent)
        head.states = {layer: (keys[:, :length], values[:, :length]) for layer, (keys, values) in child.states.items()}
        child.states = {layer: (keys[:, length:], values[:, length:]) for layer, (keys, values) in child.states.items()}
        child.ids, child.parent = child.ids[length:], head
        head.children.append(child)
        return head

    def _grow(self, node: Node | None, prompts: list[Ids], level: int, levels: list[list[Node]], ended: dict[Ids, Node]) -> None:
        """Nodes for the rest of `prompts` below `node`, by the level in which they can be computed."""
        if len(levels) == level:
            levels.append([])
        start, end = 0 if node is None else node.end, common_prefix_length(prompts)
        if (end - start) * (len(prompts) - 1) >= LEAST_SAVED:
            node = self.add(prompts[0][start:end], node)
            levels[level].append(node)
            self._grow(node, prompts, level + 1, levels, ended)
            return
        branches: dict[int, list[Ids]] = {}
        for one in prompts:
            branches.setdefault(one[end], []).append(one)
        for branch in branches.values():
            if len(branch) < len(prompts) and (common_prefix_length(branch) - start) * (len(branch) - 1) >= LEAST_SAVED:
                self._grow(node, branch, level, levels, ended)
            else:
                for one in branch:
                    ended[one] = self.add(one[start:], node)
                    levels[level].append(ended[one])

    def _computed(self, nodes: Sequence[Node]) -> Tensor:
        """Logits [N, V] after the last token of each node, whose states are kept from now on."""
        ids = torch.tensor([token for one in nodes for token in one.ids], device=self.device)
        positions = torch.cat([torch.arange(one.start, one.end, device=self.device) for one in nodes])
        masks = {kind: _pass_mask(nodes, positions, window) for kind, window in self.windows().items()}
        lasts = torch.tensor([len(one.ids) for one in nodes], device=self.device).cumsum(0) - 1
        return self.forward(ids, positions, masks, lasts)


def common_length(first: Ids, second: Ids) -> int:
    """Tokens that both begin with."""
    limit = min(len(first), len(second))
    return next((index for index in range(limit) if first[index] != second[index]), limit)


def common_prefix_length(prompts: Sequence[Ids]) -> int:
    """Tokens that all prompts begin with, short of the last token of the shortest: each prompt keeps one of its own."""
    return min(common_length(min(prompts), max(prompts)), min(map(len, prompts)) - 1)


def runs_below(chains: Sequence[Sequence[Node]], lengths: Sequence[int]) -> list[tuple[Node, slice]]:
    """The places below each node of `chains`, which are sorted and have so many places each."""
    found: dict[Node, slice] = {}
    place = 0
    for chain, length in zip(chains, lengths, strict=True):
        for node in chain:
            found[node] = slice(found[node].start if node in found else place, place + length)
        place += length
    return list(found.items())


def _all(nodes: Iterable[Node]) -> Iterable[Node]:
    for one in nodes:
        yield one
        yield from _all(one.children)


def _parted(nodes: Sequence[Node], most: int) -> Iterable[list[Node]]:
    """In parts of at most so many tokens, but for nodes that alone have more."""
    part: list[Node] = []
    for one in nodes:
        if part and sum(len(other.ids) for other in part) + len(one.ids) > most:
            yield part
            part = []
        part.append(one)
    yield part


def _pass_mask(nodes: Sequence[Node], positions: Tensor, window: int | None) -> KeptKeys:
    """The mask of a pass over new nodes; it keeps their keys and values as it goes."""
    mask = KeptKeys.of(len(positions), positions.device)
    own = [(rows, keys, visible_keys(positions[rows], positions[keys], window) & same) for rows, keys, same in _blocks(nodes)]
    lengths = [len(one.ids) for one in nodes]
    above = [
        (node, rows, None if window is None else visible_keys(positions[rows], _positions(node, positions), window))
        for node, rows in runs_below([one.chain[:-1] for one in nodes], lengths)
    ]
    mask.attention = partial(_pass_attention, nodes, own, above)
    return mask


Own = list[tuple[slice, slice, Tensor]]
"""Tokens of a pass, the ones of the same pass that they may see, and which of these they do."""
Above = list[tuple[Node, slice, Tensor | None]]
"""Nodes of earlier passes, the tokens below them, and what these see of them; None: all."""


def _pass_attention(
    nodes: Sequence[Node], own: Own, above: Above, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
) -> Tensor:
    keys, values = key[0], value[0]  # [g, T, d]
    found = PartialSoftmax(query, len(keys), scores)
    for rows, seen, visible in own:
        found.add_shared(rows, keys[:, seen], values[:, seen], visible)
    for node, rows, visible in above:
        found.add_shared(rows, *node.states[layer], visible)
    place = 0
    for one in nodes:
        part = slice(place, place := place + len(one.ids))
        one.states[layer] = keys[:, part].clone(), values[:, part].clone()
    return found.attention()


def _blocks(nodes: Sequence[Node]) -> Iterable[tuple[slice, slice, Tensor]]:
    """Tokens, those that any of them may see in this pass, and which belong to the same node [t, k]: small nodes side by side are
    one block, a long one is several."""
    place = 0
    for together in _parted(nodes, BLOCK):
        lengths = torch.tensor([len(one.ids) for one in together])
        numbers = torch.arange(len(together)).repeat_interleave(lengths)
        end = place + len(numbers)
        for begin in range(place, end, BLOCK):
            rows = slice(begin, min(begin + BLOCK, end))
            yield rows, slice(place, rows.stop), numbers[begin - place : rows.stop - place, None] == numbers[: rows.stop - place]
        place = end


def visible_keys(positions: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """[..., q, k] bool: which keys stand before the token or at it, and within its window."""
    ages = positions[..., :, None] - keys[..., None, :]
    return ages >= 0 if window is None else (ages >= 0) & (ages < window)


def _positions(node: Node, like: Tensor) -> Tensor:
    return torch.arange(node.start, node.end, device=like.device)
