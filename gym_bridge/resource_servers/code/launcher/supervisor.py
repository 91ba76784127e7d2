"""One run, watched from outside: its clock, its memory, its output, its end. Nothing of it outlives the supervisor."""

import json
import os
import select
import signal
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gym_bridge.resource_servers.code.launcher import identity, kernel, process_tree
from gym_bridge.resource_servers.code.launcher.candidate import Channels, LastWords, Run, live
from gym_bridge.resource_servers.code.launcher.directory import exceeds, remove_tree
from gym_bridge.resource_servers.code.launcher.file_tree import FILES_PER_MIB
from gym_bridge.resource_servers.code.launcher.layers import Fitting, LayerError
from gym_bridge.resource_servers.code.launcher.order import EndedBy, Order, Report

_LOOK_S = 0.05
_PART = 1 << 16
_MIB = 1 << 20


class Supervisor:
    """Takes one order and gives one report. For a process of its own: it changes its namespaces and reaps every child."""

    def __init__(self, order: Order, *, connection: socket.socket, run: int):
        self._order = order
        self._connection = connection
        self._uid = identity.uid_of_run(run)
        self._received = {name: bytearray() for name in ("stdout", "stderr", "result", "news")}
        self._readers: dict[int, str] = {}
        self._ended_by: EndedBy | None = None
        self._unfed = memoryview(order.stdin)
        self._cpu_s = 0.0
        self._caller_left = False
        self._private_pids = False
        self._num_foreign_threads = 0

    def report(self) -> Report | None:
        """How the run went; None when the caller closed its connection, upon which the run is killed."""
        self._box = self._make_directory()
        try:
            started = time.monotonic()
            error = self._start()
            if error is None:
                self._watch(deadline=started + self._order.limits.wall_s)
                self._end()
            return None if self._caller_left else self._summary(error, wall_s=time.monotonic() - started)
        finally:
            if self._box is not None:
                remove_tree(Path(self._box))

    def _make_directory(self) -> str | None:
        if self._order.layers is not None and "mount_namespace" in self._order.layers:
            return None
        box = tempfile.mkdtemp(prefix="gym-bridge-sandbox-")
        if os.geteuid() == 0 and (self._order.layers is None or "uid" in self._order.layers):
            os.chown(box, self._uid, self._uid)
        return box

    def _start(self) -> str | None:
        """Fork the first process of the run; what went wrong before, if anything."""
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        fitting = Fitting(self._order.layers)
        try:
            self._enter(fitting)
        except LayerError as error:
            return str(error)
        theirs, ours = _pipes(("stdout", "stderr", "result", "news"))
        stdin, self._stdin = os.pipe()
        alive, self._alive = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._connection.close()
            for descriptor in (*ours.values(), self._stdin, self._alive):
                os.close(descriptor)
            channels = Channels(stdin=stdin, alive=alive, **theirs)
            with LastWords(channels.news):
                live(self._run(channels, fitting))
        for descriptor in (*theirs.values(), stdin, alive):
            os.close(descriptor)
        self._readers = {descriptor: name for name, descriptor in ours.items()}
        return None

    def _run(self, channels: Channels, fitting: Fitting) -> Run:
        return Run(
            order=self._order,
            channels=channels,
            fitting=fitting,
            uid=self._uid,
            box=self._box or "",
            private_pids=self._private_pids,
            num_foreign_threads=self._num_foreign_threads,
        )

    def _enter(self, fitting: Fitting) -> None:
        if os.geteuid() == 0 and not kernel.has_capability(kernel.CAP_SYS_ADMIN):  # then namespaces are had as anybody else's
            fitting.put_on("uid", lambda: identity.leave_root(self._uid))
        if os.geteuid() != 0:
            proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if not fitting.put_on("user_namespace", lambda: identity.enter_user_namespace(proc)):
                self._num_foreign_threads = process_tree.num_threads_of_user()
            os.close(proc)
        self._private_pids = fitting.put_on("pid_namespace", lambda: kernel.unshare(kernel.CLONE_NEWPID))

    def _watch(self, *, deadline: float) -> None:
        """Move bytes until the first process of the run has ended, or the run has to."""
        ended = os.pidfd_open(self._pid)
        watch = select.poll()
        for descriptor in (ended, self._connection.fileno(), *self._readers):
            watch.register(descriptor, select.POLLIN)
        watch.register(self._stdin, select.POLLOUT)
        for descriptor in (self._stdin, *self._readers):
            os.set_blocking(descriptor, False)
        look_at = time.monotonic() + _LOOK_S
        while self._ended_by is None and not self._caller_left:
            wait_s = max(0.0, min(deadline, look_at) - time.monotonic())
            ready = [descriptor for descriptor, _ in watch.poll(wait_s * 1000 + 1)]
            if ended in ready:
                return
            for descriptor in ready:
                if not self._move(descriptor):
                    watch.unregister(descriptor)
            if time.monotonic() >= deadline:
                self._ended_by = self._ended_by or "wall_time"
            elif time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_S
                self._look()

    def _look(self) -> None:
        """Hold what all processes together use against the limits that the kernel knows for one process only.

        A cgroup would do so without looking; few users may make one.
        """
        self._cpu_s, resident = process_tree.usage(self._pid)
        if resident > self._order.limits.memory_mib * _MIB:
            self._ended_by = self._ended_by or "memory"
        elif self._cpu_s > self._order.limits.cpu_s:
            self._ended_by = self._ended_by or "cpu_time"
        elif self._box is not None and self._fills(self._box):
            self._ended_by = self._ended_by or "disk"

    def _fills(self, box: str) -> bool:
        mib = self._order.limits.disk_mib
        return exceeds(Path(box), num_bytes=mib * _MIB, num_files=mib * FILES_PER_MIB)

    def _move(self, descriptor: int) -> bool:
        """Whether there is more to come for this descriptor."""
        if descriptor == self._connection.fileno():  # the caller has nothing more to say but that it leaves
            self._caller_left = True
            return False
        return self._feed() if descriptor == self._stdin else self._read(descriptor)

    def _feed(self) -> bool:
        """Write what fits of the rest of stdin; False when that was the end of it, or nobody reads."""
        try:
            written = os.write(self._stdin, self._unfed[:_PART]) if self._unfed else 0
        except BlockingIOError:
            return True
        except BrokenPipeError:
            written = len(self._unfed)
        self._unfed = self._unfed[written:]
        if not self._unfed:
            os.close(self._stdin)
        return bool(self._unfed)

    def _read(self, descriptor: int) -> bool:
        """Take what is there; False where that is nothing: the end, for one that was announced."""
        name = self._readers[descriptor]
        kept = self._received[name]
        try:
            part = os.read(descriptor, _PART)
        except BlockingIOError:
            return False
        room = self._order.limits.output_kib * 1024 - len(kept)
        if name == "news":
            room = len(part)
        elif len(part) > room:
            self._ended_by = self._ended_by or "output"
        kept += part[:room]
        return bool(part)

    def _end(self) -> None:
        """Kill what is left, and read what it had written."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)  # with a pid namespace this returns when all of it is gone
        process_tree.kill_descendants()
        for descriptor in self._readers:
            while self._read(descriptor):
                pass

    def _summary(self, error: str | None, *, wall_s: float) -> Report:
        news, fetched = self._news()
        error = error or news.get("error")
        cpu_s = news.get("cpu_s", self._cpu_s)
        status = news.get("status", signal.SIGKILL)
        if error is None and self._ended_by is None and "status" not in news:
            error = "the first process of the run was killed from outside"
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        out_of_cpu = number == signal.SIGXCPU or (number == signal.SIGKILL and cpu_s >= self._order.limits.cpu_s)
        how: EndedBy = "cpu_time" if out_of_cpu else "exit" if number is None else "signal"
        return Report(
            error=error,
            missing=news.get("missing", {}),
            ended_by=self._ended_by or how,
            exit_code=os.WEXITSTATUS(status) if number is None else None,
            signal=number,
            cpu_s=round(cpu_s, 4),
            wall_s=round(wall_s, 4),
            stdout=bytes(self._received["stdout"]),
            stderr=bytes(self._received["stderr"]),
            result=bytes(self._received["result"]),
            fetched=fetched,
        )

    def _news(self) -> tuple[dict[str, Any], bytes | None]:
        """What the run's own processes told: lines of JSON, and after `fetched` that many bytes."""
        rest = bytes(self._received["news"])
        news: dict[str, Any] = {}
        while rest:
            line, _, rest = rest.partition(b"\n")
            news |= json.loads(line)
            if "fetched" in news:
                whole = len(rest) == news["fetched"]
                return news, rest if whole else None
        return news, None


def _pipes(names: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Write ends and read ends by name."""
    pairs = {name: os.pipe() for name in names}
    return {name: pair[1] for name, pair in pairs.items()}, {name: pair[0] for name, pair in pairs.items()}
