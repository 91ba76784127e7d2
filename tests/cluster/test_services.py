"""Processes that serve others, on a real Ray whose machines come and go."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from gym_bridge.cluster.commands import Command, Place, Service
from gym_bridge.cluster.ray_places import RayPlaces
from gym_bridge.cluster.services import GONE, Services, look
from gym_bridge.errors import PolicyError
from gym_bridge.schemas.cluster_settings import ClusterSettings, PolicyRole, SamplerRole
from tests.cluster.ray_stage import PATIENCE_S

pytestmark = pytest.mark.ray


class Machines:
    """Ray's nodes, all on this machine; the first one has room for two processes."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 10**8})
        self.address = self._cluster.address

    def add(self):
        """One more, with room for one."""
        return self._cluster.add_node(num_cpus=1, object_store_memory=10**8)

    def lose(self, node) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def cluster() -> Iterator[Machines]:
    started = Machines()
    yield started
    started.close()


class Told:
    """A service that sleeps, with a role of one that trains beside it; notes where its processes are."""

    def __init__(self, directory: Path, *, count: int, code: str = "import time; time.sleep(600)"):
        self.places: list[Sequence[Place]] = []
        self.service = Service(
            role="sampler",
            count=count,
            command=lambda index, place: Command(
                argv=[sys.executable, "-c", code], directory=directory, log=directory / f"{index}"
            ),
            tell=self.places.append,
        )

    def open(self, address: str, stack: ExitStack, *, min_count: int) -> tuple[RayPlaces, Services]:
        roles = {"policy": PolicyRole(), "sampler": SamplerRole(count=self.service.count, min_count=min_count)}
        places = stack.enter_context(RayPlaces(ClusterSettings(kind="ray", address=address), roles))
        services = Services(places, [self.service])
        stack.callback(services.close)
        services.start()
        return places, services

    def wait_for(self, services: Services, found: Callable[[], bool]) -> None:
        """Look after them until it is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not found():
            assert time.monotonic() < deadline, self.places
            look(services.processes, timeout_s=0.1)
            services.replace()


def test_servers_join_when_there_is_room_leave_with_their_machine_and_give_way(cluster: Machines, tmp_path: Path):
    told = Told(tmp_path, count=3)
    with ExitStack() as stack:
        places, services = told.open(cluster.address, stack, min_count=1)
        assert [len(one) for one in told.places] == [1]
        services.replace()
        assert [len(one) for one in told.places] == [1]  # there is no room
        added = cluster.add()
        told.wait_for(services, lambda: len(told.places[-1]) == 2)
        assert told.places[-1][0] == told.places[0][0]
        cluster.lose(added)
        told.wait_for(services, lambda: len(told.places[-1]) == 1)
        assert [one.code for one in services.processes] == [None, GONE]
        cluster.add()
        told.wait_for(services, lambda: len(told.places[-1]) == 2)
        assert not places.lacks_room()
        services.give_way()  # the second one, and the third, which has no place yet
        assert [len(one) for one in told.places] == [1, 2, 1, 2, 1]
        told.wait_for(services, lambda: len(told.places[-1]) == 2)
        assert [one.code for one in services.processes].count(None) == 2


def test_a_command_that_no_machine_can_start_is_given_up_with_its_cause(cluster: Machines, tmp_path: Path, caplog):
    (tmp_path / "0").mkdir()  # where its log is to be
    told = Told(tmp_path, count=1)
    with ExitStack() as stack:
        _, services = told.open(cluster.address, stack, min_count=1)
        with pytest.raises(PolicyError, match=r"sampler 0 does not come up \(exit code 126\)"):
            told.wait_for(services, lambda: False)
    assert "0 cannot be started on " in caplog.text
    assert "Is a directory" in caplog.text
