"""The kernel's advisory locks of files (flock): gone when their process ends, however it ends. Readers need none."""

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

from gym_bridge.errors import ConfigError

LOCKS = Path("/proc/locks")

log = logging.getLogger(__name__)


def lock(descriptor: int, path: Path) -> None:
    """Lock an open file, which guards `path`, until it is closed; processes forked from this one share the lock.

    Raises ConfigError when somebody else holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _holder(os.fstat(descriptor))
        who = "this process" if pid == os.getpid() else f"process {pid}" if pid else "another process"
        raise ConfigError(f"{path} is being written by {who}; wait for its end, or choose another output") from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): nothing keeps a second process from writing it", path, error.strerror)


def _holder(info: os.stat_result) -> int | None:
    """Id of the process that holds a file's lock, None where the kernel does not tell."""
    place = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    with suppress(OSError, ValueError):
        for line in LOCKS.read_text().splitlines():
            fields = line.split()
            if fields[1:2] == ["FLOCK"] and fields[5:6] == [place]:
                return int(fields[4]) if int(fields[4]) > 0 else None
    return None
