"""Batched generation with a Hugging Face decoder. B = rows of the batch, V = vocabulary, P = tokens that all prompts begin with.

What prompts have in common is computed once: the beginning that all of them share, then each different prompt; equal prompts,
such as a group's, are copied in the cache. Rows that have ended leave the batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

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

    def add(self, token: int, logprob: float) -> None:
        """Take the next token; the row ends with a stop token or at its limit."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.ended = token in self.params.stop_token_ids or len(self.ids) >= self.params.max_tokens

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
    """Sample all `requests` to their end, in place."""
    device = next(module.parameters()).device
    batch = _Batch(module, requests, device)
    while batch.rows:
        tokens = batch.sample()
        batch.drop_ended()
        if batch.rows:
            batch.advance(tokens)


class _Batch:
    """The rows still being sampled, their cache, and the logits of their next token."""

    def __init__(self, module: PreTrainedModel, requests: Sequence[Request], device: torch.device):
        self.module, self.device = module, device
        self.rows = list(requests)
        self.noise = {id(one): uniforms(one.key, one.params.max_tokens) for one in requests}
        self.alive = list(range(len(self.rows)))
        self._prefill()

    def _prefill(self) -> None:
        prompts = list(dict.fromkeys(tuple(one.prompt_ids) for one in self.rows))
        shared = _common_prefix_length(prompts)
        self.cache = DynamicCache(config=self.module.config)
        if shared:
            self.module(input_ids=self._ids([prompts[0][:shared]]), past_key_values=self.cache, logits_to_keep=1)
            self.cache.batch_repeat_interleave(len(prompts))
        width = max(len(one) for one in prompts) - shared
        padding = [width - (len(one) - shared) for one in prompts]
        suffixes = self._ids([(0,) * pad + one[shared:] for pad, one in zip(padding, prompts, strict=True)])
        mask = torch.ones((len(prompts), shared + width), dtype=torch.long, device=self.device)
        for row, pad in enumerate(padding):
            mask[row, shared : shared + pad] = 0
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, shared:]
        logits = self._forward(suffixes, mask, positions)
        which = torch.tensor([prompts.index(tuple(one.prompt_ids)) for one in self.rows], device=self.device)
        self.cache.batch_select_indices(which)
        self.mask, self.logits = mask[which], logits[which]

    def sample(self) -> list[int]:
        """Draw the next token of every row and give it to its request."""
        logprobs = torch.log_softmax(self.logits, dim=-1)
        tokens = _draw(self.logits, self._temperatures(), self._noise_now())
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        values = tokens.tolist()
        for row, token, logprob in zip(self.rows, values, chosen, strict=True):
            if not row.ended:
                row.add(token, logprob)
        return values

    def drop_ended(self) -> None:
        """Cut ended rows out of the batch when enough of them have gathered."""
        self.alive = [index for index, row in enumerate(self.rows) if not row.ended]
        if not self.alive:
            self.rows = []

    def advance(self, tokens: list[int]) -> None:
        """Feed the drawn tokens; `logits` then belong to the token after them."""
        if len(self.alive) < KEEP_ROWS * len(self.rows):
            index = torch.tensor(self.alive, device=self.device)
            self.cache.batch_select_indices(index)
            self.mask, self.rows, tokens = self.mask[index], [self.rows[i] for i in self.alive], [tokens[i] for i in self.alive]
        positions = self.mask.sum(dim=1, keepdim=True)
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(tokens), 1))], dim=1)
        self.logits = self._forward(self._ids([(token,) for token in tokens]), self.mask, positions)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self.module(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, logits_to_keep=1
        )
        return output.logits[:, -1].float()

    def _ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def _temperatures(self) -> Tensor:
        return torch.tensor([row.params.temperature for row in self.rows], device=self.device)

    def _noise_now(self) -> Tensor:
        return torch.tensor(
            [self.noise[id(row)][min(len(row.ids), row.params.max_tokens - 1)] for row in self.rows], device=self.device
        )


def _draw(logits: Tensor, temperatures: Tensor, noise: Tensor) -> Tensor:
    """Tokens [B]: the inverse CDF of softmax(logits / temperature) at `noise` [B]; the likeliest token where temperature is 0."""
    greedy = logits.argmax(dim=-1)
    if bool((temperatures == 0).all()):
        return greedy
    scaled = logits / torch.where(temperatures == 0, 1.0, temperatures)[:, None]
    probs = torch.softmax(scaled, dim=-1)
    padded = nn.functional.pad(probs, (0, -probs.shape[1] % VOCABULARY_BLOCK))
    blocks = padded.view(len(padded), -1, VOCABULARY_BLOCK)
    mass = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)  # [B, V / VOCABULARY_BLOCK]
    target = noise[:, None].to(torch.float64) * mass[:, -1:]
    block = torch.searchsorted(mass, target, right=True).clamp(max=mass.shape[1] - 1)
    below = torch.where(block > 0, mass.gather(1, (block - 1).clamp(min=0)), 0.0)
    rows = torch.arange(len(blocks), device=blocks.device)
    inner = blocks[rows, block[:, 0]].to(torch.float64).cumsum(dim=-1)
    last = (blocks[rows, block[:, 0]] > 0).to(torch.int64).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    token = torch.minimum(torch.searchsorted(inner, target - below, right=True), last)
    drawn = block[:, 0] * VOCABULARY_BLOCK + token[:, 0]
    return torch.where(temperatures == 0, greedy, drawn)


def _common_prefix_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with, short of the last token of the shortest: each prompt keeps one of its own."""
    first, last = min(prompts), max(prompts)
    limit = min(len(one) for one in prompts) - 1
    for index in range(limit):
        if first[index] != last[index]:
            return index
    return limit
