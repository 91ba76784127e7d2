"""The sandbox: ordinary programs run well in it, limits end them, and what it promises at start-up is what runs get."""

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers.code.languages import languages
from gym_bridge.resource_servers.code.limits import Limits
from gym_bridge.resource_servers.code.program import Program
from gym_bridge.resource_servers.code.sandbox import Sandbox, SandboxError
from gym_bridge.resource_servers.code.unit_tests import StdinTest
from tests.resource_servers.hostile.program import PRELUDE

pytestmark = pytest.mark.slow  # processes by the dozen

T = TypeVar("T")
NAMESPACES = {f"{name}_namespace" for name in ("user", "mount", "pid", "ipc", "uts", "network")}
NARROW = Path(__file__).with_name("narrow_machine.py")


def within(use: Callable[[Sandbox], Awaitable[T]], **settings) -> T:
    async def main() -> T:
        async with Sandbox(**settings) as sandbox:
            return await use(sandbox)

    return asyncio.run(main())


def run(source: str, stdin: bytes = b"", *, language: str = "python", **limits):
    return within(lambda box: box.run(Program(source=source, language=language), stdin), limits=Limits(**limits))


def needs(name: str) -> None:
    if name not in languages():
        pytest.skip(f"the tools of {name} are not on this machine")


def test_a_program_reads_stdin_and_writes_both_outputs():
    finished = run("import sys; print(input()[::-1]); print('aside', file=sys.stderr); sys.exit(3)", "héllo\n".encode())
    assert (finished.ended_by, finished.exit_code, finished.signal) == ("exit", 3, None)
    assert finished.stdout.decode() == "olléh\n"
    assert finished.stderr == b"aside\n"
    assert not finished.succeeded
    assert 0 < finished.cpu_s < 2
    assert 0 < finished.wall_s < 5


def test_an_ordinary_program_finds_what_it_needs():
    source = """
import asyncio, concurrent.futures, os, random, subprocess, sys, tempfile
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("x"); file.seek(0); assert file.read() == "x"
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
async def ticks():
    await asyncio.sleep(0.01)
    return 7
assert asyncio.run(ticks()) == 7
assert subprocess.run([sys.executable, "-c", "print(5)"], stdout=-1, stderr=subprocess.DEVNULL, text=True).stdout == "5\\n"
assert subprocess.run("echo $((1 + 1))", shell=True, capture_output=True).stdout == b"2\\n"
open("/dev/null", "w").write("x"); os.mkdir("d"); os.symlink("d", "l"); os.listdir("l"); os.urandom(4)
print("fine", os.path.basename(os.getcwd()) in os.environ["HOME"])
"""
    finished = run(source)
    assert (finished.stdout, finished.stderr) == (b"fine True\n", b"")


def test_large_inputs_and_outputs_pass_whole():
    text = os.urandom(300_000).hex().encode()
    assert run("import sys; sys.stdout.write(sys.stdin.read())", text).stdout == text
    assert run("print(1)", text).stdout == b"1\n"  # nobody read it


def test_javascript_runs():
    needs("javascript")
    source = 'process.stdout.write(require("fs").readFileSync(0, "utf8").toUpperCase()); console.error([1, 2].map((n) => n * 2))'
    finished = run(source, b"abc", language="javascript")
    assert (finished.stdout, finished.stderr, finished.succeeded) == (b"ABC", b"[ 2, 4 ]\n", True)


def test_c_is_compiled_in_the_sandbox_and_run_from_its_product():
    needs("c")
    source = '#include <stdio.h>\n#include <math.h>\nint main() { int n; scanf("%d", &n); printf("%.3f\\n", sqrt(n)); return n; }'
    finished = run(source, b"2", language="c")
    assert (finished.stdout, finished.exit_code) == (b"1.414\n", 2)
    broken = run("int main() { return x; }", language="c")
    assert (broken.ended_by, broken.succeeded) == ("compile", False)
    assert b"x" in broken.stderr


def test_a_build_tells_whether_a_source_is_well_formed():
    async def build(sandbox: Sandbox):
        sources = {
            "python": ("print(1)", "print(1"),
            "javascript": ("let a = 1", "let = = 1"),
            "c": ("int main(){}", "int main({"),
        }
        for name in languages():
            good, bad = [await sandbox.build(Program(source=one, language=name)) for one in sources[name]]
            assert (good.succeeded, bad.succeeded) == (True, False), name
            assert bad.finished.stderr, name
        return [await sandbox.build(Program(source="while True: pass")), await sandbox.build(Program(source="\udc80 = 1"))]

    loop, surrogate = within(build)
    assert loop.succeeded  # it is checked, not run
    assert not surrogate.succeeded


