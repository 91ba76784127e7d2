"""The sampler over vLLM's token wire: `/v1/completions` with token ids both ways, which every `vllm serve` offers.

What vLLM 0.32 does, measured: `token_ids` hold every sampled id, the stop token included, and log-probs stand beside each.
With its default `--logprobs-mode raw_logprobs` they are the model's own, before temperature, top-p, top-k and penalties; a
server that was started with processed log-probs is found out by a probe and refused where that makes a difference. Settings
that a request leaves out come from the model's `generation_config.json`, so that all of them are sent. Draws are repeatable
by their seed as far as logits are, whose last bits depend on what else is in the batch. No weight version is reported here
(only by `/inference/v1/generate` of a server with `--enable-scale-out`), so that `policy_version` is 0.
"""

import asyncio
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gym_bridge.errors import ContextOverflowError, PolicyError
from gym_bridge.rollouts.models.model_http import EndpointError, ModelHttp
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

ROUTE = "completions"
ROUNDING = 1e-5  # by so much the log-prob of a certain token may come out above 0
CONTEXT_LENGTH = re.compile(r"(?:maximum context length is |max_model_len=)(\d+)")
FULL = re.compile(r"max_tokens must be at least 1, got")
"""What vLLM answers to a prompt that fills the context to its last token."""
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
WIRE = {
    "n": 1,
    "logprobs": 0,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "add_special_tokens": False,
    "skip_special_tokens": False,
}


class VLLMSampler:
    """Samples from `model` behind `http`, an OpenAI-compatible address whose url ends in `/v1`."""

    def __init__(self, http: ModelHttp, model: str):
        self.http, self.model = http, model
        self._context_length: int | None = None
        self._checking, self._checked = asyncio.Lock(), False

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """One completion of `prompt_ids`; it ends with the model's context, if not before.

        Raises ContextOverflowError when the prompt leaves no room there, PolicyError when it is empty, EndpointError when the
        endpoint fails, or reports tokens or log-probs that cannot be those of this completion.
        """
        if not prompt_ids:
            raise PolicyError("the prompt is empty; give one token at least")
        if params.temperature not in (0, 1) or params.top_p != 1 or params.top_k:
            await self._check_logprobs(prompt_ids[0])
        prompt = list(prompt_ids)
        payload = {"model": self.model, "prompt": prompt, **_settings(params), "seed": seed_of(key), **WIRE}
        return self._completion(await self._ask(payload, params.max_tokens), prompt)

    async def _ask(self, payload: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
        """The reply to `payload`; asked once more where the server says that its context has less room than `max_tokens`."""
        num_tokens = len(payload["prompt"])
        try:
            return await self.http.post(ROUTE, {**payload, "max_tokens": self._room(num_tokens, max_tokens)})
        except EndpointError as error:
            length = _context_length(error, num_tokens)
            if length is None or length == self._context_length:
                raise
            self._context_length = length
        return await self.http.post(ROUTE, {**payload, "max_tokens": self._room(num_tokens, max_tokens)})

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
            params = SamplingParams(max_tokens=1)
            payload = {"model": self.model, "prompt": [token], **_settings(params), "allowed_token_ids": [token], **WIRE}
            completion = self._completion(await self._ask(payload, params.max_tokens), [token])
            if completion.logprobs[0] == 0:
                error = self.http.error(
                    "its log-probs are taken after temperature, top_p and top_k, so they are not those that training computes; "
                    "start vLLM with --logprobs-mode raw_logprobs, or sample at temperature 1 without top_p and top_k"
                )
                error.configuration = True
                raise error
            self._checked = True

    def _completion(self, reply: Mapping[str, Any], prompt: list[int]) -> Completion:
        try:
            (choice,) = reply["choices"]
            ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            engine_prompt, reason = choice["prompt_token_ids"], choice["finish_reason"]
        except (KeyError, TypeError, ValueError) as error:
            raise self.http.error(f"its reply is no completion with token ids and log-probs, as vLLM gives: {error!r}") from None
        wrong = _wrong(ids, logprobs, reason) or ("the prompt's ids are not those sent" if engine_prompt != prompt else None)
        if wrong is not None:
            raise self.http.error(f"its reply cannot be kept: {wrong}")
        at_most_0 = tuple(min(one, 0.0) for one in logprobs)
        return Completion(ids=tuple(ids), logprobs=at_most_0, finish_reason=reason, policy_version=0)


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
        if not isinstance(one, int | float) or not math.isfinite(one) or one > ROUNDING:
            return f"log-prob {number} is {one!r}; expected a finite number that is not above 0"
    return None if reason in ("stop", "length") else f"finish_reason {reason!r}; expected 'stop' or 'length'"
