"""A connection with a Ray cluster, or with one that is started here for as long as it lasts."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gym_bridge.errors import ConfigError, missing_extra

REACHING_S = 10.0
TOKEN = Path("~/.ray/auth_token").expanduser()


@contextmanager
def connected(address: str, *, setting: str, store_bytes: int, num_cpus: int | None = None, **options: Any) -> Iterator[None]:
    """Inside, Ray can be used: the cluster of this machine (auto), one that is started here (local) or that at HOST:PORT.

    `setting`: what the user calls `address`. `store_bytes`: of the object store of one that is started here; `num_cpus`: of that
    too. `options`: of ray.init. Raises ConfigError for a cluster that is not there.
    """
    _use_token()
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise missing_extra(f"{setting}={address}", "ray") from None
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": store_bytes, "num_cpus": num_cpus}
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ConfigError(
            f"{setting}={address}: no Ray cluster there ({str(error).strip().partition(chr(10))[0]}); start one with "
            f"ray start --head, or set {setting}=local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _use_token() -> None:
    """Show the cluster the token that `ray start` has laid down here. Who has imported Ray, which reads it then, has chosen."""
    if "ray" in sys.modules:
        return
    kept = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or TOKEN.exists()
    if kept:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _check_reachable(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT, for which Ray would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=REACHING_S).close()
