"""Attention within the prefix tree of a packed row, computed block by block.

T = packed tokens, h = query heads, g = key and value heads (g divides h), d = head size, q = tokens of a block, k = those it sees.

Every model loaded here computes attention with `attend`. It does what the mask asks for: a BlockRows mask is one call of SDPA for
each block of rows, over the keys that these rows can see; a KeptKeys mask attends to keys of earlier passes too, as the sampler has
it; a BlockMask goes to FlexAttention; any other mask to transformers' SDPA.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gym_bridge.errors import PolicyError
from gym_bridge.policy.context_parallel import TokenShare
from gym_bridge.policy.packing import Pack

KERNEL = "gym_bridge"
"""Name under which transformers knows `attend`."""
SMALL = 128
"""Subtrees of at most so many tokens are one block with its neighbours: below that, a call costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of packed tokens that see the same earlier blocks and, through `mask`, themselves."""

    context: tuple[int, ...]
    """Positions in the list of blocks of those that all of these rows may see, in packed order."""
    mask: Tensor | None  # [q, k] bool over context and own tokens; None: every token sees the own ones up to itself


class OpaqueMask(Tensor):
    """A mask [1, 1, T, T] without values; only `attend` can read it."""

    @classmethod
    def of(cls, num_tokens: int, device: torch.device) -> Self:
        """One for so many tokens, whose other attributes are to be set."""
        return torch.zeros(1, dtype=torch.bool, device=device).expand(1, 1, num_tokens, num_tokens).as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What a model may ask: shape, dtype, device. Raises PolicyError when it computes with the mask itself."""
        name = getattr(func, "__name__", "")
        if name in ("__get__", "dim", "size"):
            return super().__torch_function__(func, types, args, kwargs or {})
        raise PolicyError(f"this model computes with its attention mask itself ({name}), so that sequences cannot be packed for it")


class BlockRows(OpaqueMask):
    """The blocks of a pack."""

    blocks: Sequence[Block]
    lengths: list[int]
    share: TokenShare | None = None


class KeptKeys(OpaqueMask):
    """Keys and values of earlier passes, by layer, to which those of this one are added."""

    attention: Callable[[int, Tensor, Tensor, Tensor, "Scores"], Tensor]
    """(layer, query, key, value, scores) -> [T, h, d]; of a KeptKeys that was made, not of the class."""


def block_rows(packed: Pack, *, window: int | None = None) -> BlockRows:
    """The mask of a pack for SDPA; with `window` a token sees those of its sequence less than `window` positions before it."""
    bounds, contexts = _blocks(packed)
    device = packed.token_ids.device
    parts = list(torch.arange(len(packed.token_ids), device=device).split([end - start for start, end in bounds]))
    blocks = []
    for own, context in zip(parts, contexts, strict=True):
        seen = torch.cat([*(parts[one] for one in context), own])
        visible = _visible(packed, own, seen, window)
        plain = not context and torch.equal(visible, torch.ones_like(visible).tril())
        blocks.append(Block(context, None if plain else visible))
    mask = BlockRows.of(len(packed.token_ids), device)
    mask.blocks, mask.lengths, mask.share = blocks, [end - start for start, end in bounds], packed.share
    return mask


def flex_mask(packed: Pack, *, window: int | None = None) -> BlockMask:
    """The mask of a pack for FlexAttention, which skips blocks in which no token sees another."""
    until, position = packed.until, packed.position_ids
    reach = len(until) if window is None else window

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) & (row < until[column]) & (position[row] - position[column] < reach)

    size = len(until)
    mask = create_block_mask(visible, B=None, H=None, Q_LEN=size, KV_LEN=size, device=str(until.device))
    mask.share = packed.share  # pyright: ignore[reportAttributeAccessIssue]
    return mask


