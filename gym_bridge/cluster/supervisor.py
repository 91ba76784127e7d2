"""Keeps the processes of a training: those who train end and begin together, the others are replaced one by one."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from gym_bridge.cluster.commands import Command, Place, Plan
from gym_bridge.cluster.ray_places import RayPlaces
from gym_bridge.errors import PolicyError

log = logging.getLogger(__name__)

GONE = 255
"""Stands for the exit code of a process that went with its worker or machine."""
STOPPED = -1
"""Stands for the exit code of a process that was stopped because of another one."""
KILLED = 128
"""Exit codes from here on tell of a signal, and not of an error that would come again."""
TOGETHER_S = 30.0
"""How long the others of those who train may take to end after the first."""
GRACE_S = 300.0
"""How long those who train have to save, after SIGTERM."""
SOON_S, MAX_IN_A_ROW = 60.0, 5
"""A process that ends so soon after its start, so often in a row, will not come up."""
LOOK_S = 0.5


@dataclass(slots=True)
class _Process:
    """One that runs, or has ended."""

    keeper: Any
    command: Command
    ended: Any
    """Ray's reference to its exit code."""
    started: float
    code: int | None = None


class Supervisor:
    """Runs `trainers`, the processes that train, to their end, and beside them those of `services`, by role."""

    def __init__(
        self,
        places: RayPlaces,
        *,
        trainers: Plan,
        num_trainers: int,
        services: Sequence[tuple[str, Plan, int]],
        progress: Callable[[], Hashable],
        max_restarts: int,
    ):
        """`services`: a role, its plan and how many there are. `progress`: something that changes with each checkpoint."""
        self._places, self._plan, self._num_trainers = places, trainers, num_trainers
        self._progress, self._max_restarts = progress, max_restarts
        self._trainers: list[_Process] = []
        self._services: dict[tuple[str, int], _Process] = {}
        self._ready: dict[tuple[str, int], tuple[Any, Place]] = {}
        self._plans = {role: plan for role, plan, _ in services}
        self._members = [(role, index) for role, _, count in services for index in range(count)]
        self._ended_soon: Counter[tuple[str, int]] = Counter()

    def service_places(self, role: str) -> list[Place]:
        """Where the processes of a service run, or are to run."""
        members = [one for one in self._members if one[0] == role]
        for member in members:
            self._placed(member)
        return [self._ready[member][1] for member in members]

    def run(self, stopping: Callable[[], bool]) -> int:
        """Until those who train have ended well, or for good: the exit code of the first of them. With `stopping` they are told to
        save and end. Raises PolicyError when a service does not come up."""
        restarts, last = 0, self._progress()
        for member in self._members:
            self._start_service(member)
        self._start_trainers()
        told = False
        while True:
            self._look()
            self._replace_services()
            if stopping() and not told:
                told = True
                self._trainers[0].keeper.stop.remote(GRACE_S)
            if all(one.code is None for one in self._trainers):
                continue
            codes = self._codes()
            if (code := exit_code(codes, told=told)) is not None:
                return code
            now = self._progress()
            restarts, last = (1 if now != last else restarts + 1), now
            if restarts > self._max_restarts:
                raise PolicyError(
                    f"those who train were killed {restarts} times without a checkpoint in between; see "
                    f"{self._trainers[0].command.log}"
                )
            log.warning("a process that trains was killed (exit codes %s); all go on from the last checkpoint", codes)
            self._start_trainers()

    def close(self) -> None:
        """End all that runs; those who train save first."""
        import ray

        for processes, grace_s in ((self._trainers, GRACE_S), (self._services.values(), 5.0)):  # saving may need the others
            stops = [one.keeper.stop.remote(grace_s) for one in processes if one.code is None]
            if stops:
                ray.wait(stops, num_returns=len(stops), timeout=grace_s + 10)
        for one in (*self._trainers, *self._services.values()):
            ray.kill(one.keeper)

    def _start_trainers(self) -> None:
        import ray

        for one in self._trainers:
            ray.kill(one.keeper)
        keepers = [self._places.keeper("policy", index) for index in range(self._num_trainers)]
        places = ray.get([one.place.remote() for one in keepers])
        self._trainers = [_run(keeper, command) for keeper, command in zip(keepers, self._plan(places), strict=True)]

    def _placed(self, member: tuple[str, int]) -> None:
        import ray

        if member not in self._ready:
            keeper = self._places.keeper(*member)
            self._ready[member] = keeper, ray.get(keeper.place.remote())

    def _start_service(self, member: tuple[str, int]) -> None:
        self._placed(member)
        role, index = member
        places = self.service_places(role)
        self._services[member] = _run(self._ready[member][0], self._plans[role](places)[index])

    def _replace_services(self) -> None:
        """Start those anew that have ended. A process keeps its place, and so its address, unless its worker is gone too."""
        for member, one in self._services.items():
            if one.code is None:
                continue
            soon = time.monotonic() - one.started < SOON_S
            self._ended_soon[member] = self._ended_soon[member] + 1 if soon else 1
            role, index = member
            if self._ended_soon[member] > MAX_IN_A_ROW:
                raise PolicyError(f"{role} {index} does not come up (exit code {one.code}); its log is {one.command.log}")
            log.warning("%s %d has ended (exit code %d); it is started again", role, index, one.code)
            if one.code == GONE:
                self._move(member)
            self._start_service(member)

    def _move(self, member: tuple[str, int]) -> None:
        """A new worker for a process, at the same port where it is on the same machine."""
        import ray

        lost, before = self._ready.pop(member)
        ray.kill(lost)
        self._placed(member)
        keeper, place = self._ready[member]
        if place.address == before.address:
            self._ready[member] = keeper, before
        else:
            log.warning("%s %d is now on %s: those who train learn of it when they start again", *member, place.address)

    def _codes(self) -> list[int]:
        """The exit codes of those who train, of whom one has ended; the others are given a moment, and then killed."""
        deadline = time.monotonic() + TOGETHER_S
        while any(one.code is None for one in self._trainers) and time.monotonic() < deadline:
            self._look()
        for one in self._trainers:
            if one.code is None:
                one.keeper.stop.remote(0.0)
                one.code = STOPPED
        return [STOPPED if one.code is None else one.code for one in self._trainers]

    def _look(self) -> None:
        """Note who has ended."""
        import ray

        running = {one.ended: one for one in (*self._trainers, *self._services.values()) if one.code is None}
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=len(running), timeout=LOOK_S)
        for reference in done:
            running[reference].code = _code(reference)


def exit_code(codes: Sequence[int], *, told: bool) -> int | None:
    """What the training has ended with, by the exit codes of those who train; None where they go on from the last checkpoint.

    `told`: they were told to end.
    """
    if codes[0] == 0:
        return 0
    if not told and any(code >= KILLED for code in codes):
        return None
    return next((code for code in codes if 0 < code < KILLED), 1)


def _run(keeper: Any, command: Command) -> _Process:
    return _Process(keeper=keeper, command=command, ended=keeper.run.remote(command), started=time.monotonic())


def _code(reference: Any) -> int:
    import ray
    from ray.exceptions import RayActorError

    try:
        return ray.get(reference)
    except RayActorError:
        return GONE
