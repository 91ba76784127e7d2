"""The in-process sampler: requests of many coroutines are sampled side by side by one thread."""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gym_bridge.errors import ContextOverflowError, DataError, PolicyError
from gym_bridge.policy.master_weights import own_copy
from gym_bridge.policy.samplers.generation import Request, generate
from gym_bridge.policy.samplers.token_tree import TokenTree
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.settings import SamplerSettings
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

if TYPE_CHECKING:
    from gym_bridge.policy.parallel_policy import ParallelPolicy

QUIET_S = 0.02  # a batch starts when no request has come for so long


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Request
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Completion]"

    @property
    def order(self) -> tuple[SampleKey, tuple[int, ...]]:
        """By what a batch is ordered: not by who came first."""
        return self.request.key, tuple(self.request.prompt_ids)


class LocalSampler:
    """Samples from a module in this process.

    A completion's random numbers depend on its key alone; its logits depend, in the last bits, on which requests share the batch,
    so a batch is ordered by key. Weights change between batches: one version samples the whole of a completion.

    In lock-step a batch begins only when as many requests wait as there are rollouts in flight, by what `expect` was told last,
    and takes all of them. Batches then follow from tasks and weights, whatever the timing.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        *,
        max_batch: int = 64,
        lockstep: bool = False,
        owns_weights: bool = False,
        version: int = 0,
    ):
        """`owns_weights`: the module is the sampler's own, and `push` copies into it. Otherwise it is the trainer's, which must not
        step while a completion is under way."""
        self.module, self.max_batch, self.lockstep, self.owns_weights = module, max_batch, lockstep, owns_weights
        self.version = version
        self.context_length = int(module.config.max_position_embeddings)
        self._tree = TokenTree(module)  # the thread's while it samples
        self._changed = threading.Condition()  # guards all below
        self._waiting: list[_Waiting] = []
        self._in_flight = 0
        self._deserted = False  # `expect` was told that nothing is in flight, and what is kept is to be cleared
        self._pushing = self._sampling = self._closed = False
        self._thread = threading.Thread(target=self._run, name="local-sampler", daemon=True)
        self._thread.start()

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """One completion of `prompt_ids`; a caller that gives up takes its row out of the batch.

        It ends with the model's context, if not before. Raises ContextOverflowError when the prompt leaves no room there,
        DataError for `top_p` and `top_k`, PolicyError when it is empty, when its batch fails, and when the sampler is closed.
        """
        if not prompt_ids:
            raise PolicyError("the prompt is empty; give one token at least")
        if params.top_p != 1 or params.top_k:
            wanted = f"top_p={params.top_p}" if params.top_p != 1 else f"top_k={params.top_k}"
            raise DataError(f"{wanted}: the in-process sampler draws from the whole distribution; leave it out")
        room = self.context_length - len(prompt_ids)
        if room < 1:
            raise ContextOverflowError(f"a prompt of {len(prompt_ids)} tokens fills the model's context of {self.context_length}")
        params = replace(params, max_tokens=min(params.max_tokens, room))
        loop = asyncio.get_running_loop()
        waiting = _Waiting(Request(prompt_ids, params, key), loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise PolicyError("the sampler is closed")
            self._waiting.append(waiting)
            self._changed.notify_all()
        try:
            return await waiting.future
        finally:
            waiting.request.ended = True

    def expect(self, num_in_flight: int) -> None:
        """So many rollouts are in flight now, each of which asks for a completion next, or ends.

        To be told before the first of them asks, and whenever the number changes; where one rollout follows another, once for both.
        """
        with self._changed:
            self._in_flight = num_in_flight
            self._deserted |= num_in_flight == 0
            self._note_change()

    def push(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """New completions are sampled with these weights and carry `version`; those under way are sampled to their end first.

        Without weights of its own, the sampler reads none: only the version changes hands. Raises PolicyError for those of another
        model.
        """
        with self._between_batches():
            if self.owns_weights:
                copy_weights(weights, self.module)
            self.version = version
            self._tree.clear()

    def ensure(self, version: int) -> None:
        """Nothing to do: what `push` has brought cannot get lost in one process."""

    def close(self) -> None:
        """End the thread once all that was asked for is sampled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    @contextmanager
    def _between_batches(self) -> Iterator[None]:
        """Inside, no batch is under way and none begins."""
        try:
            with self._changed:
                self._pushing = True
                self._changed.wait_for(lambda: not self._sampling)
            yield
        finally:
            with self._changed:
                self._pushing = False
                self._changed.notify_all()

    def _run(self) -> None:
        while requests := self._next_requests():
            for first in range(0, len(requests), self.max_batch):
                self._sample(requests[first : first + self.max_batch])
            with self._changed:
                self._sampling = False
                self._note_change()

    def _note_change(self) -> None:
        """Something has changed; nothing is kept for rollouts that are over, since what follows may need the memory."""
        if self._deserted and not self._sampling:
            self._tree.clear()
            self._deserted = self._in_flight == 0
        self._changed.notify_all()

    def _next_requests(self) -> list[_Waiting]:
        """What is to be sampled now, in the order of keys; nothing once the sampler is closed and nobody waits."""
        with self._changed:
            while self._pushing or not self._complete():
                quiet_s = QUIET_S if self._waiting and not self._counts() else None
                if not self._changed.wait(quiet_s) and self._waiting and not self._pushing:
                    break
            count = len(self._waiting) if self._counts() else self.max_batch
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            self._sampling = bool(taken)
        return sorted(taken, key=lambda one: one.order)

    def _counts(self) -> bool:
        return self.lockstep and self._in_flight > 0

    def _complete(self) -> bool:
        """Whether nothing more is to be waited for."""
        self._waiting = [one for one in self._waiting if not one.request.ended]
        if self._closed:
            return True
        everyone = 0 < self._in_flight <= len(self._waiting)
        return everyone or (not self._counts() and len(self._waiting) >= self.max_batch)

    def _sample(self, batch: list[_Waiting]) -> None:
        try:
            generate(self._tree, [one.request for one in batch])
        except Exception as error:  # the door of one worker: whatever broke the batch reaches each of its callers
            told = "" if isinstance(error, PolicyError) else f"{type(error).__name__}: "
            failure = PolicyError(f"sampling failed: {told}{error}")
            for one in batch:
                _settle(one, failure)
        else:
            for one in batch:
                _settle(one, one.request.completion(self.version))


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


