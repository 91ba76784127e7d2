"""Commands of gym-bridge in processes of their own, shown as a user would type them."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gym_bridge.errors import ConfigError, PolicyError

GRACE_S = 10.0
"""How long an interrupted command may take to save before it is told once more."""
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended."""

    code: int
    seconds: float
    memory_gib: float
    """Most memory that it, or one of the processes that it waited for, held at once."""


def run_command(argv: Sequence[str], say: Callable[[str], None], *, processes: int = 1, to_stderr: bool = False) -> Ended:
    """Run `gym-bridge ARGV`; where this process is ended, the command is too, once it has saved.

    `processes`: of a training, started by torchrun. `to_stderr`: what it prints goes there. Raises KeyboardInterrupt for a command
    that was interrupted.
    """
    say(f"\n$ {shown(argv, processes=processes)}")
    started = time.monotonic()
    child = subprocess.Popen(_command(argv, processes), stdout=sys.stderr if to_stderr else None)
    try:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    except BaseException as error:
        _end(child, has_heard=isinstance(error, KeyboardInterrupt))
        raise
    if child.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    return Ended(code=child.returncode, seconds=time.monotonic() - started, memory_gib=used.ru_maxrss / 2**20)


def check_ended(ended: Ended, command: str, *, again: str) -> None:
    """Raises ConfigError for a command that met a user's mistake, PolicyError for one that failed otherwise; `again` goes on."""
    if ended.code < 0:
        killed = f"`{command}` was ended by signal {-ended.code} ({signal.strsignal(-ended.code)})"
        memory = ", as the kernel does where memory runs out" if -ended.code == signal.SIGKILL else ""
        raise PolicyError(f"{killed}{memory}; {again} goes on from there")
    if ended.code:
        kind = ConfigError if ended.code == ConfigError.exit_code else PolicyError
        raise kind(f"`{command}` ended with exit code {ended.code}, as told above; {again} goes on from there")


def shown(argv: Sequence[str], *, processes: int = 1) -> str:
    """The line that a user would type."""
    if processes == 1:
        return shlex.join(["gym-bridge", *argv])
    return shlex.join(["torchrun", "--standalone", "--nproc-per-node", str(processes), "-m", "gym_bridge", *argv])


def _command(argv: Sequence[str], processes: int) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *([] if processes == 1 else torchrun), "-m", "gym_bridge", *argv]


def _end(child: subprocess.Popen, *, has_heard: bool) -> None:
    """Let the command save what it has. `has_heard`: a Ctrl-C at the terminal has reached it already, another signal has not."""
    if has_heard:
        try:
            child.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            has_heard = False
    if not has_heard:
        child.terminate()
        child.wait()
