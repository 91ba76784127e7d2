"""A function over many items, in one process or in several; the results come in the order of the items."""

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from gym_bridge.errors import ConfigError, GymBridgeError

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITING_PER_WORKER = 3
"""Items that are begun or wait for a worker, so that none is idle and memory stays bounded."""

LONGEST_TEMPORARY_DIRECTORY = 64
"""Bytes of its path that leave room, in the 104 to 108 of a Unix socket's, for the names that multiprocessing adds."""

CTRL_C_HEARD_WITHIN_S = 0.2
"""Seconds between two looks for a result."""


class WorkerDiedError(GymBridgeError, RuntimeError):
    """A process that worked for us was killed."""

    exit_code = 1


class Workers(Protocol):
    """Who applies functions to items: processes of this machine, or others'."""

    num: int
    """1: all is done here, by the process that asks."""

    def ordered_map(self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]) -> Iterator[Result]:
        """What the function that `make` makes gives for every item, in order; all of these are pickled.

        Raises what making or calling it raises, for the first item that it raises for.
        """
        ...


class Processes:
    """Processes for one piece of work after another; a `with` block ends them. With `num` 1 there are none, and all is done here.

    They start with the first item, from a server that has imported what they need once. Buffers of a result (`PickleBuffer`) come
    through files, which takes half as many copies as a pipe.
    """

    def __init__(self, num: int, *, imports: Sequence[str] = ()):
        """`imports` are the modules that the functions to come are made of."""
        self.num, self._imports = num, list(imports)
        self._pool: ProcessPoolExecutor | None = None
        self._pipe: tuple[Connection, Connection] | None = None
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        self._num_maps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._pool is None or self._pipe is None or self._spool is None:
            return
        watched, held = self._pipe
        if kind is not None:
            held.close()  # nobody wants the results any more: do not wait for those that are under way
        self._pool.shutdown(cancel_futures=True)
        held.close()
        watched.close()
        self._spool.cleanup()

    def ordered_map(self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]) -> Iterator[Result]:
        """What the function that `make` makes gives for every item, in order.

        The function is made once in every process; `make`, items and results are pickled. Raises what making or calling it raises,
        for the first item that it raises for, and WorkerDiedError when a process dies.
        """
        if self.num == 1:
            yield from map(make(), items)
            return
        self._num_maps += 1
        waiting: deque[Future[_Parcel]] = deque()
        try:
            for item in items:
                with _ctrl_c_held_back():  # workers start with the first items
                    waiting.append(self._started().submit(_work, self._num_maps, make, item))
                if len(waiting) >= self.num * WAITING_PER_WORKER:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        except BrokenProcessPool as error:
            raise WorkerDiedError(
                "a worker process died: killed for want of memory (try fewer --workers), or started by a script that does not "
                "keep its own work under `if __name__ == '__main__':`"
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            try:
                self._spool = tempfile.TemporaryDirectory(prefix="gym-bridge-workers-", ignore_cleanup_errors=True)
            except OSError as error:
                raise ConfigError(f"cannot make a temporary directory: {error.strerror}; TMPDIR may name another disk") from None
            _keep_sockets_short()
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(self._imports)
            self._pipe = context.Pipe(duplex=False)
            told = (self._pipe[0], Path(self._spool.name))
            self._pool = ProcessPoolExecutor(self.num, mp_context=context, initializer=_begin, initargs=told)
        return self._pool


def _keep_sockets_short() -> None:
    """Have the socket of multiprocessing's fork server in /tmp where TMPDIR is too long for a socket's path."""
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TEMPORARY_DIRECTORY:
        kept, tempfile.tempdir = tempfile.tempdir, "/tmp"
        try:
            get_temp_dir()  # it keeps to the one that it makes
        finally:
            tempfile.tempdir = kept


class _Parcel(NamedTuple):
    """A result on its way: pickled, its buffers one after the other in a file."""

    pickled: bytes
    file: Path | None
    lengths: list[int]

    def open(self) -> Any:
        """The result; the file is gone then."""
        if self.file is None:
            return pickle.loads(self.pickled)
        data, buffers, start = memoryview(self.file.read_bytes()), list[memoryview](), 0
        self.file.unlink()
        for length in self.lengths:
            buffers.append(data[start : start + length])
            start += length
        return pickle.loads(self.pickled, buffers=buffers)


def _parcel(result: Any) -> _Parcel:
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    if not buffers:
        return _Parcel(pickled, None, [])
    try:
        with tempfile.NamedTemporaryFile(dir=_spool, delete=False) as file:
            lengths = [file.write(one.raw()) for one in buffers]
    except OSError as error:
        raise ConfigError(f"cannot write to {_spool}: {error.strerror}; TMPDIR may name another disk") from None
    return _Parcel(pickled, Path(file.name), lengths)


def _result(future: "Future[_Parcel]") -> Any:
    """What a worker gives. polars makes the kernel resume what Ctrl-C interrupts, so that an endless wait would not hear of it."""
    while not future.done():
        wait_for([future], timeout=CTRL_C_HEARD_WITHIN_S)
    return future.result().open()


_spool: Path | None = None
"""In a worker: where its buffers go."""
_made: tuple[int, Callable[[Any], Any]] | None = None
"""The function of the map that is under way, and the number of that map."""


def _begin(watched: Connection, spool: Path) -> None:
    global _spool
    _spool = spool
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _work(number: int, make: Callable[[], Callable[[Any], Any]], item: Any) -> _Parcel:
    global _made
    if _made is None or _made[0] != number:
        _made = (number, make())
    return _parcel(_made[1](item))


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
