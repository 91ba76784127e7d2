"""Brings the trainer's weights to vLLM servers, and knows which of them run which.

After each delivery the server's engine is told a name for what it runs, made of this process's token and the version. It keeps
the name in its memory and reports it with each completion: a server that was started again, that missed an update, or that
somebody else wrote to has another one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from secrets import token_hex

from torch import Tensor

from gym_bridge.errors import ConfigError, PolicyError, ServerError
from gym_bridge.policy.samplers.vllm_control import BETWEEN_TRIES_S, ReplicaControl, ReplicaError
from gym_bridge.policy.samplers.vllm_transfer import Transfer

log = logging.getLogger(__name__)

MAX_AT_ONCE = 32
"""Servers that are told something at once."""
TRIES_OF_AN_ERROR = 3
"""How many times in a row all servers may answer with an error; one whose engine has just died does so before it is gone."""


@dataclass(slots=True)
class _Replica:
    control: ReplicaControl
    runs: str | None = None
    """The name of its weights; None: unknown, or not to be sampled from."""
    known: bool = False
    """Whether all that it runs came from this process."""
    asleep: bool = False
    late: bool = False
    """It was listed after the first push."""
    error: str = ""
    timings_s: dict[str, float] = field(default_factory=dict)


class VLLMWeights:
    """Pushes weights to servers, each of which pauses, takes them, forgets its caches and goes on.

    All methods may be called from any thread. A server that cannot be reached is left out while another works, and is brought
    up to date when it is back: by the next push or `ensure`, or by `restore` as soon as it is to be sampled from.
    """

    def __init__(
        self,
        controls: Callable[[], Mapping[int, ReplicaControl]],
        transfer: Transfer,
        *,
        in_flight: bool,
        sleeps: bool = False,
        patience_s: float = 600.0,
    ):
        """`controls`: the servers that are there now, by their numbers. `in_flight`: weights change under completions that are
        under way, which are frozen meanwhile and then computed anew; else they are waited for. `patience_s`: how long a push waits
        while no server can be reached."""
        self._controls = controls
        self._replicas: dict[int, _Replica] = {}
        self._transfer, self._in_flight, self._sleeps, self._patience_s = transfer, in_flight, sleeps, patience_s
        self._token = token_hex(4)
        self._version, self._num_pushes = -1, 0
        self._coming, self._label = -1, ""  # what the servers are brought to, and its name
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._workers = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="vllm-weights")
        self.timings_s: dict[str, float] = {}
        """Seconds of the last push: write_s, then pause_s, load_s and reset_s of the server that took longest for each."""

    @property
    def version(self) -> int:
        """The version that was pushed last; -1 before the first push."""
        return self._version

    @property
    def adapter(self) -> str | None:
        """The adapter to be named in a request; None: the model itself."""
        return self._transfer.adapter

    def version_of(self, label: str) -> int | None:
        """The version that a server's name for its weights stands for; None for weights that are not of this process."""
        token, *rest = label.split(":")
        return int(rest[-1]) if token == self._token else None

    def runs(self, replica: int) -> bool:
        """Whether a server was brought to the last version that it could take, and was not found to run anything else since."""
        one = self._replicas.get(replica)
        return one is not None and one.runs is not None

    def lost(self, replica: int) -> None:
        """Told that a server runs something else."""
        if (one := self._replicas.get(replica)) is not None:
            one.runs, one.known = None, False

    def push(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Bring weights to the servers; from then on every new completion carries `version`.

        Raises PolicyError when they cannot be laid out, or when no server takes them, ConfigError for servers that were started
        without the routes for it; such a server that joined since the first push is left out instead.
        """
        with self._lock:
            started = time.perf_counter()
            self._transfer.lay_out(weights, version)
            self.timings_s = {"write_s": time.perf_counter() - started}
            self._num_pushes += 1
            self._coming, self._label = version, f"{self._token}:{self._num_pushes}:{version}"
            for replica in self._replicas.values():
                replica.timings_s = {}
            self._bring()
            self._version = version  # now: until a server pauses, completions of the version before are welcome
            self._transfer.settle()
            for name in ("pause_s", "load_s", "reset_s"):
                self.timings_s[name] = max(one.timings_s.get(name, 0.0) for one in self._replicas.values())

    def ensure(self, version: int) -> None:
        """Before the trainer updates `version`: ask each server what it runs, and bring what was pushed last to those that run
        anything else. Servers that are to sleep are put to sleep instead, until the next push.

        Raises PolicyError when no server has the weights in the end, and for a `version` that is older than those pushed.
        """
        if version < self._version:
            raise PolicyError(f"the weights of version {version} are to be updated, and vLLM has {self._version} already")
        with self._lock:
            if self._sleeps:
                self._sleep()
            else:
                self._bring()

    def restore(self, replica: int) -> None:
        """Bring the version to one server. Raises ReplicaError where that cannot be done, or not by this thread."""
        with self._lock:
            if self.runs(replica):
                return
            self._listed()
            one = self._replicas.get(replica)
            if one is None:
                raise ReplicaError("it is no longer one of the servers", url=f"server {replica}")
            if not self._label:
                raise ReplicaError("no weights were pushed to it yet", url=one.control.url)
            with _late_ones_are_left_out(one):
                if self._holds(one):
                    one.runs = self._label
                elif self._transfer.from_any_thread:
                    self._update(one)
                else:
                    raise ReplicaError("it lost its weights; they are pushed to it again before the next step", url=one.control.url)

    def close(self) -> None:
        """Release connections and remove what was laid out; the servers keep what they run."""
        self._closed.set()
        with self._lock:
            self._workers.shutdown()
            self._transfer.close()

    def _listed(self) -> list[_Replica]:
        """The servers that are there now."""
        controls = self._controls()
        for number, control in controls.items():
            if number not in self._replicas:
                self._replicas[number] = _Replica(control, late=self._version >= 0)
        return [self._replicas[number] for number in controls]

    def _sleep(self) -> None:
        """Free the servers' GPUs."""
        for replica in self._listed():
            if replica.asleep:
                continue
            replica.runs = None
            try:
                replica.control.sleep(self._transfer.sleep_level)
            except ReplicaError as error:
                log.warning("a replica does not sleep: %s", error)
            else:
                replica.asleep = True

    def _bring(self) -> None:
        """Bring the version to all servers that do not run it; waits while there is none, and is content with one."""
        deadline, errors = time.monotonic() + self._patience_s, 0
        while True:
            replicas = self._listed()
            failures = [failure for failure in self._workers.map(self._try_one, replicas) if failure is not None]
            if len(failures) < len(replicas):
                return
            errors = 0 if any(one.away for one in failures) else errors + 1
            if errors >= TRIES_OF_AN_ERROR or time.monotonic() >= deadline or self._closed.wait(BETWEEN_TRIES_S):
                raise PolicyError(f"no vLLM server takes version {self._coming} of the weights: {failures[0]}")

    def _try_one(self, replica: _Replica) -> ReplicaError | None:
        """What kept a server from running the version."""
        try:
            with _late_ones_are_left_out(replica):
                if self._holds(replica):
                    replica.runs = self._label
                else:
                    self._update(replica)
        except ReplicaError as error:
            replica.runs = None
            if str(error) != replica.error:
                log.warning("a replica is left out: %s", error)
            replica.error = str(error)
            return error
        if replica.error:
            log.info("%s is back, with version %d", replica.control.url, self._coming)
        replica.error = ""
        return None

    def _holds(self, replica: _Replica) -> bool:
        """Whether a server runs the version and takes requests, by its own word."""
        label = replica.control.label()
        if self.version_of(label) is None:
            replica.known = False
        if label != self._label or replica.asleep:
            return False
        if replica.control.is_paused():
            replica.control.resume()
        return True

    def _update(self, replica: _Replica) -> None:
        """Pause, deliver, reset, name, resume. A server that fails on the way stays paused: it may be between two versions."""
        control, lap = replica.control, _Laps(replica.timings_s)
        if replica.asleep:
            control.wake("weights")
        else:
            control.pause("keep" if self._in_flight else "wait")
        lap("pause_s")
        try:
            self._transfer.deliver(control, whole=not replica.known)
            lap("load_s")
            control.reset_prefix_cache()
            control.set_label(self._label)  # last: whoever finds it there may go on
        except ReplicaError:
            replica.known = False
            with suppress(ServerError):
                control.pause("abort")  # what is frozen or held there is played elsewhere
            raise
        if replica.asleep:
            control.wake("kv_cache")
        control.resume()
        lap("reset_s")
        replica.known, replica.asleep, replica.runs = True, False, self._label


@contextmanager
def _late_ones_are_left_out(replica: _Replica) -> Iterator[None]:
    """A server that joined a training under way, and was not started for it, is a failure of its own and not the training's."""
    try:
        yield
    except ConfigError as error:
        if not replica.late:
            raise
        raise ReplicaError(str(error).removeprefix(replica.control.url).strip(), url=replica.control.url) from error


class _Laps:
    """Seconds since the last call, by name."""

    def __init__(self, into: dict[str, float]):
        self._into, self._at = into, time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self._into[name], self._at = now - self._at, now
