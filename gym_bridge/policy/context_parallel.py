"""The tokens of a pack shared among processes: context parallel after Ulysses (Jacobs et al. 2023, arXiv 2309.14509).

Each of n processes computes T/n neighbouring tokens of the packed row, and their part of the loss's log-probs. Only attention needs
the others: around it, each process gives away its tokens' other heads and gets all tokens of its own h/n heads, so that any mask
of a whole row holds. T = packed tokens, h = query heads, g = key and value heads, d = head size, N = trained tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from gym_bridge.errors import ConfigError, PolicyError

TURNED_BY_LENGTH = {"longrope", "dynamic"}
"""Rotary embeddings whose frequencies transformers chooses by the longest position of a call."""


@dataclass(frozen=True, slots=True)
class TokenShare:
    """The tokens of this process among those of `group`, in whose order the parts of a row stand."""

    group: distributed.ProcessGroup

    @property
    def size(self) -> int:
        """Processes that share a row."""
        return self.group.size()

    def here(self, num_tokens: int) -> slice:
        """The packed positions of this process's tokens, of a row whose length is a multiple of `size`."""
        length = num_tokens // self.size
        return slice(self.group.rank() * length, (self.group.rank() + 1) * length)

    def own(self, places: np.ndarray, num_tokens: int) -> np.ndarray:
        """Which of the packed positions `places` [N] are this process's."""
        here = self.here(num_tokens)
        return np.flatnonzero((places >= here.start) & (places < here.stop))

    def everywhere(self, values: Tensor, own: Tensor, count: int) -> Tensor:
        """[count] values of all processes, in each of them, of which this one has those at `own`.

        Every process is to compute the same loss from them: its gradient then goes back to its own values alone.
        """
        return _Everywhere.apply(values, own, count, self.group)

    def by_heads(self, states: Tensor) -> Tensor:
        """[1, h/n, T, d] of this process's heads, from [1, h, T/n, d] of its tokens. Fewer heads than processes are repeated."""
        _, heads, length, size = states.shape
        if heads % self.size:
            states = states.repeat_interleave(self.size // heads, dim=1)
            heads = self.size
        parts = states.reshape(self.size, heads // self.size, length, size)
        return _Exchange.apply(parts, self.group).transpose(0, 1).reshape(1, heads // self.size, -1, size)

    def by_tokens(self, states: Tensor) -> Tensor:
        """[1, T/n, h, d] of this process's tokens, from [1, T, h/n, d] of its heads."""
        _, num_tokens, heads, size = states.shape
        parts = states.reshape(self.size, num_tokens // self.size, heads, size)
        return _Exchange.apply(parts, self.group).transpose(0, 1).reshape(1, -1, self.size * heads, size)

    def of_heads(self, values: Tensor) -> Tensor:
        """[h/n] of this process's heads, from [h] of all."""
        return values.view(self.size, -1)[self.group.rank()]


def check_shareable(module: PreTrainedModel, directory: Path, *, context: int, tensor: int) -> None:
    """Raises ConfigError where the heads of a model, cut over `tensor` processes, cannot be dealt out among `context` more, and
    PolicyError for positions that are turned by what else a process computes."""
    config: Any = module.get_decoder().config
    if found := _rope_types(getattr(config, "rope_parameters", None)) & TURNED_BY_LENGTH:
        raise PolicyError(
            f"{directory}: its rope_type {min(found)} depends on the longest position that a process sees, which differs where "
            "processes share tokens; set policy.context_parallel_size=1"
        )
    heads = config.num_attention_heads // tensor
    keys = (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) // tensor
    if heads % context or (keys % context and context % keys):
        each = f" in each of {tensor} processes" if tensor > 1 else ""
        raise ConfigError(
            f"policy.context_parallel_size={context}: this model has {heads} heads and {keys} heads of keys{each}, which cannot be "
            "dealt out among so many; choose a divisor of the heads that divides those of keys, or is a multiple of them"
        )


def _rope_types(parameters: Any) -> set[str]:
    """Those of a model's layers; `parameters` are of all layers, or by kind of layer."""
    if not isinstance(parameters, Mapping):
        return set()
    own = {parameters["rope_type"]} if "rope_type" in parameters else set()
    return own.union(*map(_rope_types, parameters.values()))


class _Exchange(torch.autograd.Function):
    """[n, ...] parts, of which each process gets its own from all; the gradient goes the same way back."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchanged(parts, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _exchanged(slope, ctx.group), None


class _Everywhere(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, own: Tensor, count: int, group: distributed.ProcessGroup) -> Tensor:
        ctx.save_for_backward(own)
        found = values.new_zeros(count)
        found[own] = values
        distributed.all_reduce(found, group=group)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (own,) = ctx.saved_tensors
        return slope[own], None, None, None


def _exchanged(parts: Tensor, group: distributed.ProcessGroup) -> Tensor:
    parts = parts.contiguous()
    found = torch.empty_like(parts)
    distributed.all_to_all_single(found, parts, group=group)
    return found
