"""The inside of a run: its first process, and the child of that which becomes the program."""

import fcntl
import json
import os
import resource
import select
import signal
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from gym_bridge.resource_servers.code.launcher import file_tree, identity, kernel, landlock, seccomp
from gym_bridge.resource_servers.code.launcher.layers import Fitting
from gym_bridge.resource_servers.code.launcher.order import Order

_MIB = 1 << 20
_FIRST_FREE_FD = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """Descriptors of the run's side: the program's own four, a line of JSON for each piece of news, and the supervisor's life."""

    stdin: int
    stdout: int
    stderr: int
    result: int
    news: int
    alive: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An order, and where it takes place; `box` is the directory to use where there is no mount namespace."""

    order: Order
    channels: Channels
    fitting: Fitting
    uid: int
    box: str
    private_pids: bool
    num_foreign_threads: int
    """Threads that count against the limit of processes, and are not of this run."""


def live(run: Run) -> NoReturn:
    """Put on the layers, start the program, reap orphans until it ends, tell the supervisor, and end, with all that is left."""
    with LastWords(run.channels.news):
        box = _enter(run)
        if run.order.command:
            _write_files(run.order, box)
        program = os.fork()
        if program == 0:
            _become_program(run, box)
        _reap(run, program)
        os._exit(0)


class LastWords:
    """A block that this process does not leave alive; why it did so becomes news to the supervisor."""

    def __init__(self, news: int):
        self._news = news

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            _tell(self._news, error=f"{type(error).__name__}: {error}")
        os._exit(126)


def _tell(news: int, **message: object) -> None:
    os.write(news, json.dumps(message).encode() + b"\n")


def _enter(run: Run) -> str:
    """Namespaces, file tree and identity of the first process, and the directory that the run has for itself."""
    order, fitting = run.order, run.fitting
    uid = run.uid if order.layers is None or "uid" in order.layers else os.geteuid()
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # the file tree to come has none

    def show_files() -> None:
        file_tree.enter(order.readable, uid=uid, disk_mib=order.limits.disk_mib)

    box = file_tree.BOX if fitting.put_on("mount_namespace", show_files) else run.box
    fitting.put_on("network_namespace", lambda: kernel.unshare(kernel.CLONE_NEWNET))
    fitting.put_on("ipc_namespace", lambda: kernel.unshare(kernel.CLONE_NEWIPC))
    fitting.put_on("uts_namespace", lambda: _rename_machine())
    was_root = os.geteuid() == 0
    left_root = fitting.put_on("uid", lambda: identity.leave_root(uid))
    if was_root and left_root:
        fitting.put_on("user_namespace", lambda: identity.enter_user_namespace(proc))
    os.close(proc)
    fitting.put_on("privileges", identity.drop_privileges)
    _end_with_supervisor(run.channels.alive)
    return box


def _rename_machine() -> None:
    kernel.unshare(kernel.CLONE_NEWUTS)
    kernel.syscall("sethostname", b"sandbox", len("sandbox"))


def _end_with_supervisor(alive: int) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    watch = select.poll()
    watch.register(alive, 0)
    if watch.poll(0):  # it ended before the kernel was asked to say so
        os._exit(126)


def _write_files(order: Order, box: str) -> None:
    for name, content in order.files.items():
        place = os.open(f"{box}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
        with os.fdopen(place, "wb") as file:
            file.write(content)


def _reap(run: Run, program: int) -> None:
    own = run.channels
    for descriptor in (own.stdin, own.stdout, own.stderr, own.result):
        os.close(descriptor)
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == program:
            break
    with suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGKILL) if run.private_pids else os.killpg(program, signal.SIGKILL)
    _tell(own.news, status=status, cpu_s=usage.ru_utime + usage.ru_stime)
    if run.order.fetch and status == 0:
        _send_file(run, run.order.fetch)


def _send_file(run: Run, name: str) -> None:
    box = file_tree.BOX if run.order.layers is None or "mount_namespace" in run.order.layers else run.box
    try:
        place = os.open(f"{box}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # it did not make the file, or made a link of it
        return
    with os.fdopen(place, "rb") as file:
        about = os.fstat(place)
        if not stat.S_ISREG(about.st_mode):
            return
        _tell(run.channels.news, fetched=about.st_size)
        while part := file.read(_MIB):
            view = memoryview(part)
            while view:
                view = view[os.write(run.channels.news, view) :]


def _become_program(run: Run, box: str) -> NoReturn:
    order, own = run.order, run.channels
    with LastWords(own.news):
        os.setsid()
        news = _own_descriptors(own)
        with LastWords(news):
            fitting = run.fitting
            fitting.put_on("rlimits", lambda: _set_limits(order, run.num_foreign_threads))
            fitting.put_on("landlock", lambda: landlock.restrict_files(_allowed_files(order, box)))
            fitting.put_on("seccomp", lambda: seccomp.install(private_pids=run.private_pids))
            if not order.command:
                _tell(news, missing=fitting.missing())
                os._exit(0)
            os.chdir(box)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python's own exceptions to what a new process expects
                signal.signal(number, signal.SIG_DFL)
            os.execve(order.command[0], order.command, {"HOME": box, "TMPDIR": box, **order.environment})


def _own_descriptors(own: Channels) -> int:
    """0 to 3 become the program's; the rest closes on exec. The news' descriptor, where it lies now."""
    wanted = (own.stdin, own.stdout, own.stderr, own.result)
    moved = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD) for one in wanted]
    news = fcntl.fcntl(own.news, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number, inheritable=True)
    with suppress(OSError):  # a second time: Python opens all of them so
        kernel.close_on_exec(len(wanted))
    return news


def _allowed_files(order: Order, box: str) -> list[tuple[str, int]]:
    shown = [(path, landlock.READ) for path in order.readable]
    devices = [(path, landlock.DEVICE) for path in file_tree.DEVICES]
    return [*shown, *devices, (box, landlock.OWN)]


def _set_limits(order: Order, num_foreign_threads: int) -> None:
    limits = order.limits
    num_processes = limits.num_processes + num_foreign_threads
    memory = resource.RLIMIT_AS if order.bounds_address_space else resource.RLIMIT_DATA
    bounds: list[tuple[int, int, int]] = [
        (memory, limits.memory_mib * _MIB, limits.memory_mib * _MIB),
        (resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + 1),
        (resource.RLIMIT_NPROC, num_processes, num_processes),
        (resource.RLIMIT_NOFILE, limits.num_open_files, limits.num_open_files),
        (resource.RLIMIT_FSIZE, limits.file_mib * _MIB, limits.file_mib * _MIB),
        *((kind, 0, 0) for kind in (resource.RLIMIT_CORE, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_MEMLOCK)),
        *((kind, 0, 0) for kind in (resource.RLIMIT_NICE, resource.RLIMIT_RTPRIO)),
    ]
    for kind, soft, hard in bounds:
        ceiling = resource.getrlimit(kind)[1]
        hard = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
        resource.setrlimit(kind, (min(soft, hard), hard))
