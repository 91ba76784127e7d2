"""Attention over keys that come in parts. T = tokens, t = some of them, g = key and value heads, m = query heads of each,
d = head size, k = keys of a part.

Each part is weighed against the largest score so far, and what was added up before is scaled down to it (Milakov and Gimelshein
2018, arXiv 1805.02867): the parts together give what all keys at once would.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gym_bridge.policy.attention import Scores

MAX_SCORES = 1 << 24
"""Scores that are computed at a time, at most: 64 MiB."""


class PartialSoftmax:
    """The attention of T tokens, from the parts of their keys that were added. The first part must let every token see a key."""

    def __init__(
        self,
        query: Tensor,  # [1, h, T, d]
        num_groups: int,
        scores: Scores,
    ):
        self._query = query[0].unflatten(0, (num_groups, -1)).permute(2, 0, 1, 3)  # [T, g, m, d]
        self._scores = scores
        shape = self._query.shape
        if scores.sinks is None:
            self._top = query.new_full(shape[:3], -torch.inf, dtype=torch.float32)
            self._total = torch.zeros_like(self._top)
        else:  # a key of its own for each head, without a value
            self._top = scores.sinks.float().view(num_groups, -1).expand(shape[:3]).clone()
            self._total = torch.ones_like(self._top)
        self._sum = query.new_zeros(shape, dtype=torch.float32)

    def add_own(
        self,
        keys: Tensor,  # [T, g, k, d]
        values: Tensor,  # [T, g, k, d]
        visible: Tensor,  # [T, k] bool
    ) -> None:
        """Keys of each token for itself."""
        scores = self._scores.of(self._query, keys).float().masked_fill(~visible[:, None, None], -torch.inf)
        self._add(slice(None), scores, lambda weights: weights.to(values.dtype) @ values)

    def add_shared(
        self,
        rows: slice,
        keys: Tensor,  # [g, k, d]
        values: Tensor,  # [g, k, d]
        visible: Tensor | None = None,  # [t, k] bool; None: all
    ) -> None:
        """Keys that the tokens of `rows` share."""
        start, stop, _ = rows.indices(len(self._query))
        num_groups, num_keys, _ = keys.shape
        step = max(1, MAX_SCORES // (self._query.shape[2] * num_groups * num_keys))
        for begin in range(start, stop, step):
            part = slice(begin, min(begin + step, stop))
            query = self._query[part].transpose(0, 1)  # [g, t, m, d]
            shape = query.shape[:3]
            scores = self._scores.of(query.flatten(1, 2), keys).float().unflatten(1, shape[1:]).transpose(0, 1)  # [t, g, m, k]
            if visible is not None:
                scores = scores.masked_fill(~visible[begin - start : part.stop - start, None, None], -torch.inf)

            def weigh(weights: Tensor, shape: torch.Size = shape) -> Tensor:
                flat = weights.to(values.dtype).transpose(0, 1).flatten(1, 2)  # [g, t * m, k]
                return (flat @ values).unflatten(1, shape[1:]).transpose(0, 1)

            self._add(part, scores, weigh)

    def _add(self, rows: slice, scores: Tensor, weigh: Callable[[Tensor], Tensor]) -> None:
        top = torch.maximum(self._top[rows], scores.amax(dim=-1))
        before = (self._top[rows] - top).exp()
        weights = (scores - top[..., None]).exp()
        self._total[rows] = self._total[rows] * before + weights.sum(dim=-1)
        self._sum[rows] = self._sum[rows] * before[..., None] + weigh(weights)
        self._top[rows] = top

    def attention(self) -> Tensor:
        """[T, h, d] float32."""
        return (self._sum / self._total[..., None]).flatten(1, 2)
