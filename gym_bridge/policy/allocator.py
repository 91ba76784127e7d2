"""The memory allocator of the process."""

import ctypes
import logging
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h

log = logging.getLogger(__name__)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next allocation instead of handing it back to the kernel; no effect elsewhere.

    A step on a CPU frees and takes the same large buffers again; giving each back makes the kernel clear its pages anew.
    """
    mallopt = _of_glibc("mallopt")
    kept = mallopt is not None and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    log.debug("malloc keeps freed memory: %s", bool(kept))


def give_back_freed_memory() -> None:
    """Tell glibc to hand what is free now back to the kernel; no effect elsewhere. For once, as after loading a model."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> Any:
    """A function of glibc; None where there is none."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
