"""Leases: a process on a machine that is cut off ends by itself, before another one takes its part.

Ray calls a machine lost after about a minute of silence, and what runs there may go on for much longer: as the first of those who
train it would write the run's files beside its successor.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

LEASE_S = 60.0
"""A keeper that has not heard of us for so long ends its process."""
RENEWAL_S = 5.0
ENDING_S = 5.0
"""A keeper looks at its lease, and ends its process, within so long."""


@dataclass(slots=True)
class _Lease:
    renewed: float
    """When the last renewal was sent that is known to have arrived."""
    sent: float = 0.0
    """When the last one was sent."""
    pending: Any = None


class Leases:
    """Renews the leases of keepers, in a thread, for as long as a `with` block lasts."""

    def __init__(self) -> None:
        self._leases: dict[Any, _Lease] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew_all, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._thread.join()

    def begin(self, keeper: Any) -> None:
        """Renew that of a keeper which starts a process."""
        with self._lock:
            self._leases.setdefault(keeper, _Lease(time.monotonic()))

    def end(self, keeper: Any) -> float:
        """Renew it no longer: seconds until the keeper's process has certainly ended, if nothing else ends it."""
        with self._lock:
            lease = self._leases.pop(keeper, None)
        if lease is None:
            return 0.0
        last = max(lease.renewed, lease.sent)  # which may have arrived, and its answer not
        return max(0.0, last + LEASE_S + ENDING_S - time.monotonic())

    def _renew_all(self) -> None:
        while not self._closed.wait(RENEWAL_S):
            with self._lock:
                leases = list(self._leases.items())
            for keeper, lease in leases:
                _renew(keeper, lease)


def _renew(keeper: Any, lease: _Lease) -> None:
    import ray
    from ray.exceptions import RayError

    if lease.pending is not None:
        if not ray.wait([lease.pending], timeout=0)[0]:
            return
        try:
            ray.get(lease.pending)
            lease.renewed = lease.sent
        except RayError:
            pass  # it is cut off, or gone: whoever waits for its process learns which
    lease.sent, lease.pending = time.monotonic(), keeper.renew.remote()
