"""Which split a task belongs to, and tasks drawn at random, each once: what servers with procedural tasks share."""

import random
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import TypeVar

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers.base import Split

T = TypeVar("T")


def split_of(identity: str) -> Split:
    """The split of what is asked: a coin thrown by its hash, whatever the seed."""
    return "heldout" if blake2b(identity.encode(), digest_size=1).digest()[0] % 2 else "train"


def refuse_more_than(available: int, num_tasks: int) -> None:
    """Raise ConfigError for more tasks than a split is sure to hold."""
    if num_tasks > available:
        raise ConfigError(f"num_tasks={num_tasks}: a split is sure of {available} different tasks; ask for at most that many")


def drawn(
    draw: Callable[[random.Random], T], *, identity: Callable[[T], str], num_tasks: int, seed: int, split: Split
) -> Iterator[T]:
    """`num_tasks` draws of one split, no two with the same identity; the same for the same arguments.

    There must be well more than `num_tasks` of them: the last ones would never be found.
    """
    generator = random.Random(f"{draw.__module__} {seed}")
    seen: set[str] = set()
    while len(seen) < num_tasks:
        one = draw(generator)
        key = identity(one)
        if key not in seen and split_of(key) == split:
            seen.add(key)
            yield one