def test_an_unknown_language_or_limit_is_refused():
    with pytest.raises(ConfigError, match=r"language 'pyhton'.*did you mean 'python'"):
        run("", language="pyhton")
    with pytest.raises(ConfigError, match=r"limits\.memory_mib is 0"):
        Limits(memory_mib=0)
    with pytest.raises(ConfigError, match=r"limits\.wall_s is inf"):
        Limits(wall_s=float("inf"))


def test_each_limit_says_that_it_ended_the_run():
    assert run("while True: pass", cpu_s=1).ended_by == "cpu_time"
    slept = run("import time; print('first', flush=True); time.sleep(60)", wall_s=3)
    assert (slept.ended_by, slept.exit_code, slept.signal) == ("wall_time", None, signal.SIGKILL)
    assert slept.stdout == b"first\n"
    assert slept.wall_s >= 3
    flood = run("while True: print('x' * 999)", output_kib=4)
    assert (flood.ended_by, len(flood.stdout)) == ("output", 4096)
    assert run("import os; os.abort()").signal == signal.SIGABRT
    held = "import os, time\nfor _ in range(6):\n    if not os.fork(): break\nkept = b'x' * (60 << 20)\ntime.sleep(30)"
    assert run(held, memory_mib=200).ended_by == "memory"
    assert run("x = bytearray(300 << 20)", memory_mib=200).stderr.endswith(b"MemoryError\n")


def tree(pid: int) -> list[int]:
    try:
        children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(deeper for child in children for deeper in tree(child))]


def test_a_run_that_is_cancelled_dies_with_everything_that_it_started():
    source = "import os, time\nif os.fork() == 0 and os.fork() == 0:\n    os.setsid()\ntime.sleep(600)"

    async def cancel(sandbox: Sandbox) -> None:
        running = asyncio.create_task(sandbox.run(Program(source=source), limits=Limits(wall_s=600)))
        async with asyncio.timeout(20):
            while len(tree(sandbox._launcher.pid)) < 5:  # a supervisor, a first process, three of the program
                await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            while tree(sandbox._launcher.pid):
                await asyncio.sleep(0.01)

    within(cancel)


