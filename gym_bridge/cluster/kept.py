"""Runs a command for as long as its own stdin stays open: python -m gym_bridge.cluster.kept COMMAND ...

So a command ends with whoever started it, by whatever end, and so do the processes that it has started.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code, 128 and the signal's number where a signal ended it. SIGTERM is handed on to it."""
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    threading.Thread(target=_end_with_stdin, args=(child.pid,), daemon=True).start()
    code = child.wait()
    _kill(child.pid)
    return shell_code(code)


def shell_code(code: int) -> int:
    """An exit code as shells tell it."""
    return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    """In the child: where this process is killed, so is the child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_stdin(group: int) -> None:
    while os.read(0, 1024):
        pass
    _kill(group)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
