"""The memory allocator of the process."""

import ctypes
import logging

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h

log = logging.getLogger(__name__)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next allocation instead of handing it back to the kernel; no effect elsewhere.

    A step on a CPU frees and takes the same large buffers again; giving each back makes the kernel clear its pages anew.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    kept = mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    log.debug("malloc keeps freed memory: %s", bool(kept))
