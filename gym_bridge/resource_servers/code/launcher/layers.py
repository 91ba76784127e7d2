"""The layers of the sandbox, and the record of those that hold."""

from collections.abc import Callable, Collection

LAYERS = {
    "uid": "the program runs as a user that owns nothing: files of root and of others stay closed to it",
    "privileges": "no capability, and none to be had: set-uid programs and file capabilities give it nothing (no_new_privs)",
    "user_namespace": "its process count is its own, and whatever it did as 'root' it would do to this run alone",
    "mount_namespace": "it sees the system's libraries, read-only, and one directory of its own in memory, gone with the run",
    "pid_namespace": "it sees and signals no process but its own, and all of them end with the first",
    "ipc_namespace": "no shared memory, semaphore or message queue of others",
    "uts_namespace": "the machine's name is neither seen nor changed",
    "network_namespace": "no network device, not even loopback, and no abstract unix socket of others",
    "rlimits": "bounds on CPU time, memory, processes, open files and the size of a file",
    "landlock": "a second fence around the same files, which holds where there is no mount namespace; no TCP, no foreign signals",
    "seccomp": "no system call that makes sockets, traces, mounts, loads, sets clocks or keys: what is not called has no bugs",
}
"""What each layer protects from, in the order in which they are put on."""

_ENOUGH = (
    ("uid",),
    ("privileges",),
    ("rlimits",),
    ("mount_namespace", "landlock"),
    ("network_namespace", "seccomp"),
    ("pid_namespace", "seccomp"),
)


def lacking(active: Collection[str]) -> list[str]:
    """What untrusted code must not run without: each item names layers of which one would do."""
    return [" or ".join(one) for one in _ENOUGH if not set(one) & set(active)]


class LayerError(Exception):
    """A layer that held at start-up does not hold now."""


class Fitting:
    """Puts layers on, one after the other.

    With `wanted`, those and no others, and the first that fails raises LayerError: a run has what start-up promised or does not
    take place. Without, every layer is tried, and `missing` says why those that failed did.
    """

    def __init__(self, wanted: Collection[str] | None):
        self._wanted = wanted
        self._failures: dict[str, str | None] = {}

    def put_on(self, name: str, apply: Callable[[], object]) -> bool:
        """Whether the layer is on now. Raises LayerError."""
        if self._wanted is not None and name not in self._wanted:
            return False
        try:
            apply()
        except OSError as error:
            if self._wanted is not None:
                raise LayerError(f"{name} held at start-up and fails now: {error}") from error
            self._failures[name] = str(error)
            return False
        self._failures[name] = None
        return True

    def missing(self) -> dict[str, str]:
        """The layers that are not on, and why."""
        found = {name: self._failures.get(name, "needs a layer that is missing") for name in LAYERS}
        return {name: reason for name, reason in found.items() if reason is not None}
