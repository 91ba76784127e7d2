"""Who the program is: an unprivileged user, in a user namespace of its own, without capabilities."""

import os
from contextlib import suppress

from gym_bridge.resource_servers.code.launcher import kernel

_FIRST_UID = 64_000
_NUM_UIDS = 1_000
_MOST_CAPABILITIES = 64


def uid_of_run(run: int) -> int:
    """A user id that no account has, one a run, so that runs side by side are strangers even without namespaces."""
    return _FIRST_UID + run % _NUM_UIDS


def leave_root(uid: int) -> None:
    """Become `uid` in all three ids, without supplementary groups. Raises OSError, also when there is a way back."""
    if os.geteuid() != 0:
        return
    _forbid_capabilities()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    try:
        os.setuid(0)
    except OSError:
        return
    raise OSError("uid 0 can be had back")


def enter_user_namespace(proc: int) -> None:
    """A user namespace in which this user is itself and nobody else exists; `proc`: a descriptor of /proc. Raises OSError.

    The process has every capability inside, over what belongs to the namespace, until it drops them.
    """
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # who left uid 0 cannot write its own maps otherwise
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        place = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(place, text.encode())
        finally:
            os.close(place)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def drop_privileges() -> None:
    """Give up every capability, now and for whatever is executed later. Raises OSError."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_CAP_AMBIENT, 4)
    _forbid_capabilities()
    kernel.clear_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def _forbid_capabilities() -> None:
    """Empty the set from which programs executed later could get some; who may not do that has none to lose."""
    with suppress(OSError):  # past the last one, too
        for capability in range(_MOST_CAPABILITIES):
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
