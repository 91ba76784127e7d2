"""Landlock: rules on files, TCP and signals that a process lays on itself and can never lift."""

import os
import stat
import struct
from collections.abc import Iterable

from gym_bridge.resource_servers.code.launcher import kernel

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FILE_RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP_RIGHTS = 0b11
_SCOPES = 0b11

READ = _EXECUTE | _READ_FILE | _READ_DIR
DEVICE = _READ_FILE | _WRITE_FILE
OWN = ((1 << 15) - 1) & ~(_MAKE_CHAR | _MAKE_SOCK | _MAKE_BLOCK)
_ON_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


def restrict_files(allowed: Iterable[tuple[str, int]]) -> None:
    """Close every file to this process and all that it starts, but for `allowed` paths and what lies below them.

    Since version 4 of Landlock it also closes TCP, since version 6 it keeps signals and abstract unix sockets to the program's own
    processes. Paths that do not exist, or that its user cannot reach, are left out. Needs no_new_privs. Raises OSError, on kernels
    before 5.13 too.
    """
    version = kernel.syscall("landlock_create_ruleset", None, 0, 1)
    files = _FILE_RIGHTS_BY_VERSION[min(version, 5)]
    rights = [files] + [_TCP_RIGHTS] * (version >= 4) + [_SCOPES] * (version >= 6)
    handled = struct.pack(f"{len(rights)}Q", *rights)
    ruleset = kernel.syscall("landlock_create_ruleset", handled, len(handled), 0)
    try:
        for path, access in allowed:
            _allow(ruleset, path, access & files)
        kernel.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # what it cannot reach as it is, no rule would open
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= _ON_A_FILE
        kernel.syscall("landlock_add_rule", ruleset, 1, struct.pack("=Qi", access, place), 0)
    finally:
        os.close(place)