def _visible(packed: Pack, rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
    """[q, k] bool: the column's token stands before the row's or is it, and its subtree has not ended there."""
    visible = (columns <= rows[:, None]) & (rows[:, None] < packed.until[columns])
    if window is not None:
        visible &= packed.position_ids[rows][:, None] - packed.position_ids[columns] < window
    return visible


def _blocks(packed: Pack) -> tuple[list[tuple[int, int]], list[tuple[int, ...]]]:
    """First and last packed position of each block, and the blocks above it.

    A run with a large subtree is a block of its own; small subtrees side by side under it become one block.
    """
    runs = list(pairwise([*packed.starts, len(packed.token_ids)]))
    until = packed.until.tolist()
    bounds: list[tuple[int, int]] = []
    contexts: list[tuple[int, ...]] = []
    chains: dict[int, tuple[int, ...]] = {-1: ()}
    covered = 0
    for run, (start, end) in enumerate(runs):
        if start < covered:
            continue
        context = chains[packed.parents[run]]
        covered = until[start]
        if covered - start > SMALL:
            chains[run] = (*context, len(bounds))
            covered = end
        elif bounds and contexts[-1] == context and covered - bounds[-1][0] <= SMALL:
            bounds[-1] = (bounds[-1][0], covered)
            continue
        bounds.append((start, covered))
        contexts.append(context)
    return bounds, contexts


def attend(
    module: nn.Module,
    query: Tensor,  # [1, h, T, d]
    key: Tensor,  # [1, g, T, d]
    value: Tensor,  # [1, g, T, d]
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,  # [h] attention sinks
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """[1, T, h, d] as transformers expects it of an attention function.

    With a mask of tokens that processes share, T are those of this one.
    """
    share: TokenShare | None = getattr(attention_mask, "share", None)
    if share is not None:
        query, key, value = map(share.by_heads, (query, key, value))
        s_aux = None if s_aux is None else share.of_heads(s_aux)
    found, weights = _attended(module, query, key, value, attention_mask, scaling, dropout, softcap, s_aux, **options)
    return found if share is None else share.by_tokens(found), weights


def _attended(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    s_aux: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, s_aux=s_aux, dropout=dropout, **options
        )
    if options.get("position_bias") is not None and isinstance(attention_mask, OpaqueMask):
        raise PolicyError("this model adds a bias to its attention scores, so that sequences cannot be packed for it")
    scores = Scores(scaling, dropout, softcap, s_aux)
    if isinstance(attention_mask, BlockRows):
        return _by_block(query, key, value, attention_mask, scores), None
    if isinstance(attention_mask, KeptKeys):
        layer = cast(int, module.layer_idx)
        return attention_mask.attention(layer, query, key, value, scores).to(query.dtype)[None], None
    if softcap is None and s_aux is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
    return scores.attention(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _by_block(query: Tensor, key: Tensor, value: Tensor, mask: BlockRows, scores: "Scores") -> Tensor:
    queries, keys, values = (one.split(mask.lengths, dim=2) for one in (query, key, value))
    found = []
    for place, block in enumerate(mask.blocks):
        seen = (*block.context, place)
        own_keys, own_values = (
            one[place] if len(seen) == 1 else torch.cat([one[i] for i in seen], dim=2) for one in (keys, values)
        )
        found.append(scores.attention(queries[place], own_keys, own_values, block.mask))
    return torch.cat(found, dim=2).transpose(1, 2).contiguous()


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores become attention."""

    scaling: float | None
    """None: one by the root of d."""
    dropout: float
    softcap: float | None
    sinks: Tensor | None  # [h]

    def of(self, query: Tensor, keys: Tensor) -> Tensor:
        """[..., q, k] before any mask."""
        found = query @ keys.transpose(-1, -2) * (query.shape[-1] ** -0.5 if self.scaling is None else self.scaling)
        return found if self.softcap is None else torch.tanh(found / self.softcap) * self.softcap

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[b, h, q, d]; without a mask the last query sees every key, each before it one less."""
        if query.device.type != "cpu" or self.softcap is not None or self.sinks is not None:
            groups = query.shape[1] // key.shape[1]  # masked SDPA on CUDA has fast kernels for equal numbers of heads alone
            key, value = (one.repeat_interleave(groups, dim=1) if groups > 1 else one for one in (key, value))
        if self.softcap is not None or self.sinks is not None:
            return self._spelled_out(query, key, value, mask)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout,
            is_causal=mask is None,
            scale=self.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _spelled_out(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = self.of(query, key)
        if mask is None:
            rows, columns = scores.shape[2:]
            mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(columns - rows)
        scores = torch.where(mask, scores, -torch.inf)
        wide = torch.promote_types(scores.dtype, torch.float32)
        if self.sinks is None:
            weights = torch.softmax(scores, dim=-1, dtype=wide)
        else:
            sinks = self.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1, dtype=wide)[..., :-1]
        return F.dropout(weights.to(query.dtype), self.dropout, training=self.dropout > 0) @ value


AttentionInterface.register(KERNEL, attend)
AttentionMaskInterface.register(KERNEL, sdpa_mask)
