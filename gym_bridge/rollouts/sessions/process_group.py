"""Ends a group of processes. Run as a file, with the group's number: ends it once stdin closes, so once its starter is gone.

Its stdin is a pipe from whoever started the group, which the system closes with that process, however that one ended.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

SIGNALS = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""How the processes are asked to end, and the seconds that each way is given."""
POLL_S = 0.05


def end_group(group: int, signals: Sequence[tuple[int, float]] = SIGNALS, *, reap: Callable[[], object] = lambda: None) -> None:
    """End every process of the group: as Ctrl-C would, then with more force. `reap` waits for those that are our children.

    Without it, a child that has ended would count as alive.
    """
    try:
        for number, seconds in signals:
            if not _signal(group, number, reap):
                return
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and _signal(group, 0, reap):
                time.sleep(POLL_S)
    finally:
        _signal(group, signal.SIGKILL, reap)  # also when a second Ctrl-C cuts the waiting short


def _signal(group: int, number: int, reap: Callable[[], object]) -> bool:
    """Send a signal to all of the group; whether any of it is left."""
    reap()
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.stdin.read()
    end_group(int(sys.argv[1]))
