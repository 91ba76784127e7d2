"""The keys and values of a batch. R = rows, g = key and value heads, L = tokens, d = head size.

Rows of different length stand in one cache with their ends aligned: what stands before a shorter one is masked.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from gym_bridge.errors import PolicyError

ROOM = 128  # tokens by which a buffer is longer than what it is made for


class GrowingLayer(DynamicLayer):
    """A layer that writes each token into a buffer, where `DynamicLayer` copies all that came before for each one."""

    _buffers: tuple[Tensor, Tensor] | None = None  # [R, g, L + room, d]; `keys` and `values` are views of them

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the states of new tokens; returns those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < length:
            self._buffers = _buffer(self.keys, key_states, length), _buffer(self.values, value_states, length)
        keys, values = self._buffers
        keys[:, :, before:length], values[:, :, before:length] = key_states, value_states
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        super().batch_select_indices(indices)
        self._buffers = None


KINDS = (GrowingLayer, DynamicSlidingWindowLayer, DummyLayer)


def _buffer(held: Tensor | None, states: Tensor, length: int) -> Tensor:
    rows, heads, _, size = states.shape
    buffer = states.new_empty((rows, heads, length + ROOM, size))
    if held is not None and held.numel():
        buffer[:, :, : held.shape[2]] = held
    return buffer


def empty_cache(module: PreTrainedModel) -> DynamicCache:
    """A cache for the layers of `module`; those that attend to a window keep to transformers' own.

    Raises PolicyError for layers that keep anything but keys and values.
    """
    cache = DynamicCache(config=module.config)
    cache.layers = [GrowingLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    if unknown := {type(one).__name__ for one in cache.layers if type(one) not in KINDS}:
        raise PolicyError(f"the in-process sampler cannot batch {min(unknown)} of {type(module).__name__}; sample through vLLM")
    return cache


def forked(cache: DynamicCache, num_rows: int) -> DynamicCache:
    """A cache of its own in which each row of `cache` stands `num_rows` times."""
    fork = copy(cache)
    fork.layers = [copy(one) for one in cache.layers]
    fork.batch_repeat_interleave(num_rows)
    return fork


def joined(parts: Sequence[tuple[DynamicCache, Sequence[int]]], *, length: int) -> DynamicCache:
    """One cache of `length` tokens for the rows of all parts; each part comes with the places of its rows, and is emptied."""
    whole = copy(parts[0][0])
    whole.layers = []
    for index in range(len(parts[0][0].layers)):
        whole.layers.append(_joined_layer([(cache.layers[index], places) for cache, places in parts], length=length))
        for cache, _ in parts:
            cache.layers[index] = DynamicLayer()
    return whole


def _joined_layer(parts: Sequence[tuple[Any, Sequence[int]]], *, length: int) -> Any:
    layer = copy(parts[0][0])
    if isinstance(layer, DummyLayer):
        return layer
    num_rows = sum(len(places) for _, places in parts)
    for name in ("keys", "values"):
        held = [(getattr(one, name), places) for one, places in parts]
        _, heads, _, size = held[0][0].shape
        whole = held[0][0].new_zeros((num_rows, heads, max(states.shape[2] for states, _ in held), size))
        for states, places in held:
            whole[torch.tensor(places, device=whole.device), :, whole.shape[2] - states.shape[2] :] = states
        setattr(layer, name, whole)
    if layer.is_sliding:
        layer.cumulative_length = length
    else:
        layer._buffers = None
    return layer
