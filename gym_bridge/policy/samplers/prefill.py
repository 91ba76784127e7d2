"""The forward pass over prompts. What prompts begin with in common is computed once, at every depth. P = prompts, V = vocabulary.

Only prompts of the same length share a pass over what is their own: without padding, a row is what it would be alone, whatever
the model's attention does at its edges.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from gym_bridge.policy.samplers.batch_cache import empty_cache, forked

LEAST_SAVED = 64  # tokens that must be saved for a forward pass over a common beginning


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts of equal length."""

    cache: DynamicCache
    logits: Tensor  # [P, V] of the token after each prompt
    prompts: list[tuple[int, ...]]


def prefill(module: PreTrainedModel, prompts: Sequence[tuple[int, ...]]) -> Iterator[Prefilled]:
    """The prompts, which are all different, in parts of equal length."""
    yield from _under(module, list(prompts), 0, empty_cache(module))


def _under(module: PreTrainedModel, prompts: list[tuple[int, ...]], start: int, cache: DynamicCache) -> Iterator[Prefilled]:
    """Parts of `prompts`, whose first `start` tokens `cache` holds; it may be changed."""
    end = common_prefix_length(prompts)
    if (end - start) * (len(prompts) - 1) >= LEAST_SAVED:
        _forward(module, [prompts[0][start:end]], cache)
        start = end
    branches: dict[int, list[tuple[int, ...]]] = {}
    for one in prompts:
        branches.setdefault(one[end], []).append(one)
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for branch in branches.values():
        if (common_prefix_length(branch) - start) * (len(branch) - 1) >= LEAST_SAVED and len(branch) < len(prompts):
            yield from _under(module, branch, start, forked(cache, 1))
        else:
            for one in branch:
                by_length.setdefault(len(one), []).append(one)
    for alike in by_length.values():
        own = forked(cache, len(alike))
        yield Prefilled(own, _forward(module, [one[start:] for one in alike], own), alike)


def _forward(module: PreTrainedModel, rows: Sequence[Sequence[int]], cache: DynamicCache) -> Tensor:
    ids = torch.tensor(rows, dtype=torch.long, device=next(module.parameters()).device)
    return module(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()


def common_prefix_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with, short of the last token of the shortest: each prompt keeps one of its own."""
    first, last = min(prompts), max(prompts)
    limit = min(len(one) for one in prompts) - 1
    return next((index for index in range(limit) if first[index] != last[index]), limit)
