"""Functions over many items on a Ray cluster, through Ray Data: what `transforms.parallel.Processes` is on one machine."""

import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from gym_bridge.cluster.commands import own_modules, passed_on
from gym_bridge.cluster.ray_connection import connected
from gym_bridge.errors import GymBridgeError

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_AT_ONCE = 4096
"""Of one dataset of Ray Data; so many are in this process's memory."""
BLOCKS_PER_WORKER = 4
"""At least, so that a slow one does not hold up all."""
ITEMS_PER_BLOCK = 8
PROTOCOL = 5
"""Of pickle: results have buffers."""
STORE_BYTES = 400 * 2**20


class RayWorkers:
    """`num` workers of the cluster at `address`; a `with` block connects. They work in the directory of this process where their
    machine has it, and find modules where it does."""

    def __init__(self, address: str, *, num: int):
        self.address, self.num = address, max(2, num)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Raises ConfigError for a cluster that is not there."""
        environment = {"env_vars": {**passed_on(), **own_modules(), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}}
        self._stack.enter_context(
            connected(self.address, setting="--ray", store_bytes=STORE_BYTES, num_cpus=self.num + 1, runtime_env=environment)
        )
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context: Any = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def ordered_map(self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]) -> Iterator[Result]:
        """As `transforms.parallel.Workers`. Raises GymBridgeError as well when workers die again and again."""
        import ray.data
        from ray.exceptions import RayError

        made, left = pickle.dumps(make, PROTOCOL), iter(items)
        while some := [{"item": pickle.dumps(one, PROTOCOL)} for one in islice(left, ITEMS_AT_ONCE)]:
            num_blocks = min(len(some), max(self.num * BLOCKS_PER_WORKER, len(some) // ITEMS_PER_BLOCK))
            data: Any = ray.data.from_items(some, override_num_blocks=num_blocks)
            found = data.map(
                partial(_worked, made, str(Path.cwd())),
                num_cpus=1,
                compute=ray.data.TaskPoolStrategy(size=min(self.num, num_blocks)),
            )
            try:
                for row in found.iter_rows():
                    yield _opened(row)
            except RayError as error:
                raise GymBridgeError(f"Ray gave up: {str(error).strip().partition(chr(10))[0]}") from error


@lru_cache(maxsize=1)
def _function(made: bytes, directory: str) -> Callable[[Any], Any]:
    """In a worker: the function, made once."""
    if Path(directory).is_dir():
        os.chdir(directory)
    return pickle.loads(made)()


def _worked(made: bytes, directory: str, row: dict[str, bytes]) -> dict[str, bytes]:
    try:
        return {"result": pickle.dumps(_function(made, directory)(pickle.loads(row["item"])), PROTOCOL), "error": b""}
    except GymBridgeError as error:  # the user's: it is told of the first item that has one
        return {"result": b"", "error": pickle.dumps(error, PROTOCOL)}


def _opened(row: dict[str, bytes]) -> Any:
    if row["error"]:
        raise pickle.loads(row["error"])
    return pickle.loads(row["result"])
