"""Batched generation with a Hugging Face decoder. B = rows of the batch, V = vocabulary.

What prompts begin with in common is computed once, and so is a rollout's history: its next turn goes on from the one before. Rows
that have ended leave the batch.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from gym_bridge.errors import PolicyError
from gym_bridge.policy.samplers.rows import GrowingRows
from gym_bridge.policy.samplers.token_tree import TokenTree
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
def generate(tree: TokenTree, requests: Sequence[Request]) -> None:
    """Sample all `requests` to their end, in place. Raises PolicyError when the model's logits are not finite.

    `tree` keeps what was computed, for requests that go on from these.
    """
    try:
        batch = _Batch(tree, requests)
        while batch.rows:
            tokens = batch.sample()
            batch.drop_ended()
            if batch.rows:
                batch.advance(tokens)
    except BaseException:
        tree.clear()  # nodes may lack their states
        raise
    tree.trim()


class _Batch:
    """The rows still being sampled, their states, and the logits of their next token."""

    def __init__(self, tree: TokenTree, requests: Sequence[Request]):
        prompts = list(dict.fromkeys(tuple(one.prompt_ids) for one in requests))
        ends, logits = tree.ends(prompts)
        places = {prompt: (end.place, index) for index, (prompt, end) in enumerate(zip(prompts, ends, strict=True))}
        self.rows = sorted(requests, key=lambda one: places[tuple(one.prompt_ids)])
        which = [places[tuple(one.prompt_ids)][1] for one in self.rows]
        self.states = GrowingRows(tree, [ends[one] for one in which])
        self.logits = logits[which]
        self.device, self.num_drawn = tree.device, 0
        most = max(one.params.max_tokens for one in requests)
        noise = np.zeros((len(requests), most))
        for row, one in zip(noise, self.rows, strict=True):
            row[: one.params.max_tokens] = uniforms(one.key, one.params.max_tokens)
        self.noise = torch.from_numpy(noise).to(self.device)  # [B, most]
        self.temperatures = torch.tensor([one.params.temperature for one in self.rows], device=self.device)

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
            self._keep()
            self.rows = []

    def advance(self, tokens: Tensor) -> None:
        """Feed the drawn tokens [B]; `logits` then belong to the token after them. Cuts ended rows once enough have gathered."""
        if len(self.alive) < KEEP_ROWS * len(self.rows):
            self._keep()
            tokens = self._cut(tokens)
        self.logits = self.states.step(tokens)

    def _keep(self) -> None:
        """Whoever asked for an ended row may go on from it."""
        for index, row in enumerate(self.rows):
            if row.ended and row.ids:
                self.states.keep(index, (*row.prompt_ids, *row.ids))

    def _cut(self, tokens: Tensor) -> Tensor:
        index = torch.tensor(self.alive, device=self.device)
        self.rows = [self.rows[one] for one in self.alive]
        self.states.cut(self.alive)
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
