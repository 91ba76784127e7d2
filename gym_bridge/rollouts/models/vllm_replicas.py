"""The policy behind vLLM servers whose weights follow the trainer's: no token is kept that other weights sampled.

Each completion comes with the names of the weights that sampled it, from the server's own engine. A server that was started
again, that missed an update, or that another trainer has written to, names others: its completion is thrown away, the weights
are brought to it again, and only then is it asked once more.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from gym_bridge.errors import ServerError
from gym_bridge.rollouts.models.model_http import EndpointError, ModelHttp
from gym_bridge.rollouts.models.replicas import Rotation
from gym_bridge.rollouts.models.vllm_sampler import VLLMSampler
from gym_bridge.rollouts.models.vllm_wires import GenerateWire
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

TRIES = 2  # of one completion by one replica: its weights may have to be brought to it in between
NOT_FOUND = 404


class PushedWeights(Protocol):
    """What the replicas, known by numbers, are to run. May be asked from any thread."""

    @property
    def version(self) -> int:
        """The version that was pushed last."""
        ...

    @property
    def adapter(self) -> str | None:
        """The adapter to be named in a request; None: the model itself."""
        ...

    def version_of(self, label: str) -> int | None:
        """The version that a server's name for its weights stands for; None for weights that are not this run's."""
        ...

    def runs(self, replica: int) -> bool:
        """False where a replica has to be brought to the version before it may be asked."""
        ...

    def lost(self, replica: int) -> None:
        """Told that a replica runs something else."""
        ...

    def restore(self, replica: int) -> None:
        """Bring the version to a replica; blocks. Raises ServerError where that cannot be done."""
        ...


@dataclass(slots=True)
class _Replica:
    number: int
    sampler: VLLMSampler
    restoring: "asyncio.Task[None] | None" = None


class VLLMReplicas:
    """A sampler over vLLM servers, which may come and go. A rollout stays with one of them.

    Where the servers take seeds, a completion's draws depend on its key alone, and on logits, whose last bits depend on what else
    is in the batch.
    """

    def __init__(self, https: Callable[[], Mapping[int, ModelHttp]], weights: PushedWeights, *, seeded: bool = True):
        """`https`: those that are there now, one at least, by their numbers; their addresses are without `/v1`."""
        self.weights = weights
        self._https, self._seeded = https, seeded
        self._replicas: dict[int, _Replica] = {}
        self._now = https()
        self._rotation = Rotation(self._listed())

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """One completion of `prompt_ids`, with the version of the weights that sampled it: the oldest of several.

        Raises ContextOverflowError and PolicyError as `VLLMSampler`, EndpointError when no replica answers with weights of this
        run that are at least as new as those that were pushed last when it was asked.
        """
        if (now := self._https()) is not self._now:
            self._now = now
            self._rotation.change(self._listed())
        return await self._rotation.ask(key, lambda replica: self._sample(replica, prompt_ids, params, key))

    def _listed(self) -> list[_Replica]:
        for number, http in self._now.items():
            if number not in self._replicas:
                sampler = VLLMSampler(http, self.weights.adapter, wire=partial(GenerateWire, seeded=self._seeded))
                self._replicas[number] = _Replica(number, sampler)
        return [self._replicas[number] for number in self._now]

    async def _sample(self, replica: _Replica, prompt_ids: Sequence[int], params: SamplingParams, key: SampleKey) -> Completion:
        found = ""
        for _ in range(TRIES):
            if not self.weights.runs(replica.number):
                await self._restore(replica)
            least = self.weights.version
            try:
                completion, labels = await replica.sampler.sample_labelled(prompt_ids, params, key=key)
            except EndpointError as error:
                if error.status != NOT_FOUND or self.weights.adapter is None:
                    raise
                found = "those of a start without the adapter"
            else:
                versions = self._versions(replica, labels)
                if versions and min(versions) >= least:
                    return replace(completion, policy_version=min(versions))
                found = ", ".join(labels)
            self.weights.lost(replica.number)
        raise _away(replica.sampler.http.error(f"it runs other weights than were pushed to it: {found}"))

    def _versions(self, replica: _Replica, labels: Sequence[str]) -> list[int]:
        """The versions of a completion's weights; none where one of them is not this run's."""
        if not labels:
            error = replica.sampler.http.error("it does not say which weights sampled a completion; vLLM does so since 0.32")
            error.configuration = True
            raise error
        versions = [self.weights.version_of(label) for label in labels]
        return [] if None in versions else [one for one in versions if one is not None]

    async def _restore(self, replica: _Replica) -> None:
        """Bring the weights to a replica, once for all that wait for it."""
        if replica.restoring is None or replica.restoring.done():
            replica.restoring = asyncio.create_task(asyncio.to_thread(self.weights.restore, replica.number))
        try:
            await asyncio.shield(replica.restoring)
        except ServerError as error:
            http = replica.sampler.http
            raise _away(http.error(str(error).removeprefix(f"{http.url}: "))) from None


def _away(error: EndpointError) -> EndpointError:
    """The error of a replica that cannot be asked for now."""
    error.transient = error.unreachable = True
    return error