def test_nothing_outlives_a_caller_that_is_killed(tmp_path: Path):
    script = f"""
import asyncio, sys
sys.path.append({str(Path(__file__).parents[2])!r})
from gym_bridge.resource_servers.code.sandbox import Limits, Program, Sandbox
async def main():
    async with Sandbox(limits=Limits(wall_s=600)) as sandbox:
        print(sandbox._launcher.pid, flush=True)
        await sandbox.run(Program(source="import time; time.sleep(600)"))
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        launcher = int(caller.stdout.readline())
        deadline = time.monotonic() + 20
        family: list[int] = []
        while len(family) < 4 and time.monotonic() < deadline:
            family = [launcher, *tree(launcher)]
        caller.kill()
    assert len(family) == 4  # launcher, supervisor, first process, program
    while alive := [pid for pid in family if Path(f"/proc/{pid}").exists() and state(pid) != "Z"]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.01)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_a_launcher_that_was_killed_is_an_error_and_not_a_hang():
    async def lose(sandbox: Sandbox) -> None:
        sandbox._launcher.kill()
        sandbox._launcher.wait()
        await sandbox.run(Program(source="print(1)"))

    with pytest.raises(SandboxError, match="the launcher is gone"):
        within(lose)


def test_a_sandbox_takes_many_runs_at_once_and_keeps_them_apart():
    async def crowd(sandbox: Sandbox):
        runs = [sandbox.run(Program(source="print(input(), *__import__('os').listdir())"), str(n).encode()) for n in range(40)]
        return await asyncio.gather(*runs)

    found = within(crowd)
    assert [one.stdout for one in found] == [f"{n} solution.py\n".encode() for n in range(40)]


def test_the_layers_are_told_at_start_up(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        layers, missing = within(lambda box: asyncio.sleep(0, (box.layers(), box.missing_layers())))
    assert f"active layers: {', '.join(layers)}; missing: " in caplog.text
    needed = {"uid", "privileges", "rlimits", "network_namespace", "seccomp"}
    lacking = needed - set(layers) | (set() if {"mount_namespace", "landlock"} & set(layers) else {"mount_namespace or landlock"})
    if os.environ.get("CI") == "true":
        assert lacking == set(), missing
    elif missing:
        pytest.skip(f"this machine gives the sandbox fewer layers: {missing}")


def narrow(*sources: str, denied: tuple[str, ...] = (), uid: int = 0, allow_unsandboxed: bool = False) -> dict:
    """What narrow_machine.py tells; by an interpreter that a user who is not root may execute."""
    if os.geteuid() != 0 and uid:
        pytest.skip("only root can become somebody else")
    wish = {"denied": denied, "uid": uid, "allow_unsandboxed": allow_unsandboxed, "sources": sources}
    command = [public_python(), "-S", str(NARROW), json.dumps(wish)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def public_python() -> str:
    for python in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin") or "/nowhere"):
        real = Path(python).resolve()
        reachable = all(folder.exists() and folder.stat().st_mode & 0o001 for folder in (real, *real.parents))
        version = "import sys; sys.exit(sys.version_info < (3, 11))"
        if reachable and subprocess.run([str(real), "-c", version]).returncode == 0:
            return str(real)
    pytest.skip("no Python 3.11 here that users other than root may execute")


def attempts(tmp_path: Path) -> list[str]:
    """A few hostile programs for machines that give fewer layers, aimed at real targets."""
    secret = tmp_path / "secret.txt"
    secret.write_text("canary")
    prelude = PRELUDE.format(places=(os.getpid(), 9, str(secret), "", b"\0nobody", "", ""))
    return [
        prelude + 'tries("read", lambda: open(SECRET).read())\ntries("write", lambda: open(SECRET + "x", "w"))',
        prelude + 'call("tgkill", 234, 131, PARENT, PARENT, 0); call("setpriority", 141, 140, 0, PARENT, 0)',
        prelude + 'import socket; tries("socket", lambda: socket.socket())',
        prelude + 'tries("kill", lambda: os.kill(PARENT, 0))',
        prelude + 'tries("root", lambda: os.setuid(0)); call("ptrace", 101, 117, 0, 0, 0, 0)',
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.fork() or time.sleep(60)\n    os._exit(0)\nprint('held')",
        "import os\nfor n in range(200):\n    os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)\nprint('held')",
    ]


def assert_held(found: dict) -> None:
    for ended_by, stdout, stderr in found["ends"]:
        assert (ended_by, stderr) == ("exit", "")
        assert "held" in stdout
        assert "ESCAPED" not in stdout
    assert found["left"] == []


def test_an_ordinary_user_gets_every_layer_through_user_namespaces(tmp_path: Path):
    found = narrow(*attempts(tmp_path), uid=65533)
    assert found["missing"] == {}
    assert_held(found)


@pytest.mark.parametrize("uid", [0, 65533])
def test_without_namespaces_landlock_and_seccomp_hold(uid: int, tmp_path: Path):
    found = narrow(*attempts(tmp_path), denied=("unshare",), uid=uid)
    assert set(found["missing"]) == NAMESPACES
    assert found["layers"] == ["uid", "privileges", "rlimits", "landlock", "seccomp"]
    assert_held(found)
    many = "import time\nfor n in range({}): open(str(n), 'w').write('x' * {})\ntime.sleep(60)"
    filled = narrow(many.format(30, 1 << 20), many.format(5000, 0), denied=("unshare",), uid=uid)
    assert [one[0] for one in filled["ends"]] == ["disk", "disk"]
    assert filled["left"] == []


def test_without_landlock_the_mount_namespace_holds(tmp_path: Path):
    found = narrow(*attempts(tmp_path), denied=("landlock_create_ruleset",))
    assert list(found["missing"]) == ["landlock"]
    assert_held(found)


def test_too_few_layers_are_refused_unless_allowed():
    denied = ("unshare", "landlock_create_ruleset")
    refused = narrow("print(1)", denied=denied)["refused"]
    assert "gives no mount_namespace or landlock; untrusted code needs it" in refused
    assert "allow_unsandboxed" in refused
    allowed = narrow("print(1)", denied=denied, allow_unsandboxed=True)
    assert [one[1] for one in allowed["ends"]] == ["1\n"]
    assert allowed["left"] == []


def test_a_stdin_test_compares_lines_and_wants_a_good_end():
    tests = [StdinTest(stdin="2 3", expected="5\n"), StdinTest(stdin="2 4", expected="5")]
    found = within(lambda box: box.check(Program(source="a, b = map(int, input().split())\nprint(a + b, '\\n')"), tests))
    assert [one.outcome for one in found] == ["passed", "wrong"]
    found = within(lambda box: box.check(Program(source="print(5); raise SystemExit(1)"), tests[:1]))
    assert [one.outcome for one in found] == ["error"]
    found = within(
        lambda box: box.check(Program(source="print(5); import time; time.sleep(9)"), tests[:1]), limits=Limits(wall_s=0.3)
    )
    assert [one.outcome for one in found] == ["wall_time"]
