"""The battery: programs that would harm or spy on the machine, in every category of SandboxEval (arXiv 2504.00018), get nowhere."""

import asyncio
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gym_bridge.resource_servers.code.languages import languages
from gym_bridge.resource_servers.code.limits import Limits
from gym_bridge.resource_servers.code.program import Finished, Program
from gym_bridge.resource_servers.code.sandbox import Sandbox
from tests.resource_servers.hostile import communication, files, information, operations, reward_cheats
from tests.resource_servers.hostile.program import Hostile

pytestmark = pytest.mark.slow

CATEGORIES = {"information": information, "files": files, "communication": communication, "operations": operations}
PROGRAMS = [one for category in CATEGORIES.values() for one in category.PROGRAMS]
LIMITS = Limits(cpu_s=1, wall_s=6.0, memory_mib=256, num_processes=32, file_mib=8, disk_mib=16, output_kib=256)
LATE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the programs aim at: real files, servers and processes of this machine, open to every user of it."""

    folder: Path
    victim: subprocess.Popen
    servers: tuple[socket.socket, ...]

    @property
    def places(self) -> tuple:
        """What the prelude of a hostile program unpacks."""
        tcp, unix, abstract = (server.getsockname() for server in self.servers)
        here = str(Path(__file__).parent)
        return self.victim.pid, tcp[1], str(self.folder / "secret.txt"), unix, abstract, platform.node(), here

    def visited(self) -> bool:
        """Whether anybody has connected to a server."""
        for server in self.servers:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                continue
            return True
        return False


@pytest.fixture(scope="module")
def targets() -> Iterator[Targets]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "secret.txt").write_text("canary")
        (folder / "secret.txt").chmod(0o666)
        tcp = socket.create_server(("127.0.0.1", 0))
        unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        unix.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        abstract.bind(b"\0gym-bridge-" + os.urandom(8).hex().encode())
        for server in (tcp, unix, abstract):
            server.listen()
            server.setblocking(False)
        environment = {**os.environ, "GYM_BRIDGE_CANARY": "canary"}
        with subprocess.Popen(["sleep", "600"], env=environment) as victim, tcp, unix, abstract:
            yield Targets(folder=folder, victim=victim, servers=(tcp, unix, abstract))
            victim.kill()


@dataclass(frozen=True, kw_only=True)
class Battle:
    """How all programs ended, and what was left on the machine."""

    ends: dict[str, Finished]
    left_processes: list[int]


@pytest.fixture(scope="module")
def battle(targets: Targets) -> Battle:
    async def main() -> Battle:
        os.environ["GYM_BRIDGE_CANARY"] = "canary"
        async with Sandbox(limits=LIMITS, concurrency=8) as sandbox:

            async def fight(one: Hostile):
                return one.name, await sandbox.run(Program(source=one.text(targets.places), language=one.language))

            known = [one for one in PROGRAMS if one.language in languages()]
            known.sort(key=lambda one: one.ends != ("wall_time",))  # those that wait do so beside the others
            ends = dict(await asyncio.gather(*map(fight, known)))
            launcher = sandbox._launcher.pid
            for _ in range(200):  # a supervisor ends just after its report
                left = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
                if not left:
                    break
                await asyncio.sleep(0.01)
        return Battle(ends=ends, left_processes=[int(one) for one in left])

    try:
        return asyncio.run(main())
    finally:
        os.environ.pop("GYM_BRIDGE_CANARY")


def test_the_battery_is_large_and_its_names_are_unique():
    names = [one.name for one in (*PROGRAMS, *reward_cheats.PROGRAMS)]
    assert len(set(names)) == len(names) >= 60
    assert all(len(category.PROGRAMS) >= 10 for category in CATEGORIES.values())


@pytest.mark.parametrize("hostile", PROGRAMS, ids=lambda one: one.name)
def test_a_hostile_program_gets_nowhere(hostile: Hostile, battle: Battle):
    if hostile.name not in battle.ends:
        pytest.skip(f"the tools of {hostile.language} are not on this machine")
    finished = battle.ends[hostile.name]
    said = finished.stdout.decode(errors="replace")
    assert "ESCAPED" not in said
    assert "canary" not in said
    busy = ("wall_time",) if "cpu_time" in hostile.ends else ()  # where others use the processor, the clock comes first
    assert finished.ended_by in (*hostile.ends, *busy), (finished, said)
    assert finished.wall_s < LIMITS.wall_s + LATE_S or finished.ended_by == "compile"
    if hostile.ends == ("exit",):
        assert finished.exit_code == 0, finished
        assert "held" in said


def test_nothing_of_the_machine_has_changed(battle: Battle, targets: Targets):
    assert battle.left_processes == []
    assert sorted(one.name for one in targets.folder.iterdir()) == ["secret.txt", "socket"]
    assert (targets.folder / "secret.txt").read_text() == "canary"
    assert not targets.visited()
    assert targets.victim.poll() is None
    stat = Path(f"/proc/{targets.victim.pid}/stat").read_text()
    assert stat.rpartition(")")[2].split()[0] == "S"  # neither stopped nor traced
    assert list(Path(tempfile.gettempdir()).glob("gym-bridge-sandbox-*")) == []


def test_namespaces_hold_where_landlock_and_seccomp_do_not(targets: Targets):
    names = (
        "secret_file",
        "writes_outside",
        "process_list",
        "machine_name",
        "tcp_to_loopback",
        "udp",
        "http",
        "unix_socket_by_path",
    )
    programs = [one for one in PROGRAMS if one.name in names]

    async def main() -> list[Finished]:
        async with Sandbox(limits=LIMITS) as sandbox:
            if not {"mount_namespace", "pid_namespace", "network_namespace"} <= set(sandbox.layers()):
                pytest.skip(f"no namespaces here: {sandbox.missing_layers()}")
            sandbox._active = tuple(one for one in sandbox.layers() if one not in ("landlock", "seccomp"))
            return [await sandbox.run(Program(source=one.text(targets.places))) for one in programs]

    said = [one.stdout.decode() for one in asyncio.run(main())]
    assert len(said) == len(names)
    assert all("held" in one and "ESCAPED" not in one for one in said), said


@pytest.mark.parametrize("hostile", [one for one in PROGRAMS if one.open_air], ids=lambda one: one.name)
def test_a_plain_process_would_have_let_it(hostile: Hostile, targets: Targets, tmp_path: Path):
    environment = {**os.environ, "GYM_BRIDGE_CANARY": "canary"}
    for server in targets.servers:
        server.listen()
    command = [sys.executable, "-I", "-S", "-c", hostile.text(targets.places)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=20)
    assert "ESCAPED" in done.stdout, done.stderr
    targets.visited()
    (targets.folder / "secret.txt.new").unlink(missing_ok=True)
