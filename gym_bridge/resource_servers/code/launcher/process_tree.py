"""The processes of a run, as the machine's /proc shows them to the supervisor."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_LOOK_AGAIN_S = 0.005
_TIMES = slice(11, 15)  # utime, stime, cutime, cstime
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


def descendants(pid: int) -> list[int]:
    """The children of a process, their children and so on; what came or went meanwhile may be missing."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        with suppress(*_GONE):
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                with suppress(*_GONE):
                    waiting += [int(child) for child in (task / "children").read_text().split()]
        found += [one for one in waiting if one not in found]
    return found


def usage(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of a process and its descendants.

    CPU includes that of children which somebody waited for. Memory is anonymous and shared pages, counted once a process.
    """
    ticks, kib = 0, 0
    for one in (pid, *descendants(pid)):
        with suppress(*_GONE):
            after_name = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, after_name[_TIMES]))
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    kib += int(line.split()[1])
    return ticks / os.sysconf("SC_CLK_TCK"), kib * 1024


def num_threads_of_user() -> int:
    """Threads of everything that runs under this user, as RLIMIT_NPROC counts them where there is no user namespace."""
    num, user = 0, os.geteuid()
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(*_GONE):
            fields = {name: value for name, _, value in (line.partition(":") for line in status.read_text().splitlines())}
            if int(fields["Uid"].split()[1]) == user:
                num += int(fields["Threads"])
    return num


def kill_descendants() -> None:
    """Kill every process below this one, its orphans too, until none is left. For a subreaper, where no pid namespace does it."""
    while True:
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_LOOK_AGAIN_S)
