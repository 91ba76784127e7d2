"""Processes that serve others, in places of Ray: one that ends is started again, by itself."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gym_bridge.cluster.commands import Command, Place, Plan
from gym_bridge.cluster.ray_places import RayPlaces
from gym_bridge.errors import PolicyError

log = logging.getLogger(__name__)

GONE = 255
"""Stands for the exit code of a process that went with its worker or machine."""
SOON_S, MAX_IN_A_ROW = 60.0, 5
"""A process that ends so soon after its start, so often in a row, will not come up."""
SERVICE_GRACE_S = 5.0


@dataclass(slots=True)
class KeptProcess:
    """One that runs, or has ended."""

    keeper: Any
    command: Command
    ended: Any
    """Ray's reference to its exit code."""
    started: float
    code: int | None = None

    @classmethod
    def run(cls, keeper: Any, command: Command) -> "KeptProcess":
        """Start the command in the keeper's place."""
        return cls(keeper=keeper, command=command, ended=keeper.run.remote(command), started=time.monotonic())


def look(processes: Iterable[KeptProcess], *, timeout_s: float) -> None:
    """Note which of these have ended, for so long at most."""
    import ray
    from ray.exceptions import RayError

    running = {one.ended: one for one in processes if one.code is None}
    if not running:
        return
    done, _ = ray.wait(list(running), num_returns=len(running), timeout=timeout_s)
    for reference in done:
        try:
            running[reference].code = ray.get(reference)
        except RayError as error:
            log.warning("%s: %s", running[reference].command.log.name, str(error).strip().rpartition("\n")[2])
            running[reference].code = GONE


def end(processes: Iterable[KeptProcess], *, grace_s: float) -> None:
    """End those that run: SIGTERM, and after so many seconds SIGKILL."""
    import ray

    stops = [one.keeper.stop.remote(grace_s) for one in processes if one.code is None]
    if stops:
        ray.wait(stops, num_returns=len(stops), timeout=grace_s + 10)


class Services:
    """The processes of several roles."""

    def __init__(self, places: RayPlaces, services: Sequence[tuple[str, Plan, int]]):
        """`services`: a role, its plan and how many there are."""
        self._places = places
        self._plans = {role: plan for role, plan, _ in services}
        self._members = [(role, index) for role, _, count in services for index in range(count)]
        self._ready: dict[tuple[str, int], tuple[Any, Place]] = {}
        self._processes: dict[tuple[str, int], KeptProcess] = {}
        self._moving: dict[tuple[str, int], tuple[Any, Any, Place]] = {}
        """New keepers that wait for a place, and where the process was before."""
        self._ended_soon: Counter[tuple[str, int]] = Counter()

    @property
    def processes(self) -> list[KeptProcess]:
        """Those that were started last, one for each member."""
        return [*self._processes.values()]

    def places(self, role: str) -> list[Place]:
        """Where the processes of a role run, or are to run."""
        members = [one for one in self._members if one[0] == role]
        for member in members:
            self._placed(member)
        return [self._ready[member][1] for member in members]

    def start(self) -> None:
        """Start all."""
        for member in self._members:
            self._start(member)

    def replace(self) -> None:
        """Start those anew that were seen to have ended. A process keeps its place, and so its address, unless its worker is gone.

        Raises PolicyError for one that does not come up.
        """
        for member, one in self._processes.items():
            if one.code is None or (member in self._moving and not self._moved(member)):
                continue
            if one.code == GONE and member in self._ready and self._ready[member][0] is one.keeper:
                self._move(member)
                continue
            soon = time.monotonic() - one.started < SOON_S
            self._ended_soon[member] = self._ended_soon[member] + 1 if soon else 1
            role, index = member
            if self._ended_soon[member] > MAX_IN_A_ROW:
                raise PolicyError(f"{role} {index} does not come up (exit code {one.code}); its log is {one.command.log}")
            log.warning("%s %d has ended (exit code %d); it is started again", role, index, one.code)
            self._start(member)

    def close(self) -> None:
        """End all."""
        import ray

        end(self.processes, grace_s=SERVICE_GRACE_S)
        for one in self.processes:
            ray.kill(one.keeper)

    def _placed(self, member: tuple[str, int]) -> None:
        import ray

        if member not in self._ready:
            keeper = self._places.keeper(*member)
            self._ready[member] = keeper, ray.get(keeper.place.remote())

    def _start(self, member: tuple[str, int]) -> None:
        self._placed(member)
        role, index = member
        places = self.places(role)
        self._processes[member] = KeptProcess.run(self._ready[member][0], self._plans[role](places)[index])

    def _move(self, member: tuple[str, int]) -> None:
        """Ask for a new worker for a process."""
        import ray

        lost, before = self._ready[member]
        ray.kill(lost)
        keeper = self._places.keeper(*member)
        self._moving[member] = keeper, keeper.place.remote(), before
        log.warning("%s %d has lost its worker or machine, and waits for a place", *member)

    def _moved(self, member: tuple[str, int]) -> bool:
        """Whether it has its new place: the same port, where it is on the same machine."""
        import ray
        from ray.exceptions import RayError

        keeper, found, before = self._moving[member]
        if not ray.wait([found], timeout=0)[0]:
            return False
        del self._moving[member]
        self._ready[member] = keeper, before
        try:
            place: Place = cast(Any, ray.get(found))
        except RayError:
            self._move(member)
            return False
        if place.address != before.address:
            self._ready[member] = keeper, place
            log.warning("%s %d is now on %s: those who train learn of it when they start again", *member, place.address)
        return True
