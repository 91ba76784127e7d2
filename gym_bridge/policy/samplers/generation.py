"""Batched generation with a Hugging Face decoder. B = rows of the batch, V = vocabulary.

Equal prompts, such as a group's, are computed once and copied in the cache. Rows that have ended leave the batch.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from gym_bridge.errors import PolicyError
from gym_bridge.policy.samplers.batch_cache import joined
from gym_bridge.policy.samplers.prefill import prefill
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

VOCABULARY_BLOCK = 256  # inverse-CDF sampling first picks a block of this many tokens, then a token in it
KEEP_ROWS = 0.75  # ended rows are cut from the batch once fewer than this share is alive


@dataclass(slots=True)
class Request:
    """One completion under way."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    key: SampleKey
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    """No more tokens are wanted; whoever asked may say so too."""

    def add(self, token: int, logprob: float) -> None:
        """Take the next token; the row ends with a stop token or at its limit."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.ended |= token in self.params.stop_token_ids or len(self.ids) >= self.params.max_tokens

    def completion(self, policy_version: int) -> Completion:
        """What came out."""
        stopped = bool(self.ids) and self.ids[-1] in self.params.stop_token_ids
        return Completion(
            ids=tuple(self.ids),
            logprobs=tuple(self.logprobs),
            finish_reason="stop" if stopped else "length",
            policy_version=policy_version,
        )


def uniforms(key: SampleKey, count: int) -> np.ndarray:
    """`count` float64 numbers in [0, 1), a function of `key` alone (Philox, counter based)."""
    digest = hashlib.blake2b(repr(tuple(key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


@torch.inference_mode()
def generate(module: PreTrainedModel, requests: Sequence[Request]) -> None:
    """Sample all `requests` to their end, in place. Raises PolicyError when the model's logits are not finite."""
    batch = _Batch(module, requests)
    while batch.rows:
        tokens = batch.sample()
        batch.drop_ended()
        if batch.rows:
            batch.advance(tokens)


class _Batch:
    """The rows still being sampled, their cache, and the logits of their next token."""

    def __init__(self, module: PreTrainedModel, requests: Sequence[Request]):
        self.module, self.device = module, next(module.parameters()).device
        self.rows = list(requests)
        self.num_drawn = 0
        most = max(one.params.max_tokens for one in requests)
        noise = np.zeros((len(requests), most))
        for row, one in zip(noise, requests, strict=True):
            row[: one.params.max_tokens] = uniforms(one.key, one.params.max_tokens)
        self.noise = torch.from_numpy(noise).to(self.device)  # [B, most]
        self.temperatures = torch.tensor([one.params.temperature for one in requests], device=self.device)
        self._prefill(most)

    def _prefill(self, most: int) -> None:
        places: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(self.rows):
            places.setdefault(tuple(one.prompt_ids), []).append(place)
        self.width = max(map(len, places))
        self.mask = torch.zeros((len(self.rows), self.width + most), dtype=torch.long, device=self.device)
        parts: list[tuple[DynamicCache, list[int]]] = []
        logits: list[Tensor] = []
        for part in prefill(self.module, list(places)):
            rows = [place for one in part.prompts for place in places[one]]
            which = [index for index, one in enumerate(part.prompts) for _ in places[one]]
            index = torch.tensor(which, device=self.device)
            part.cache.batch_select_indices(index)
            parts.append((part.cache, rows))
            logits.append(part.logits[index])
            self.mask[rows, self.width - len(part.prompts[0]) :] = 1
        order = torch.tensor([place for _, rows in parts for place in rows], device=self.device)
        self.cache = joined(parts, length=self.width)
        self.logits = torch.cat(logits)[order.argsort()]
        self.padded = not bool(self.mask.all())
        self.positions = self.mask[:, : self.width].sum(dim=1, keepdim=True) - 1

    def sample(self) -> Tensor:
        """Draw the next token [B] of every row and give it to its request."""
        tokens, logprobs = _draw(self.logits, self.temperatures, self.noise[:, self.num_drawn])
        self.num_drawn += 1
        for row, token, logprob in zip(self.rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if not math.isfinite(logprob):
                raise PolicyError("the model's logits are not finite; its weights are broken, go back to an earlier checkpoint")
            if not row.ended:
                row.add(token, logprob)
        return tokens

    def drop_ended(self) -> None:
        """Note which rows go on; none when all have ended."""
        self.alive = [index for index, row in enumerate(self.rows) if not row.ended]
        if not self.alive:
            self.rows = []

    def advance(self, tokens: Tensor) -> None:
        """Feed the drawn tokens [B]; `logits` then belong to the token after them. Cuts ended rows once enough have gathered."""
        if len(self.alive) < KEEP_ROWS * len(self.rows):
            tokens = self._cut(tokens)
        self.positions = self.positions + 1
        mask = self.mask[:, : self.width + self.num_drawn] if self.padded else None
        output = self.module(
            input_ids=tokens[:, None], attention_mask=mask, position_ids=self.positions, past_key_values=self.cache
        )
        self.logits = output.logits[:, -1].float()

    def _cut(self, tokens: Tensor) -> Tensor:
        index = torch.tensor(self.alive, device=self.device)
        self.rows = [self.rows[one] for one in self.alive]
        self.cache.batch_select_indices(index)
        self.mask, self.positions = self.mask[index], self.positions[index]
        self.noise, self.temperatures = self.noise[index], self.temperatures[index]
        return tokens[index]


def _draw(
    logits: Tensor,  # [B, V] float32
    temperatures: Tensor,  # [B]
    noise: Tensor,  # [B] float64, in [0, 1)
) -> tuple[Tensor, Tensor]:
    """Tokens [B], the inverse CDF of softmax(logits / temperature) at `noise`, the likeliest where temperature is 0; and their
    log-probs [B] at temperature 1."""
    top, greedy = logits.max(dim=-1)
    shifted = logits - top[:, None]
    weights = shifted.exp()
    normalisers = weights.sum(dim=-1).log()
    if bool((temperatures == 0).all()):
        return greedy, -normalisers
    if not bool(((temperatures == 0) | (temperatures == 1)).all()):
        weights = (shifted / torch.where(temperatures == 0, 1.0, temperatures)[:, None]).exp_()
    tokens = torch.where(temperatures == 0, greedy, _inverse_cdf(weights, noise))
    return tokens, shifted.gather(1, tokens[:, None])[:, 0] - normalisers


def _inverse_cdf(weights: Tensor, noise: Tensor) -> Tensor:
    """Tokens [B] of unnormalised probabilities `weights` [B, V] at `noise` [B]: first a block of the vocabulary, then one in it."""
    if beyond := -weights.shape[1] % VOCABULARY_BLOCK:
        weights = nn.functional.pad(weights, (0, beyond))
    blocks = weights.view(len(weights), -1, VOCABULARY_BLOCK)
    masses = blocks.sum(dim=-1).to(torch.float64)  # [B, V / VOCABULARY_BLOCK]
    ends = masses.cumsum(dim=-1)
    target = noise[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[1] - 1)
    mass = masses.gather(1, block)
    share = (target - (ends.gather(1, block) - mass)) / mass  # of the block, in [0, 1): sums are rounded
    inner = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].to(torch.float64)  # [B, VOCABULARY_BLOCK]
    last = (inner > 0).to(torch.int64).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    inner = inner.cumsum(dim=-1)
    token = torch.searchsorted(inner, share * inner[:, -1:], right=True)
    return block[:, 0] * VOCABULARY_BLOCK + torch.minimum(token, last)[:, 0]
