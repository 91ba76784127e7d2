"""Kernel calls that Python's os module has no name for."""

import ctypes
import os
import struct

from gym_bridge.resource_servers.code.launcher.syscalls import number

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47

CAP_SYS_ADMIN = 21

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MNT_DETACH = 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def syscall(name: str, *arguments: int | bytes | ctypes.Array | None) -> int:
    """The result of a system call by name; raises OSError with its name."""
    found = number(name)
    if found is None:
        raise OSError(f"{name}: no such system call on this machine")
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return _checked(_libc.syscall(ctypes.c_long(found), *words), name)


def prctl(option: int, *arguments: int | bytes | ctypes.Array) -> None:
    """One setting of this process; what is left out is 0. Raises OSError."""
    words = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(option, *words), f"prctl {option}")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for fresh ones. Raises OSError."""
    _checked(_libc.unshare(flags), f"unshare {flags:#x}")


def mount(source: str, target: str, *, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError."""
    words = source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    _checked(_libc.mount(*words), f"mount {target}")


def restrict_mount(path: str, attributes: int, *, recursive: bool = False) -> None:
    """Set MOUNT_ATTR_* on the mount at `path`, and on all below it. Raises OSError, on kernels before 5.12 too."""
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    syscall("mount_setattr", _AT_FDCWD, path.encode(), _AT_RECURSIVE if recursive else 0, wanted, len(wanted))


def change_root(path: str) -> None:
    """Make the mount at `path` the root, and let go of the old root, for good. Raises OSError."""
    os.chdir(path)
    syscall("pivot_root", b".", b".")  # the old root then lies on top of the new one, where the next line takes it off
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount old root")
    os.chdir("/")


def close_on_exec(first: int) -> None:
    """Let no descriptor from `first` on reach the next program. Raises OSError, on kernels before 5.11 too."""
    syscall("close_range", first, 0xFFFFFFFF, 4)


def has_capability(capability: int) -> bool:
    """Whether this process may do what `capability` stands for, in its user namespace."""
    data = ctypes.create_string_buffer(24)
    syscall("capget", struct.pack("Ii", _CAPABILITY_VERSION_3, 0), data)
    low, _, _, high, _, _ = struct.unpack("6I", data.raw)
    return bool((high << 32 | low) >> capability & 1)


def clear_capabilities() -> None:
    """Give up every capability of this process. Raises OSError."""
    syscall("capset", struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
