"""Several model servers behind one endpoint: who is asked, and who is asked instead."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.rollouts.models.chat import ChatEndpoint
from gym_bridge.rollouts.models.model_http import EndpointError, ModelHttp
from gym_bridge.rollouts.models.replicas import KEEPS_FAILING, Replicas, home_of
from gym_bridge.schemas.seams import Turn, TurnRequest, Usage
from gym_bridge.schemas.tokens import SampleKey
from tests.rollouts.model_stage import answer, asking, client, model_server

TURN = Turn(items=(), usage=Usage())


def error(**flags: bool) -> EndpointError:
    failure = EndpointError("no", url="http://x")
    failure.__dict__.update(flags)
    return failure


GONE = {"unreachable": True, "transient": True}
BUSY = {"transient": True}


@dataclass
class Replica:
    """Answers, or fails as `failing` says, and counts."""

    failing: dict[str, bool] | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False

    async def turn(self, request: TurnRequest) -> Turn:
        self.asked.append((request.key.task_index, request.key.rollout_index))
        if self.failing is not None:
            raise error(**self.failing)
        return TURN

    async def close(self) -> None:
        self.closed = True


def of(task_index: int, rollout_index: int = 0, turn: int = 0) -> TurnRequest:
    return TurnRequest(items=(), tools=(), params={}, key=SampleKey(0, task_index, rollout_index, turn))


def at_home(replica: int, num_replicas: int) -> TurnRequest:
    """A rollout whose home is `replica`."""
    return next(of(task) for task in range(100) if home_of(task, 0, num_replicas) == replica)


def played(replicas: Replicas, *requests: TurnRequest) -> None:
    async def run() -> None:
        for request in requests:
            await replicas.turn(request)

    asyncio.run(run())


def test_all_turns_of_a_rollout_go_to_one_replica_and_rollouts_are_spread():
    endpoints = [Replica() for _ in range(4)]
    played(Replicas(endpoints), *(of(task, rollout, turn) for task in range(50) for rollout in range(4) for turn in range(3)))
    homes: dict[tuple[int, int], set[int]] = {}
    for number, endpoint in enumerate(endpoints):
        for rollout in endpoint.asked:
            homes.setdefault(rollout, set()).add(number)
    assert {len(home) for home in homes.values()} == {1}
    assert all(30 * 3 <= len(endpoint.asked) <= 70 * 3 for endpoint in endpoints)


def test_a_home_is_the_same_in_every_process():
    assert [home_of(task, 1, 3) for task in range(8)] == [0, 1, 0, 0, 1, 0, 1, 2]  # CRC-32 as gzip writes it, modulo 3


def test_a_replica_that_is_gone_is_replaced_at_once_and_rests():
    gone, other = Replica(GONE), Replica()
    played(Replicas([gone, other]), *[at_home(0, 2)] * 5, *[at_home(1, 2)] * 2)
    assert (len(gone.asked), len(other.asked)) == (1, 7)


def test_a_replica_that_keeps_failing_is_left_alone():
    busy, other = Replica(BUSY), Replica()
    played(Replicas([busy, other]), *[at_home(0, 2)] * 10)
    assert (len(busy.asked), len(other.asked)) == (KEEPS_FAILING, 10)


def test_a_success_between_failures_keeps_a_replica_in_service():
    wavering, other = Replica(), Replica()
    replicas = Replicas([wavering, other])
    for number in range(12):
        wavering.failing = BUSY if number % 3 else None
        played(replicas, at_home(0, 2))
    assert len(wavering.asked) == 12


def test_rollouts_come_home_after_the_rest():
    gone, other = Replica(GONE), Replica()
    replicas = Replicas([gone, other], cool_down_s=0.0)
    played(replicas, at_home(0, 2))
    gone.failing = None
    played(replicas, at_home(0, 2))
    assert (len(gone.asked), len(other.asked)) == (2, 1)


@pytest.mark.parametrize("flags", [{}, {"configuration": True}, {"context_overflow": True}, {"timeout": True}])
def test_a_failure_that_another_replica_would_share_is_raised(flags: dict[str, bool]):
    failing, other = Replica(flags), Replica()
    with pytest.raises(EndpointError):
        played(Replicas([failing, other]), at_home(0, 2))
    assert (len(failing.asked), len(other.asked)) == (1, 0)


def test_replicas_that_run_out_of_time_again_and_again_rest_too():
    slow, other = Replica({"timeout": True}), Replica()
    replicas = Replicas([slow, other])
    for _ in range(KEEPS_FAILING):
        with pytest.raises(EndpointError):
            played(replicas, at_home(0, 2))
    played(replicas, at_home(0, 2))
    assert (len(slow.asked), len(other.asked)) == (KEEPS_FAILING, 1)


def test_when_all_rest_each_is_tried_and_one_that_is_back_serves():
    first, second = Replica(GONE), Replica(GONE)
    replicas = Replicas([first, second])
    with pytest.raises(EndpointError) as raised:
        played(replicas, at_home(0, 2))
    assert raised.value.unreachable
    second.failing = None
    played(replicas, *[at_home(0, 2)] * 3)
    assert (len(first.asked), len(second.asked)) == (2, 4)


def test_all_are_closed_even_where_one_cannot_be():
    class Broken(Replica):
        async def close(self) -> None:
            raise OSError("no")

    last = Replica()
    with pytest.raises(OSError, match="no"):
        asyncio.run(Replicas([Broken(), last]).close())
    assert last.closed


def test_no_replicas_are_a_mistake():
    with pytest.raises(ConfigError):
        Replicas([])


def test_rollouts_under_way_go_on_when_a_real_server_goes_away():
    reply = answer({"choices": [{"message": {"content": "3"}}]})
    user = {"role": "user", "content": "1 + 2?"}
    request = asking(user)
    home = home_of(request.key.task_index, request.key.rollout_index, 2)

    async def run() -> tuple[int, int, list[Any]]:
        async with model_server(reply) as other, client() as pool:

            def endpoint(url: str) -> ChatEndpoint:
                return ChatEndpoint(ModelHttp(url, client=pool, api_key=None, timeout_s=5, max_retries=0), "m")

            async with model_server(reply) as first:
                urls = [first.url, other.url] if home == 0 else [other.url, first.url]
                replicas = Replicas([endpoint(url) for url in urls])
                turns = [await replicas.turn(request)]
            turns += [await replicas.turn(request), await replicas.turn(request)]
            return len(first.bodies), len(other.bodies), [turn.items for turn in turns]

    num_first, num_other, items = asyncio.run(run())
    assert (num_first, num_other) == (1, 2)
    assert items[0] == items[1] == items[2]
