"""The sandbox: runs programs that a model wrote, on this machine, without trusting them with anything."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gym_bridge.errors import ConfigError, GymBridgeError
from gym_bridge.resource_servers.code.languages import Language, language
from gym_bridge.resource_servers.code.launcher.layers import LAYERS, lacking
from gym_bridge.resource_servers.code.launcher.order import Order, Report, pack_order, unpack_report
from gym_bridge.resource_servers.code.limits import Limits
from gym_bridge.resource_servers.code.program import Build, Finished, Program
from gym_bridge.resource_servers.code.unit_tests import CallTest, Test, TestResult

LOG = logging.getLogger(__name__)
COMPILE_LIMITS = Limits(cpu_s=10, wall_s=30.0, memory_mib=1024, output_kib=64)

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
_BOOT = """import sys; sys.path.append(sys.argv[1])
from gym_bridge.resource_servers.code.launcher.zygote import main; main(int(sys.argv[2]))"""
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
_GRACE_S = 15.0


class SandboxError(GymBridgeError, RuntimeError):
    """The sandbox itself failed: a program did not run for a reason that is not its own."""

    exit_code = 1


class Sandbox:
    """Runs untrusted programs, each in processes, directory and namespaces of its own.

        async with Sandbox() as sandbox:
            finished = await sandbox.run(Program(source="print(input())"), stdin=b"hello")

    Entering starts the launcher, tries every layer of launcher/layers.py, logs which are on, and runs one empty program. A run then
    has all of those or does not take place. It raises ConfigError where too few hold for untrusted code, unless
    `allow_unsandboxed`. One event loop at a time; at most `concurrency` runs, by default the number of processors, at once.
    """

    def __init__(self, *, limits: Limits | None = None, concurrency: int | None = None, allow_unsandboxed: bool = False):
        self.limits = limits or Limits()
        self._concurrency = concurrency or len(os.sched_getaffinity(0))
        self._allow_unsandboxed = allow_unsandboxed
        self._active: tuple[str, ...] = ()
        self._missing: dict[str, str] = {}

    async def __aenter__(self) -> "Sandbox":
        if sys.platform != "linux":
            raise ConfigError(f"code sandbox: it is built from what Linux offers; found {sys.platform}")
        self._free = asyncio.Semaphore(self._concurrency)
        self._start_launcher()
        try:
            await self._try_layers()
            await self._try_python()
        except BaseException:
            self._stop_launcher()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop_launcher()

    def layers(self) -> tuple[str, ...]:
        """Names of the layers that every run has, in the order in which they are put on."""
        return self._active

    def missing_layers(self) -> dict[str, str]:
        """Names of the layers that this machine does not give, and why."""
        return dict(self._missing)

    async def build(self, program: Program) -> Build:
        """Check the source's syntax, in the sandbox; compile it where its language has a compiler. Raises SandboxError."""
        kind = language(program.language)
        order = self._order(kind, kind.check, {kind.source: program.source.encode(errors="surrogatepass")})
        report = await self._report(replace(order, limits=COMPILE_LIMITS, fetch=kind.product, bounds_address_space=True))
        return Build(finished=Finished.of(report), product=report.fetched)

    async def run(
        self, program: Program, stdin: bytes = b"", *, build: Build | None = None, call: bool = False, limits: Limits | None = None
    ) -> Finished:
        """Run a program to its end, or to a limit's.

        A program that has to be compiled is, unless `build` brings it. With `call`, stdin holds a call for the driver of its
        language. Raises SandboxError when it could not be run, ConfigError for an unknown language.
        """
        kind = language(program.language)
        files = {kind.source: program.source.encode(errors="surrogatepass")}
        if kind.product is not None:
            build = build or await self.build(program)
            if build.product is None:
                return replace(build.finished, ended_by="compile")
            files = {kind.product: build.product}
        if call:
            if not kind.call:
                raise ConfigError(f"language {kind.name!r} runs programs on stdin only; expected a test of that kind, found a call")
            files |= kind.driver_files()
        order = self._order(kind, kind.call if call else kind.run, files)
        return Finished.of(await self._report(replace(order, stdin=stdin, limits=limits or self.limits)))

    async def check(self, program: Program, tests: Sequence[Test]) -> list[TestResult]:
        """Run a program against tests, each in a fresh run that knows its own input and no other test's; in the tests' order.

        A program that has to be compiled is, once. Raises SandboxError when it could not be run, ConfigError for a call in a
        language that has none.
        """
        build = None
        if tests and language(program.language).product is not None:
            build = await self.build(program)
            if build.product is None:
                return [TestResult(outcome="compile", finished=build.finished) for _ in tests]
        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(self._check(program, test, build)) for test in tests]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [one.result() for one in running]

    async def _check(self, program: Program, test: Test, build: Build | None) -> TestResult:
        finished = await self.run(program, test.input(), build=build, call=isinstance(test, CallTest))
        return test.judge(finished)

    def _order(self, kind: Language, command: tuple[str, ...], files: dict[str, bytes]) -> Order:
        return Order(
            command=command,
            readable=kind.paths,
            limits=self.limits,
            layers=self._active,
            environment=_ENVIRONMENT,
            files=files,
            bounds_address_space=kind.bounds_address_space,
        )

    async def _try_layers(self) -> None:
        readable = language("python").paths
        report = await self._report(Order(command=(), readable=readable, limits=self.limits, layers=None))
        self._missing = report.missing
        self._active = tuple(name for name in LAYERS if name not in report.missing)
        absent = "; ".join(f"{name} ({reason})" for name, reason in self._missing.items()) or "none"
        level = logging.WARNING if self._missing else logging.INFO
        LOG.log(level, "code sandbox: active layers: %s; missing: %s", ", ".join(self._active) or "none", absent)
        needed = lacking(self._active)
        if needed and not self._allow_unsandboxed:
            raise ConfigError(
                f"code sandbox: this machine gives no {', no '.join(needed)}; untrusted code needs it. Missing: {absent}. "
                "Run where user namespaces, seccomp or Landlock are allowed, or pass allow_unsandboxed for code that you trust"
            )
        if needed:
            LOG.warning("code sandbox: running without %s, as allowed", ", ".join(needed))

    async def _try_python(self) -> None:
        finished = await self.run(Program(source="print('ready')"), limits=Limits())
        if finished.stdout != b"ready\n":
            raise SandboxError(f"code sandbox: an empty Python program does not run in it: {finished}")

    def _start_launcher(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # no environment: nothing of the caller's secrets gets nearer to a program than this process
            self._launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, _PACKAGE_ROOT, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={},
                cwd="/",
                start_new_session=True,
            )

    def _stop_launcher(self) -> None:
        self._control.close()
        self._launcher.wait()

    async def _report(self, order: Order) -> Report:
        async with self._free:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(self._control, [b"."], [theirs.fileno()])
                except OSError as error:
                    ours.close()
                    raise SandboxError(f"code sandbox: the launcher is gone ({error}); enter the sandbox again") from error
            report = await _exchange(order, ours)
        if report.error is not None:
            raise SandboxError(f"code sandbox: {' '.join(order.command) or 'trying the layers'} did not run: {report.error}")
        return report


async def _exchange(order: Order, connection: socket.socket) -> Report:
    """Send an order, await the report. Closing the connection, as cancellation does, kills the run."""
    try:
        reader, writer = await asyncio.open_connection(sock=connection)
    except BaseException:
        connection.close()
        raise
    try:
        async with asyncio.timeout(order.limits.wall_s + _GRACE_S):
            writer.write(pack_order(order))
            data = await reader.read()
    except TimeoutError:
        raise SandboxError(f"code sandbox: no report {_GRACE_S:g} s after the run's wall time was over") from None
    except ConnectionError as error:
        raise SandboxError(f"code sandbox: the supervisor broke off: {error}") from error
    finally:
        writer.close()
    if not data:
        raise SandboxError("code sandbox: the supervisor ended without a report; its stderr says why")
    return unpack_report(data)
