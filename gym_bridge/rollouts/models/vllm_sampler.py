"""The sampler over vLLM's token wires: token ids both ways.

What vLLM 0.32 does, measured: `token_ids` hold every sampled id, the stop token included, and log-probs stand beside each.
With its default `--logprobs-mode raw_logprobs` they are the model's own, before temperature, top-p, top-k and penalties; a
server that was started with processed log-probs is found out by a probe and refused where that makes a difference. Settings
that a request leaves out come from the model's `generation_config.json`, so that all of them are sent. Draws are repeatable
by their seed as far as logits are, whose last bits depend on what else is in the batch. Which weights sampled is reported by
`/inference/v1/generate` of a server with `--enable-scale-out` alone. On a CPU the engine dies of a seeded request whose prompt is
computed in parts (chunked prefill).
"""

import asyncio
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gym_bridge.errors import ContextOverflowError, PolicyError
from gym_bridge.rollouts.models.model_http import EndpointError, ModelHttp
from gym_bridge.rollouts.models.vllm_wires import CompletionsWire, Wire
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

ROUNDING = 1e-5  # by so much the log-prob of a certain token may come out above 0
NO_LOGPROB = -9999.0
"""What vLLM writes for a log-prob that is no finite number, or that it does not have."""
CONTEXT_LENGTH = re.compile(r"(?:maximum context length is |max_model_len=|maximum model length of )(\d+)")
FULL = re.compile(r"max_tokens must be at least 1, got")
"""What vLLM answers to a prompt that fills the context to its last token."""
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class VLLMSampler:
    """Samples from `model` behind `http`, whose url ends where the routes of the `wire` begin; None: the server's own model."""

    def __init__(self, http: ModelHttp, model: str | None, *, wire: Callable[[str | None], Wire] = CompletionsWire):
        self.http, self.wire = http, wire(model)
        self._context_length: int | None = None
        self._checking, self._checked = asyncio.Lock(), False

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """One completion of `prompt_ids`; it ends with the model's context, if not before. Its policy version is 0.

        Raises ContextOverflowError when the prompt leaves no room there, PolicyError when it is empty, EndpointError when the
        endpoint fails, or reports tokens or log-probs that cannot be those of this completion.
        """
        completion, _ = await self.sample_labelled(prompt_ids, params, key=key)
        return completion

    async def sample_labelled(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey
    ) -> tuple[Completion, tuple[str, ...]]:
        """As `sample`, with the names of the weights that sampled, in order; none where the wire does not tell them."""
        if not prompt_ids:
            raise PolicyError("the prompt is empty; give one token at least")
        if params.temperature not in (0, 1) or params.top_p != 1 or params.top_k:
            await self._check_logprobs(prompt_ids[0])
        prompt = list(prompt_ids)
        reply = await self._ask(prompt, {**_settings(params), "seed": seed_of(key)}, params.max_tokens)
        return self._completion(reply, prompt)

    async def _ask(self, prompt: list[int], settings: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
        """The reply to `prompt`; asked once more where the server says that its context has less room than `max_tokens`."""
        try:
            return await self._post(prompt, settings, max_tokens)
        except EndpointError as error:
            length = _context_length(error, len(prompt))
            if length is None or length == self._context_length:
                raise
            self._context_length = length
        return await self._post(prompt, settings, max_tokens)

    async def _post(self, prompt: list[int], settings: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
        room = self._room(len(prompt), max_tokens)
        return await self.http.post(self.wire.route, self.wire.payload(prompt, {**settings, "max_tokens": room}))

    def _room(self, num_tokens: int, max_tokens: int) -> int:
        if self._context_length is None:
            return max_tokens
        if num_tokens >= self._context_length:
            raise ContextOverflowError(f"a prompt of {num_tokens} tokens fills the model's context of {self._context_length}")
        return min(max_tokens, self._context_length - num_tokens)

    async def _check_logprobs(self, token: int) -> None:
        """Raise EndpointError unless the server's log-probs are its model's own; it is asked once.

        Where `token` alone is allowed, a processed log-prob is 0; the model's own, of a token after itself, is not.
        """
        async with self._checking:
            if self._checked:
                return
            settings = {**_settings(SamplingParams(max_tokens=1)), "allowed_token_ids": [token]}
            completion, _ = self._completion(await self._ask([token], settings, 1), [token])
            if completion.logprobs[0] == 0:
                error = self.http.error(
                    "its log-probs are taken after temperature, top_p and top_k, so they are not those that training computes; "
                    "start vLLM with --logprobs-mode raw_logprobs, or sample at temperature 1 without top_p and top_k"
                )
                error.configuration = True
                raise error
            self._checked = True

    def _completion(self, reply: Mapping[str, Any], prompt: list[int]) -> tuple[Completion, tuple[str, ...]]:
        try:
            found = self.wire.read(reply)
        except (KeyError, TypeError, ValueError) as error:
            raise self.http.error(f"its reply is no completion with token ids and log-probs, as vLLM gives: {error!r}") from None
        if found.finish_reason == "abort":
            error = self.http.error("it ended the completion before its time: finish_reason 'abort'")
            error.transient = True
            raise error
        wrong = _wrong(found.ids, found.logprobs, found.finish_reason)
        if wrong is None and found.prompt_ids != prompt:
            wrong = "the prompt's ids are not those sent"
        if wrong is not None:
            raise self.http.error(f"its reply cannot be kept: {wrong}")
        at_most_0 = tuple(min(one, 0.0) for one in found.logprobs)
        completion = Completion(ids=tuple(found.ids), logprobs=at_most_0, finish_reason=found.finish_reason, policy_version=0)
        return completion, found.labels


def seed_of(key: SampleKey) -> int:
    """What a completion's draws start from, below 2^63: equal for equal keys."""
    return int.from_bytes(hashlib.blake2b(repr(tuple(key)).encode(), digest_size=8).digest(), "little") >> 1


def _settings(params: SamplingParams) -> dict[str, Any]:
    """Every setting of the distribution: what is left out would come from the model's `generation_config.json`."""
    chosen = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
    return {**chosen, **NEUTRAL, "stop_token_ids": list(params.stop_token_ids)}


def _context_length(error: EndpointError, num_tokens: int) -> int | None:
    """The length of the context, where a server's refusal of a prompt of `num_tokens` tells it."""
    if FULL.search(str(error)):
        return num_tokens
    told = CONTEXT_LENGTH.search(str(error)) if error.context_overflow else None
    return None if told is None else int(told[1])


def _wrong(ids: Any, logprobs: Any, reason: Any) -> str | None:
    """What is wrong with the tokens of a reply, None when nothing is."""
    if not isinstance(ids, list) or not ids or not all(type(one) is int for one in ids):
        return "token_ids is no list of ids (return_token_ids needs vLLM 0.10.2 or newer)"
    if not isinstance(logprobs, list) or len(logprobs) != len(ids):
        return f"{len(ids)} token ids and {len(logprobs) if isinstance(logprobs, list) else 'no'} log-probs"
    for number, one in enumerate(logprobs):
        if not isinstance(one, int | float) or not math.isfinite(one) or one > ROUNDING or one <= NO_LOGPROB:
            return f"log-prob {number} is {one!r}; expected a finite number that is not above 0"
    return None if reason in ("stop", "length") else f"finish_reason {reason!r}; expected 'stop' or 'length'"
