"""A function over many items, in one process or in several; the results come in the order of the items."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from gym_bridge.errors import GymBridgeError

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITING_PER_WORKER = 3
"""Items that are begun or wait for a worker, so that none is idle and memory stays bounded."""

CTRL_C_HEARD_WITHIN_S = 0.2
"""Seconds between two looks for a result."""


class WorkerDiedError(GymBridgeError, RuntimeError):
    """A process that worked for us was killed."""

    exit_code = 1


def ordered_map(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], *, workers: int
) -> Generator[Result, None, None]:
    """What the function that `make` makes gives for every item, in order.

    The function is made once in every process. Several workers are processes; `make`, items and results are then pickled. They end
    with the generator: close it when an error leaves it half consumed.
    Raises what making or calling it raises, for the first item that it raises for, and WorkerDiedError when a process dies.
    """
    if workers == 1:
        yield from map(make(), items)
        return
    waiting: deque[Future[Result]] = deque()
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    with watched, held, ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(make, watched)) as pool:
        try:
            for item in items:
                with _ctrl_c_held_back():  # workers start with the first item
                    waiting.append(pool.submit(_work, item))
                if len(waiting) >= workers * WAITING_PER_WORKER:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        except BrokenProcessPool as error:
            raise WorkerDiedError(
                "a worker process died: killed for want of memory (try fewer --workers), or started by a script that does not "
                "keep its own work under `if __name__ == '__main__':`"
            ) from error
        except BaseException:
            held.close()  # nobody wants the results any more: do not wait for those that are under way
            raise


def _result(future: Future[Result]) -> Result:
    """What a worker gives. polars makes the kernel resume what Ctrl-C interrupts, so that an endless wait would not hear of it."""
    while not future.done():
        wait_for([future], timeout=CTRL_C_HEARD_WITHIN_S)
    return future.result()


_make: Callable[[], Callable[[Any], Any]] | None = None
_function: Callable[[Any], Any] | None = None


def _begin(make: Callable[[], Callable[[Any], Any]], watched: Connection) -> None:
    """Remember what to do; what goes wrong in making it is told with the first item, not by breaking the pool."""
    global _make
    _make = make
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _work(item: Any) -> Any:
    global _function
    assert _make is not None
    _function = _function or _make()
    return _function(item)


def _end_with(watched: Connection) -> None:
    """End when the parent closes its end of the pipe, which a kill does too.

    Nothing else would tell a worker: it waits for items on a pipe that it holds open itself.
    """
    wait([watched])
    os._exit(1)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Processes that start meanwhile never see Ctrl-C: it is the parent's, which ends them in good order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
