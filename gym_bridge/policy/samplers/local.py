"""The in-process sampler: requests of many coroutines are sampled side by side by one thread."""

import asyncio
import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from gym_bridge.errors import ContextOverflowError, PolicyError
from gym_bridge.policy.samplers.generation import Request, generate
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.settings import SamplerSettings
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

QUIET_S = 0.02  # a batch starts when no request has come for so long


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Request
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Completion]"


class LocalSampler:
    """Samples from a module in this process.

    The module is the trainer's own: it must not be updated while a completion is under way. A completion's random numbers depend
    on its key alone; its logits depend, in the last bits, on which requests share the batch, so a batch is ordered by key.
    """

    def __init__(self, module: PreTrainedModel, *, max_batch: int = 64):
        self.module, self.max_batch = module, max_batch
        self.version = 0
        self.context_length = int(module.config.max_position_embeddings)
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="local-sampler", daemon=True)
        self._thread.start()

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """One completion of `prompt_ids`.

        It ends with the model's context, if not before. Raises ContextOverflowError when the prompt leaves no room there,
        PolicyError when it is empty, for `top_p` and `top_k`, and when the sampler is closed.
        """
        if self._closed or not prompt_ids:
            raise PolicyError("the sampler is closed" if self._closed else "the prompt is empty; give one token at least")
        if params.top_p != 1 or params.top_k:
            wanted = f"top_p={params.top_p}" if params.top_p != 1 else f"top_k={params.top_k}"
            raise PolicyError(f"{wanted}: the in-process sampler draws from the whole distribution; leave it out")
        room = self.context_length - len(prompt_ids)
        if room < 1:
            raise ContextOverflowError(f"a prompt of {len(prompt_ids)} tokens fills the model's context of {self.context_length}")
        params = replace(params, max_tokens=min(params.max_tokens, room))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Completion] = loop.create_future()
        self._waiting.put(_Waiting(Request(prompt_ids, params, key), loop, future))
        return await future

    def push(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Weights are shared with the trainer: only the version changes hands."""
        self.version = version

    def close(self) -> None:
        """End the thread once all that was asked for is sampled."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [one for one in (first, *self._gather(self.max_batch - 1)) if not one.future.done()]
            batch.sort(key=lambda one: one.request.key)
            try:
                generate(self.module, [one.request for one in batch])
            except Exception as error:  # the door of one worker: whatever broke the batch reaches each of its callers
                failure = PolicyError(f"sampling failed: {type(error).__name__}: {error}")
                for one in batch:
                    _settle(one, failure)
            else:
                for one in batch:
                    _settle(one, one.request.completion(self.version))

    def _gather(self, room: int) -> list[_Waiting]:
        found: list[_Waiting] = []
        while len(found) < room:
            try:
                one = self._waiting.get(timeout=QUIET_S)
            except queue.Empty:
                break
            if one is None:
                self._waiting.put(None)
                break
            found.append(one)
        return found


def _settle(one: _Waiting, outcome: Completion | PolicyError) -> None:
    def settle() -> None:
        if one.future.done():
            return
        if isinstance(outcome, PolicyError):
            one.future.set_exception(outcome)
        else:
            one.future.set_result(outcome)

    if not one.loop.is_closed():
        one.loop.call_soon_threadsafe(settle)


def local_sampler(policy: TorchPolicy, settings: SamplerSettings) -> LocalSampler:
    """The sampler of the policy's own module."""
    return LocalSampler(policy.module, max_batch=settings.max_batch)
