"""Several servers of one model: a rollout stays with one of them, whose cache knows its prefix, as long as that one serves."""

import asyncio
import logging
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gym_bridge.errors import ConfigError
from gym_bridge.rollouts.models.model_http import EndpointError
from gym_bridge.schemas.seams import ModelEndpoint, Turn, TurnRequest
from gym_bridge.schemas.tokens import SampleKey

log = logging.getLogger(__name__)

KEEPS_FAILING = 3
"""Calls in a row that failed for the replica's reasons, after which it is left alone."""

Server = TypeVar("Server")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Replica(Generic[Server]):
    server: Server
    failures: int = 0
    rests_until: float = 0.0


class Rotation(Generic[Server]):
    """Servers of one model, and which of them a rollout asks. Its home is a stable hash of its task and rollout index.

    A replica that cannot be reached, or that failed three calls in a row, rests for `cool_down_s`; the rollouts whose home it
    is go to the next one that does not rest, and come back afterwards. A call that fails so is made again by the next
    replica: it changed nothing. All of them resting, each is tried. A call that ran out of time is not made again.
    """

    def __init__(self, servers: Sequence[Server], *, cool_down_s: float = 30.0):
        if not servers:
            raise ConfigError("no replica is given; expected at least one endpoint")
        self._replicas = [_Replica(server) for server in servers]
        self._cool_down_s = cool_down_s

    def change(self, servers: Sequence[Server]) -> None:
        """Ask these from now on, one at least; those that stay go on resting."""
        before = {id(one.server): one for one in self._replicas}
        self._replicas = [before.get(id(server)) or _Replica(server) for server in servers]

    async def ask(self, key: SampleKey, call: Callable[[Server], Awaitable[Answer]]) -> Answer:
        """What `call` gives with the rollout's replica. Raises the last EndpointError where no replica answered."""
        *others, last = self._order(key)
        for replica in others:
            try:
                return await self._ask(replica, call)
            except EndpointError as error:
                if not error.transient:
                    raise
        return await self._ask(last, call)

    def _order(self, key: SampleKey) -> list[_Replica[Server]]:
        """The home first and the others after it; those that rest at the end, by the end of their rest."""
        home = home_of(key.task_index, key.rollout_index, len(self._replicas))
        around = self._replicas[home:] + self._replicas[:home]
        now = time.monotonic()
        return sorted(around, key=lambda one: one.rests_until if one.rests_until > now else 0.0)

    async def _ask(self, replica: _Replica[Server], call: Callable[[Server], Awaitable[Answer]]) -> Answer:
        try:
            answer = await call(replica.server)
        except EndpointError as error:
            self._failed(replica, error)
            raise
        replica.failures, replica.rests_until = 0, 0.0
        return answer

    def _failed(self, replica: _Replica[Server], error: EndpointError) -> None:
        if not (error.transient or error.timeout):
            return
        replica.failures += 1
        if error.unreachable or replica.failures >= KEEPS_FAILING:
            now = time.monotonic()
            if replica.rests_until <= now:
                log.warning("a replica of the model rests for %g s: %s", self._cool_down_s, error)
            replica.rests_until = now + self._cool_down_s


class Replicas:
    """Endpoints of one model behind one: which is asked, and which instead, is `Rotation`'s."""

    def __init__(self, endpoints: Sequence[ModelEndpoint], *, cool_down_s: float = 30.0):
        self._endpoints = tuple(endpoints)
        self._rotation = Rotation(self._endpoints, cool_down_s=cool_down_s)

    async def turn(self, request: TurnRequest) -> Turn:
        """One model call by the rollout's replica. Raises the last EndpointError where no replica answered."""
        return await self._rotation.ask(request.key, lambda endpoint: endpoint.turn(request))

    async def close(self) -> None:
        """Close all replicas, each even where another's close fails."""
        outcomes = await asyncio.gather(*(one.close() for one in self._endpoints), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome


def home_of(task_index: int, rollout_index: int, num_replicas: int) -> int:
    """The replica of a rollout: the same in every process and run."""
    return zlib.crc32(f"{task_index}:{rollout_index}".encode()) % num_replicas