@torch.no_grad()
def copy_weights(weights: Iterable[tuple[str, Tensor]], module: PreTrainedModel) -> None:
    """Give the parameters of `module` these values. Raises PolicyError unless each has one."""
    missing = dict(module.named_parameters())
    for name, one in weights:
        if name not in missing:
            raise PolicyError(f"pushed weights: the sampler's {type(module).__name__} has no parameter {name!r}, or it came twice")
        missing.pop(name).copy_(one)
    if missing:
        raise PolicyError(f"pushed weights: no value for {min(missing)!r} of the sampler's {type(module).__name__}")


def local_sampler(
    policy: "TorchPolicy | ParallelPolicy", settings: SamplerSettings, *, overlaps: bool = False, run: Path | None = None
) -> LocalSampler:
    """The sampler of the policy's own module; of a copy with adapters merged, in the compute dtype, where sampling overlaps with
    the policy's steps, and where the policy lies in shards. Nothing is written to the directory of the `run`."""
    owns = overlaps or getattr(policy, "in_shards", False)  # a backend of the user's own may not say
    module = _own_module(policy) if owns else policy.module
    return LocalSampler(module, max_batch=settings.max_batch, lockstep=settings.lockstep, owns_weights=owns, version=policy.version)


def _own_module(policy: "TorchPolicy | ParallelPolicy") -> PreTrainedModel:
    module = policy.family.load(policy.directory, device=policy.device, head="lm")
    for param in module.parameters():
        param.data = own_copy(param, policy.compute_dtype)
    copy_weights(policy.weights(), module)
    return module.requires_grad_(False)
