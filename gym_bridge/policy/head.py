"""Log-probabilities from hidden states, in chunks: [T, V] logits never exist.

N = trained tokens, H = hidden size, V = vocabulary, C = tokens of a chunk.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

CHUNK = 256  # trained tokens whose logits exist at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyPart:
    """The tokens whose logits this process computes; those of a group of processes make up the vocabulary."""

    first: int
    group: distributed.ProcessGroup

    def joined(self, chosen: Tensor, normalisers: Tensor, entropies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Target's logit, normaliser and entropy [N] over the whole vocabulary, from those over each part."""
        found = torch.stack([chosen, normalisers, entropies])
        parts = found.new_empty((self.group.size(), *found.shape))
        distributed.all_gather(list(parts), found, group=self.group)
        normaliser = parts[:, 1].logsumexp(dim=0)
        shares = (parts[:, 1] - normaliser).exp()
        mean_logit = (shares * (parts[:, 1] - parts[:, 2])).sum(dim=0)
        return parts[:, 0].sum(dim=0), normaliser, normaliser - mean_logit

    def summed(self, found: Tensor) -> None:
        """Replace what this process found by the sum over all."""
        distributed.all_reduce(found, group=self.group)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHead:
    """From hidden states to logits: softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None
    """None: logits are not capped."""
    part: "VocabularyPart | None" = None
    """Which logits these are; None: all of them."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[C, V] of hidden states [C, H], in float32 at least."""
        logits = _widened(torch.nn.functional.linear(hidden, self.weight, self.bias))
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


def vocabulary_part(weight: Tensor) -> VocabularyPart | None:
    """The part of an output embedding [V, H] that is cut over its first dimension; None for a whole one."""
    if not isinstance(weight, DTensor):
        return None
    mesh = weight.device_mesh
    return VocabularyPart(first=mesh.get_local_rank() * -(-len(weight) // mesh.size()), group=mesh.get_group())


def token_logprobs(
    hidden: Tensor,  # [N, H] hidden states that predict the targets
    targets: Tensor,  # [N] int64
    head: OutputHead,
) -> tuple[Tensor, Tensor]:
    """Log-probability [N] of each target and entropy [N] of its distribution in nats, both in float32 at least.

    The logits of a chunk are computed again in the backward pass instead of being kept, and when a whole output embedding does not
    train, not even that, unless the entropy takes part in the loss. Where each process has a part of the vocabulary, all of them
    call this with the same states and get the same.
    """
    return _TokenLogprobs.apply(hidden, head.weight, head.bias, targets, head, torch.is_grad_enabled())


class _TokenLogprobs(torch.autograd.Function):
    """d logprob / d logit_v = [v is the target] - p_v and d entropy / d logit_v = -p_v (log p_v + entropy), so the backward pass
    needs no more than the logits, their normaliser and the entropy."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: OutputHead,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.head_trains = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        at_once = with_grad and ctx.needs_input_grad[0] and not ctx.head_trains and head.part is None
        chosen, entropies = (_widened(hidden.new_empty(len(hidden))) for _ in range(2))
        slopes = torch.empty_like(hidden) if at_once else hidden.new_empty(0)
        normalisers = torch.empty_like(chosen)
        for part in _chunks(len(hidden)):
            logits = head.logits(hidden[part])
            normaliser = logits.logsumexp(dim=-1)
            chosen[part] = _at_targets(logits, targets[part], head)
            probs = (logits - normaliser[:, None]).exp_()
            entropies[part] = normaliser - torch.linalg.vecdot(probs, logits)
            normalisers[part] = normaliser
            if at_once:
                slopes[part] = _to_linear(probs, logits, targets[part], None, head).to(weight.dtype) @ weight
        if head.part is not None:
            chosen, normalisers, entropies = head.part.joined(chosen, normalisers, entropies)
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, entropies, slopes)
        ctx.rest, ctx.at_once = {"scale": head.scale, "softcap": head.softcap, "part": head.part}, at_once
        ctx.set_materialize_grads(False)
        return chosen - normalisers, entropies

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, entropies, slopes = ctx.saved_tensors
        pull, entropy_pull = upstream  # [N] each; None where the loss has no part of it
        pull = torch.zeros_like(normalisers) if pull is None else pull
        if ctx.at_once and entropy_pull is None:
            return (_widened(slopes) * pull[:, None]).to(hidden.dtype), *[None] * 5
        head = OutputHead(weight=weight, bias=bias, **ctx.rest)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=pull.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=pull.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _chunks(len(hidden)):
            logits = head.logits(hidden[part])
            logprobs = logits - normalisers[part, None]
            if entropy_pull is None:
                probs, of_entropy = logprobs.exp_(), None
            else:
                probs = logprobs.exp()
                of_entropy = logprobs.add_(entropies[part, None]).mul_(probs).mul_(-entropy_pull[part, None])
            slope = _to_linear(probs, logits, targets[part], pull[part], head, of_entropy)
            if grad_bias is not None:
                grad_bias += slope.sum(dim=0)
            slope = slope.to(weight.dtype)
            torch.mm(slope, weight, out=grad_hidden[part])
            if grad_weight is not None and grad_weight.dtype == slope.dtype:
                grad_weight.addmm_(slope.T, hidden[part])
            elif grad_weight is not None:
                grad_weight += slope.T @ hidden[part]
        if head.part is not None:
            head.part.summed(grad_hidden)
        narrow = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, narrow, None if grad_bias is None else grad_bias.to(weight.dtype), *[None] * 3


def _at_targets(logits: Tensor, targets: Tensor, head: OutputHead) -> Tensor:
    """[C] the logit of each target, 0 where another process has it."""
    columns, here = _own_targets(targets, head)
    found = logits.gather(1, columns[:, None])[:, 0]
    return found if here is None else torch.where(here, found, 0)


def _own_targets(targets: Tensor, head: OutputHead) -> tuple[Tensor, Tensor | None]:
    """[C] column of each target among the logits of this process, and [C] whether it is there; None: all of them."""
    if head.part is None:
        return targets, None
    columns, last = targets - head.part.first, len(head.weight) - 1
    return columns.clamp(0, last), (columns >= 0) & (columns <= last)


def _to_linear(
    probs: Tensor, logits: Tensor, targets: Tensor, pull: Tensor | None, head: OutputHead, of_entropy: Tensor | None = None
) -> Tensor:
    """[C, V] gradient by the linear layer of each log-prob, or of those weighted by `pull` [C], with that of the entropies by the
    logits, `of_entropy` [C, V]; overwrites both first ones."""
    slope = probs.neg_()
    columns, here = _own_targets(targets, head)
    slope[torch.arange(len(targets), device=targets.device), columns] += 1 if here is None else here.to(slope.dtype)
    if pull is not None:
        slope *= pull[:, None]
    if of_entropy is not None:
        slope += of_entropy
    if head.softcap is not None:
        slope *= logits.div_(head.softcap).square_().neg_().add_(1)
    return slope if head.scale == 1.0 else slope.mul_(head.scale)


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
