"""Which tasks are kept for validation."""

import hashlib

from gym_bridge.errors import ConfigError


def is_validation(content_key: bytes, *, fraction: float, seed: int) -> bool:
    """True for the tasks that go to validation, about `fraction` (0 to 1) of them.

    The task's content alone decides, through a hash keyed by `seed`: all rollouts of a task, in whatever file, go the same way,
    more rows change nothing, and a larger fraction only adds tasks. Raises ConfigError for a fraction outside 0 to 1.
    """
    if not 0 <= fraction <= 1:
        raise ConfigError(f"split={fraction}; expected a share of the tasks from 0 to 1")
    digest = hashlib.blake2b(content_key, digest_size=8, key=str(seed).encode(), person=b"validation").digest()
    return int.from_bytes(digest) < fraction * 2.0**64
