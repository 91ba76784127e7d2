"""A seccomp filter: which system calls the program may not make.

The filter is a list of denials, closed at its open end: calls newer than those that were looked through do not exist for it.
What it denies fails with EPERM, so that a program sees an error and not a dead process. Other instruction sets of the same
processor (32-bit x86, x32) would number the calls differently; using them kills.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from gym_bridge.resource_servers.code.launcher import kernel
from gym_bridge.resource_servers.code.launcher.syscalls import machine, number

DENIED = (
    # mounts, roots and namespaces: the ways out of the file tree
    *("mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "open_tree", "move_mount", "fsopen", "fsconfig"),
    *("fsmount", "fspick", "mount_setattr", "swapon", "swapoff", "quotactl", "quotactl_fd", "name_to_handle_at"),
    *("open_by_handle_at", "fanotify_init", "mknod", "mknodat"),
    # other processes: their memory, descriptors and events
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp", "perf_event_open"),
    *("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "migrate_pages", "move_pages", "lookup_dcookie"),
    # the kernel: code, clocks, logs, keys, and interfaces with a history of holes
    *("bpf", "init_module", "finit_module", "delete_module", "create_module", "query_module", "get_kernel_syms", "kexec_load"),
    *("kexec_file_load", "reboot", "syslog", "acct", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "iopl"),
    *("ioperm", "modify_ldt", "userfaultfd", "vmsplice", "vhangup", "uselib", "ustat", "sysfs", "_sysctl", "nfsservctl"),
    *("personality", "add_key", "request_key", "keyctl", "sethostname", "setdomainname"),
    # identity
    *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset"),
    # sockets; a pair that is connected to itself stays
    *("socket", "bind", "connect", "listen", "accept", "accept4"),
    # memory that no process's limit counts
    *("memfd_create", "memfd_secret", "shmget", "semget", "msgget", "mq_open"),
)
ABSENT = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register")
"""Calls that fail as on an older kernel: their arguments lie in memory, where no filter can look, and libc falls back."""
FOREIGN_PROCESSES = (
    *("kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "setpriority", "ioprio_set", "sched_setaffinity"),
    *("sched_setattr", "sched_setparam", "sched_setscheduler"),
)
"""Denied where the program shares its process ids with the rest of the machine."""

_NEWEST_KNOWN = 452
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_NEW_NAMESPACES = 0x7E020080
_DENIED_IOCTLS = (0x5412, 0x541C, 0x8901, 0x8902)
"""TIOCSTI and TIOCLINUX type into a terminal; FIOSETOWN and SIOCSPGRP have the kernel send signals in the program's name."""
_DENIED_FCNTLS = (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: the same signals."""
_AF_UNIX = 1

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_SECCOMP_MODE_FILTER = 2


def _fail(code: int) -> tuple[int, int, int, int]:
    return _RETURN, 0, 0, 0x00050000 | code


_Instruction = tuple[int, int, int, int]
_DENY = _fail(errno.EPERM)
_PASS: _Instruction = (_RETURN, 0, 0, _ALLOW)


def _on_argument(name: str, argument: int, tests: Iterable[_Instruction]) -> list[_Instruction]:
    """Run `tests` on the low half of an argument of one call; they end in a verdict."""
    body = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument), *tests]
    found = number(name)
    return [] if found is None else [(_JUMP_EQUAL, 0, len(body), found), *body]


def _only(value: int) -> list[_Instruction]:
    return [(_JUMP_EQUAL, 1, 0, value), _DENY, _PASS]


def _none_of(values: Iterable[int]) -> list[_Instruction]:
    return [*(one for value in values for one in ((_JUMP_EQUAL, 0, 1, value), _DENY)), _PASS]


def instructions(denied: Iterable[str], *, private_pids: bool) -> list[_Instruction]:
    """The filter as (code, jump if true, jump if false, constant); `private_pids`: there is a pid namespace."""
    program: list[_Instruction] = [
        *((_LOAD, 0, 0, _ARCH_AT), (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine()]), (_RETURN, 0, 0, _KILL)),
        (_LOAD, 0, 0, _NUMBER_AT),
        *((_JUMP_GREATER, 0, 1, _X32 - 1), (_RETURN, 0, 0, _KILL)),
        *((_JUMP_GREATER, 0, 1, _NEWEST_KNOWN), _fail(errno.ENOSYS)),
    ]
    verdicts = [(name, _DENY) for name in denied] + [(name, _fail(errno.ENOSYS)) for name in ABSENT]
    verdicts += [] if private_pids else [(name, _DENY) for name in FOREIGN_PROCESSES]
    for name, verdict in verdicts:
        found = number(name)
        if found is not None:
            program += [(_JUMP_EQUAL, 0, 1, found), verdict]
    program += _on_argument("clone", 0, [(_JUMP_ANY_BIT, 0, 1, _NEW_NAMESPACES), _DENY, _PASS])
    program += _on_argument("socketpair", 0, _only(_AF_UNIX))
    program += _on_argument("prlimit64", 0, _only(0))
    program += _on_argument("ioctl", 1, _none_of(_DENIED_IOCTLS))
    program += _on_argument("fcntl", 1, _none_of(_DENIED_FCNTLS))
    if not private_pids:
        program += _on_argument("tgkill", 0, _only(os.getpid()))  # how abort() and raise() reach the process itself
    return [*program, _PASS]


def install(denied: Iterable[str] = DENIED, *, private_pids: bool = True) -> None:
    """Bind this process, and all that it starts, to the filter, for good. Needs no_new_privs or root. Raises OSError."""
    program = instructions(denied, private_pids=private_pids)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    kernel.prctl(kernel.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header)
