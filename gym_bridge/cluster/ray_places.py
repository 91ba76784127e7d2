"""Places for processes on a Ray cluster: reserved together, and taken again when a process is replaced."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gym_bridge.cluster.commands import ADDRESS_VARIABLE, Command, Place
from gym_bridge.cluster.kept import shell_code
from gym_bridge.cluster.leases import LEASE_S, Leases
from gym_bridge.cluster.ray_connection import connected
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.cluster_settings import ClusterSettings, RoleSettings

log = logging.getLogger(__name__)

RESERVING_S = 120.0
"""How long Ray may take to set aside what was asked for, where the cluster has it."""
JOINING_S = 120.0
"""How long machines that were started with the cluster may take to join it."""
LOOK_S = 1.0
CALLS = 8
"""Calls that a keeper takes side by side."""
SUPERSEDED = -1
"""What a call gives that was cut off, and made again: nobody hears it."""
STORE_BYTES = 100 * 2**20
"""Ray's object store on this machine: processes say nothing to each other through it."""


class Keeper:
    """In Ray's worker on the machine of a process: starts it, waits for it and ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._number, self._calls = -1, 0
        self._stopped = False
        self._heard = time.monotonic()
        self._lock = threading.Lock()

    def place(self) -> Place:
        """Its machine's address, and a port that is free."""
        import ray

        with socket.socket() as found:
            found.bind(("", 0))
            return Place(address=ray.util.get_node_ip_address(), port=found.getsockname()[1])

    def renew(self) -> None:
        """Its lease: without it the process is ended, see `leases`."""
        self._heard = time.monotonic()

    def run(self, command: Command, number: int) -> int:
        """The exit code of the keeper's process of this number, once it has ended; 128 and more for a signal.

        It is started by the first call: one that was cut off while it waited is made again.
        """
        with self._lock:
            if number != self._number:
                if self._stopped:
                    return shell_code(-signal.SIGTERM)
                self._number, self._process = number, self._started(command)
                self._heard = time.monotonic()
            self._calls += 1
            call, process = self._calls, self._process
        assert process is not None
        while call == self._calls:
            with suppress(subprocess.TimeoutExpired):
                return shell_code(process.wait(LOOK_S))
            if time.monotonic() - self._heard > LEASE_S and not self._stopped:
                _kill(process)
        return SUPERSEDED

    def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, and after so many seconds SIGKILL."""
        with self._lock:
            process, self._stopped = self._process, True
        if process is None or process.poll() is not None:
            return
        if grace_s:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        _kill(process)

    def _started(self, command: Command) -> "subprocess.Popen[bytes]":
        directory = command.directory if command.directory.is_dir() else Path.home()
        environment = {**os.environ, **command.env, ADDRESS_VARIABLE: self.place().address}
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as lines:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "gym_bridge.cluster.kept", *command.argv],
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=lines,
                stderr=lines,
                start_new_session=True,
            )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


class RayPlaces:
    """Places of processes, for as long as a `with` block lasts: in one placement group for all that the roles require at least,
    and for each of the others wherever there is room."""

    def __init__(self, settings: ClusterSettings, roles: Mapping[str, RoleSettings]):
        self._settings, self._roles = settings, roles
        names = [name for name, role in self._roles.items() for _ in range(role.required)]
        self._bundle_of = {(name, names[:at].count(name)): at for at, name in enumerate(names)}
        self._bundles = [_resources(self._roles[name]) for name in names]
        self._group: Any = None
        self._leases = Leases()
        self._stack = ExitStack()

    def __enter__(self) -> "RayPlaces":
        """Connect and reserve. Raises ConfigError for a cluster that is not there, or has too little."""
        asked = sum(role.count * role.cpus for role in self._roles.values())
        wanted = max(os.cpu_count() or 1, int(asked) + 1)  # as without Ray, they share
        self._stack.enter_context(
            connected(self._settings.address, setting="cluster.address", store_bytes=STORE_BYTES, num_cpus=wanted)
        )
        try:
            self._reserve()
            self._stack.enter_context(self._leases)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):
            ray.util.remove_placement_group(self._group)
        self._stack.close()

    @property
    def host(self) -> str:
        """The address of this machine in the cluster."""
        import ray

        return ray.util.get_node_ip_address()

    def is_required(self, role: str, index: int) -> bool:
        """Whether nothing begins without a place for this process."""
        return (role, index) in self._bundle_of

    def keeper(self, role: str, index: int) -> Any:
        """A new actor in the place of the role's process of this index, wherever Ray has it by now."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        settings = self._roles[role]
        options: dict[str, Any] = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "max_concurrency": CALLS}
        if self.is_required(role, index):
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=self._bundle_of[role, index]
            )
        if settings.image:
            options["runtime_env"] = {"image_uri": settings.image}
        return ray.remote(Keeper).options(**options).remote()

    def lacks_room(self) -> bool:
        """Whether what is required has lost places and Ray has no others for it yet."""
        import ray

        return ray.util.placement_group_table(self._group).get("state") != "CREATED"

    def run(self, keeper: Any, command: Command, number: int) -> Any:
        """Let a keeper run its process of this number: a reference to the exit code. Its lease is renewed from now on."""
        self._leases.begin(keeper)
        return keeper.run.remote(command, number)

    def give_back(self, keeper: Any, *, address: str | None = None) -> float:
        """End a keeper, and what it keeps. `address`: that of its machine, where it may be out of reach: then seconds until what it
        keeps has certainly ended by itself."""
        import ray
        from ray.exceptions import RayError

        left_s = self._leases.end(keeper)
        with suppress(RayError):  # one that waits for a place may have lost it by now
            ray.kill(keeper)
        if address is None:
            return 0.0
        there = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        return 0.0 if address in there else left_s

    def _reserve(self) -> None:
        import ray

        deadline = time.monotonic() + (0.0 if self._settings.address == "local" else JOINING_S)
        while (missing := self._missing(ray.cluster_resources())) is not None:
            if time.monotonic() >= deadline:
                raise ConfigError(missing)
            time.sleep(1.0)
        self._group = ray.util.placement_group(self._bundles, strategy=self._settings.placement)
        if not self._group.wait(RESERVING_S):
            raise ConfigError(
                f"Ray cannot place what the roles of cluster ask for within {RESERVING_S:g} s: no machine is large enough, or "
                f"others use them; try another cluster.placement than {self._settings.placement}"
            )

    def _missing(self, there: Mapping[str, float]) -> str | None:
        """What the roles ask for and the machines that have joined do not have."""
        for kind in ("CPU", "GPU"):
            asked, have = sum(one.get(kind, 0) for one in self._bundles), there.get(kind, 0)
            if asked > have:
                return (
                    f"the roles of cluster ask for {asked:g} {kind}s, and the cluster has {have:g}; lower the counts, or "
                    f"{kind.lower()}s of the roles, or add machines"
                )
        return None


def _resources(role: RoleSettings) -> dict[str, float]:
    """What a process of the role asks for; Ray takes no empty bundle."""
    found = {"CPU": role.cpus, "GPU": role.gpus}
    return {kind: amount for kind, amount in found.items() if amount} or {"CPU": 0.001}
