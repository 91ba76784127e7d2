"""Keeps the processes of a training: those who train end and begin together, the others are replaced one by one."""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

from gym_bridge.cluster.commands import Place, Plan
from gym_bridge.cluster.ray_places import RayPlaces
from gym_bridge.cluster.services import GONE, KeptProcess, Services, end, look
from gym_bridge.errors import PolicyError

log = logging.getLogger(__name__)

STOPPED = -1
"""Stands for the exit code of a process that was stopped because of another one."""
KILLED = 128
"""Exit codes from here on tell of a signal, and not of an error that would come again."""
TOGETHER_S = 30.0
"""How long the others of those who train may take to end after the first."""
GRACE_S = 300.0
"""How long those who train have to save, after SIGTERM."""
ANSWERING_S = 10.0
"""How long a process takes at most to be killed, where its machine can be reached."""
LOOK_S = 0.5
WAITING_TOLD_S = 30.0


class Supervisor:
    """Runs `trainers`, the processes that train, to their end, and beside them `services`."""

    def __init__(
        self,
        places: RayPlaces,
        *,
        trainers: Plan,
        num_trainers: int,
        services: Services,
        progress: Callable[[], Hashable],
        max_restarts: int,
    ):
        """`progress`: something that changes with each checkpoint."""
        self._places, self._plan, self._num_trainers, self._services = places, trainers, num_trainers, services
        self._progress, self._max_restarts = progress, max_restarts
        self._trainers: list[KeptProcess] = []
        self._told: Any = None
        """Ray's reference to the answer of the first of those who train, once it is told to end."""

    def run(self, stopping: Callable[[], bool]) -> int:
        """Until those who train have ended well, or for good: the exit code of the first of them. With `stopping` they are told to
        save and end. Raises PolicyError when a service does not come up, and where `stopping` comes while places are waited for."""
        restarts, last = 0, self._progress()
        self._services.start()
        self._start_trainers(stopping)
        while True:
            self._look()
            self._services.replace()
            if stopping():
                self._tell_to_end()
            if all(one.code is None for one in self._trainers):
                continue
            codes = self._codes()
            if (code := exit_code(codes, told=self._told is not None)) is not None:
                return code
            now = self._progress()
            restarts, last = (1 if now != last else restarts + 1), now
            if restarts > self._max_restarts:
                raise PolicyError(
                    f"those who train were killed {restarts} times without a checkpoint in between; see "
                    f"{self._trainers[0].command.log}"
                )
            log.warning("a process that trains was killed (exit codes %s); all go on from the last checkpoint", codes)
            self._start_trainers(stopping)

    def close(self) -> None:
        """End all that runs; those who train save first."""
        end(self._trainers, grace_s=GRACE_S)  # saving may need the services
        for one in self._trainers:
            self._places.give_back(one.keeper)
        self._services.close()

    def _tell_to_end(self) -> None:
        """Tell the first of those who train; again, where its machine was cut off meanwhile."""
        import ray
        from ray.exceptions import RayError

        if self._told is not None:
            if not ray.wait([self._told], timeout=0)[0]:
                return
            try:
                ray.get(self._told)
                return
            except RayError:
                pass
        self._told = self._trainers[0].keeper.stop.remote(GRACE_S)

    def _start_trainers(self, stopping: Callable[[], bool]) -> None:
        self._give_back_trainers(stopping)
        placed = self._placed(stopping)
        commands = self._plan([place for _, place in placed])
        self._trainers = [
            KeptProcess.run(self._places, keeper, place, command) for (keeper, place), command in zip(placed, commands, strict=True)
        ]

    def _placed(self, stopping: Callable[[], bool]) -> list[tuple[Any, Place]]:
        """Keepers for those who train, and their places, once Ray has room for all."""
        import ray
        from ray.exceptions import RayError

        while True:
            keepers = [self._places.keeper("policy", index) for index in range(self._num_trainers)]
            found = [one.place.remote() for one in keepers]
            tell_at = time.monotonic() + WAITING_TOLD_S
            while len(ray.wait(found, num_returns=len(found), timeout=LOOK_S)[0]) < len(found):
                _check_stopping(stopping)
                if time.monotonic() >= tell_at and self._places.lacks_room():
                    log.warning("those who train wait for places: Ray has none free for all of them")
                    self._services.give_way()
                    tell_at = time.monotonic() + WAITING_TOLD_S
            try:
                return list(zip(keepers, ray.get(found), strict=True))
            except RayError as error:
                log.warning("a place of those who train was lost before they began: %s", str(error).strip().rpartition("\n")[2])
                for one in keepers:
                    self._places.give_back(one)

    def _give_back_trainers(self, stopping: Callable[[], bool]) -> None:
        """End what is left of those who trained; waits until one that may run on, on a machine that is cut off, has ended too."""
        left_s = 0.0
        for one in self._trainers:
            address = one.place.address if one.code == GONE else None
            left_s = max(left_s, self._places.give_back(one.keeper, address=address))
        if left_s:
            log.warning("a process on a machine that is cut off ends by itself: waiting %.0f s for it", left_s)
        until = time.monotonic() + left_s
        while time.monotonic() < until:
            _check_stopping(stopping)
            time.sleep(LOOK_S)

    def _codes(self) -> list[int]:
        """The exit codes of those who train, of whom one has ended; the others are given a moment, and then killed."""
        deadline = time.monotonic() + TOGETHER_S
        while any(one.code is None for one in self._trainers) and time.monotonic() < deadline:
            self._look()
        stops = {one.keeper.stop.remote(0.0): one for one in self._trainers if one.code is None}
        answered = _answered([*stops])
        for reference, one in stops.items():
            one.code = STOPPED if reference in answered else GONE
        return [STOPPED if one.code is None else one.code for one in self._trainers]

    def _look(self) -> None:
        """Note who has ended."""
        look((*self._trainers, *self._services.processes), timeout_s=LOOK_S)


def _answered(calls: Sequence[Any]) -> set[Any]:
    """Those of the calls that have come to their end, waited for so long at most."""
    import ray
    from ray.exceptions import RayError

    found = set()
    for one in ray.wait([*calls], num_returns=len(calls), timeout=ANSWERING_S)[0] if calls else ():
        with suppress(RayError):
            ray.get(one)
            found.add(one)
    return found


def _check_stopping(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise PolicyError(
            "SIGTERM came while those who train were to be started again; the same command goes on from the last checkpoint"
        )


def exit_code(codes: Sequence[int], *, told: bool) -> int | None:
    """What the training has ended with, by the exit codes of those who train; None where they go on from the last checkpoint.

    `told`: they were told to end.
    """
    if codes[0] == 0:
        return 0
    if not told and any(code >= KILLED for code in codes):
        return None
    return next((code for code in codes if 0 < code < KILLED), 1)
