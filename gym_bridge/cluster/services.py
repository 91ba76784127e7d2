"""Processes that serve others, in places of Ray: one that ends is started again, by itself."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gym_bridge.cluster.commands import Command, Place, Service
from gym_bridge.cluster.ray_places import RayPlaces
from gym_bridge.errors import PolicyError

log = logging.getLogger(__name__)

GONE = 255
"""Stands for the exit code of a process that went with its worker or machine."""
UNSTARTED = 126
"""Stands for that of a command that a machine cannot start."""
SOON_S, MAX_IN_A_ROW = 60.0, 5
"""A process that ends so soon after its start, so often in a row, will not come up."""
SERVICE_GRACE_S = 5.0


@dataclass(slots=True)
class KeptProcess:
    """One that runs, or has ended."""

    places: RayPlaces
    keeper: Any
    place: Place
    command: Command
    number: int
    """Of the keeper's processes."""
    ended: Any
    """Ray's reference to its exit code."""
    started: float
    code: int | None = None
    cut_off: bool = False

    @classmethod
    def run(cls, places: RayPlaces, keeper: Any, place: Place, command: Command, *, number: int = 0) -> "KeptProcess":
        """Start the command in the keeper's place."""
        ended = places.run(keeper, command, number)
        return cls(places, keeper, place, command, number, ended, time.monotonic())

    def note(self) -> None:
        """Read its end, which is there. A machine that is cut off has not ended what runs on it: it is asked again."""
        import ray
        from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

        try:
            self.code = ray.get(self.ended)
        except RayTaskError as error:
            log.warning("%s cannot be started on %s: %s", self.command.log.stem, self.place.address, error.cause)
            self.code = UNSTARTED
        except ActorUnavailableError:
            if not self.cut_off:
                log.warning("%s: %s is cut off; its process goes on if it is back soon", self.command.log.stem, self.place.address)
            self.cut_off, self.ended = True, self.places.run(self.keeper, self.command, self.number)
        except RayError as error:
            log.warning("%s: %s", self.command.log.stem, str(error).strip().rpartition("\n")[2])
            self.code = GONE


def look(processes: Iterable[KeptProcess], *, timeout_s: float) -> None:
    """Note which of these have ended, for so long at most."""
    import ray

    running = {one.ended: one for one in processes if one.code is None}
    if not running:
        return
    done, _ = ray.wait(list(running), num_returns=len(running), timeout=timeout_s)
    for reference in done:
        running[reference].note()


def end(processes: Iterable[KeptProcess], *, grace_s: float) -> None:
    """End those that run: SIGTERM, and after so many seconds SIGKILL."""
    import ray

    stops = [one.keeper.stop.remote(grace_s) for one in processes if one.code is None]
    if stops:
        ray.wait(stops, num_returns=len(stops), timeout=grace_s + 10)


@dataclass(slots=True)
class _Member:
    service: Service
    index: int
    required: bool
    keeper: Any = None
    """None: no place is asked for."""
    found: Any = None
    """Ray's reference to the keeper's place."""
    place: Place | None = None
    before: Place | None = None
    """Where it was."""
    process: KeptProcess | None = None
    ended_soon: int = 0


class Services:
    """The processes of several roles. Those that are not required begin when there is room for them."""

    def __init__(self, places: RayPlaces, services: Sequence[Service]):
        self._places, self._services = places, services
        self._members = [
            _Member(one, index, required=places.is_required(one.role, index)) for one in services for index in range(one.count)
        ]

    @property
    def processes(self) -> list[KeptProcess]:
        """Those that were started last, one for each member."""
        return [one.process for one in self._members if one.process is not None]

    def places(self, role: str) -> list[Place]:
        """Where the processes of a role run, or are to run: of those that are required, and of others that have a place."""
        return [one.place for one in self._members if one.service.role == role and one.place is not None]

    def start(self) -> None:
        """Start those that are required, and ask for places for the others."""
        for one in self._members:
            self._ask(one)
        for one in self._members:
            while one.required and not self._take(one, wait=True):
                self._ask(one)
        for service in self._services:
            service.tell(self.places(service.role))
        for one in self._members:
            if one.required:
                self._run(one)

    def replace(self) -> None:
        """Start those anew that were seen to have ended, and those that have found a place. A process keeps its place, and so its
        address, unless its worker is gone.

        Raises PolicyError for one that does not come up.
        """
        for one in self._members:
            if one.place is None:
                self._ask(one)
                if self._take(one, wait=False):
                    one.service.tell(self.places(one.service.role))
                    self._run(one)
            elif one.process is not None and one.process.code is not None:
                self._replace(one, one.process)

    def give_way(self) -> None:
        """End those that are not required, until the next `replace` asks for places again."""
        for one in self._members:
            if not one.required and one.keeper is not None:
                log.warning("%s %d gives way to those who train", one.service.role, one.index)
                self._leave(one)

    def close(self) -> None:
        """End all."""
        end(self.processes, grace_s=SERVICE_GRACE_S)
        for one in self._members:
            if one.keeper is not None:
                self._places.give_back(one.keeper)

    def _ask(self, member: _Member) -> None:
        """Ask for a place."""
        if member.keeper is None:
            member.keeper = self._places.keeper(member.service.role, member.index)
            member.found = member.keeper.place.remote()

    def _take(self, member: _Member, *, wait: bool) -> bool:
        """Whether it has its place: the same port, where it is on the machine of before."""
        import ray
        from ray.exceptions import RayError

        if member.place is not None:
            return True
        if not wait and not ray.wait([member.found], timeout=0)[0]:
            return False
        try:
            place: Place = cast(Any, ray.get(member.found))
        except RayError:
            self._leave(member)
            return False
        before = member.before
        member.place = before if before is not None and before.address == place.address else place
        return True

    def _run(self, member: _Member) -> None:
        assert member.place is not None
        number = 0 if member.process is None or member.process.keeper is not member.keeper else member.process.number + 1
        command = member.service.command(member.index, member.place)
        member.process = KeptProcess.run(self._places, member.keeper, member.place, command, number=number)

    def _replace(self, member: _Member, process: KeptProcess) -> None:
        role, index = member.service.role, member.index
        soon = time.monotonic() - process.started < SOON_S
        member.ended_soon = member.ended_soon + 1 if soon else 1
        if member.ended_soon > MAX_IN_A_ROW:
            raise PolicyError(f"{role} {index} does not come up (exit code {process.code}); its log is {process.command.log}")
        if process.code == GONE:
            log.warning("%s %d has lost its worker or machine, and waits for a place", role, index)
            self._leave(member)
            return
        log.warning("%s %d has ended (exit code %d); it is started again", role, index, process.code)
        self._run(member)

    def _leave(self, member: _Member) -> None:
        """Give up its place."""
        self._places.give_back(member.keeper)
        placed, member.place, member.keeper, member.found = member.place, None, None, None
        if member.process is not None and member.process.code is None:
            member.process.code = GONE
        if placed is not None:
            member.before = placed
            member.service.tell(self.places(member.service.role))
