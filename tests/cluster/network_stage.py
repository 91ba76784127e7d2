"""Machines of one Ray cluster, each in a network namespace of its own behind one switch, whose links can be cut."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory

import pytest

from tests.cluster.ray_stage import processes_with

PORT = 6379
TOKEN = token_hex(32)
"""What Ray's nodes show each other."""
STARTING_S = 60.0
RAY = Path(sys.executable).with_name("ray")


class Machine:
    """One of them: its Ray node, and commands that run there."""

    def __init__(self, number: int, *, head: str | None, directory: Path):
        """`head`: the address of the machine that has Ray's head; None: this one."""
        self.namespace, self.address = f"gb{os.getpid()}-{number}", f"10.77.0.{number}"
        self._port_of_switch, self._head, self._directory = f"p{os.getpid()}-{number}", head, directory
        self._node: subprocess.Popen[bytes] | None = None

    def plug_in(self, switch: str) -> None:
        """Connect it with the switch."""
        _ip("netns", "add", self.namespace)
        _ip("-n", switch, "link", "add", self._port_of_switch, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("-n", switch, "link", "set", self._port_of_switch, "master", "bridge", "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self.namespace, "link", "set", device, "up")
        self._switch = switch

    def inside(self, *command: str) -> list[str]:
        """What runs a command on it."""
        return ["ip", "netns", "exec", self.namespace, "env", "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={TOKEN}", *command]

    def start_ray(self, *, num_cpus: int, num_gpus: int = 0) -> None:
        """Start its Ray node, which takes our word for what there is."""
        leads = ["--head", f"--port={PORT}", f"--temp-dir={self._directory}", "--include-dashboard=false"]
        joins = leads if self._head is None else [f"--address={self._head}:{PORT}"]
        sizes = [f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}", "--object-store-memory=100000000"]
        options = [f"--node-ip-address={self.address}", "--disable-usage-stats", "--block"]
        with (self._directory / f"{self.namespace}.log").open("ab") as log:
            command = self.inside(str(RAY), "start", *joins, *sizes, *options)
            self._node = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_for_nodes(self, count: int) -> None:
        """Until so many are in the cluster of this machine's head."""
        deadline = time.monotonic() + STARTING_S
        command = self.inside(str(RAY), "status", "--address", f"{self.address}:{PORT}")
        while subprocess.run(command, capture_output=True, text=True).stdout.count(" node_") < count:
            assert time.monotonic() < deadline, f"no {count} Ray nodes; see {self._directory}"
            time.sleep(1.0)

    @contextmanager
    def running(self, *command: str) -> Iterator[None]:
        """A command runs on it."""
        process = subprocess.Popen(self.inside(*command), stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    def set_link(self, state: str) -> None:
        """up or down: down loses every packet, without a word."""
        _ip("-n", self._switch, "link", "set", self._port_of_switch, state)

    def cut_off(self, seconds: float) -> None:
        """Nobody reaches it for so long."""
        self.set_link("down")
        time.sleep(seconds)
        self.set_link("up")

    def processes(self, *words: str, variable: str = "") -> list[int]:
        """As `processes_with`, of those on it."""
        here = set(map(int, _ip("netns", "pids", self.namespace).split()))
        return [pid for pid in processes_with(*words, variable=variable) if pid in here]

    def lose(self) -> None:
        """All that runs on it ends at once."""
        for pid in _ip("netns", "pids", self.namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if self._node is not None:
            self._node.wait()

    def unplug(self) -> None:
        """Remove it."""
        self.lose()
        _ip("netns", "del", self.namespace)


@contextmanager
def machines(count: int) -> Iterator[Sequence[Machine]]:
    """So many of them; the first one is for Ray's head. Skips the test where namespaces cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` (Debian's iproute2), which makes network namespaces")
    switch = f"gb{os.getpid()}-switch"
    with ExitStack() as stack:
        try:
            _ip("netns", "add", switch)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        stack.callback(_ip, "netns", "del", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        directory = Path(stack.enter_context(TemporaryDirectory(dir="/tmp", prefix="gb")))  # a socket's path has 107 bytes at most
        found = [Machine(number, head=None if number == 1 else "10.77.0.1", directory=directory) for number in range(1, count + 1)]
        for one in found:
            one.plug_in(switch)
            stack.callback(one.unplug)
        yield found


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
