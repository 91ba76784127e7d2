"""Several processes that play: units go out and ended rollouts come back over a socket pair a process.

A frame is 4 bytes of length and a pickle; both ends are this program. A worker ends when its socket does, so that none outlives
the process that started it.
"""

import asyncio
import itertools
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from gym_bridge.errors import GymBridgeError, ServerError
from gym_bridge.io.jsonl import dump_line
from gym_bridge.rollouts import event_loop
from gym_bridge.rollouts.attempts import Unit
from gym_bridge.rollouts.players import Ended, Player
from gym_bridge.schemas.rollouts import Rollout

STOP_TIMEOUT_S = 10.0
CODE = "import sys; from gym_bridge.rollouts.workers import serve; serve(int(sys.argv[1]))"


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A process, and the units that it plays."""

    process: subprocess.Popen[bytes]
    writer: asyncio.StreamWriter
    reading: asyncio.Task[None]
    waiting: dict[int, asyncio.Future[list[Ended]]] = field(default_factory=dict)


class WorkerPool:
    """A player over `num_workers` processes, each of which calls `open_player`. A unit goes to the one with the fewest."""

    def __init__(self, open_player: Callable[[], Player], *, num_workers: int):
        """`open_player` is pickled: a function of a module, or a partial of one."""
        self._open_player, self._num_workers = open_player, num_workers
        self._workers: list[_Worker] = []
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()

    async def play(self, unit: Unit) -> list[Ended]:
        """As `Player.play`. Raises ServerError as well when a worker dies."""
        async with self._starting:
            while len(self._workers) < self._num_workers:
                self._workers.append(await self._start())
        worker = min(self._workers, key=lambda one: len(one.waiting))
        number = next(self._numbers)
        worker.waiting[number] = asyncio.get_running_loop().create_future()
        _write(worker.writer, (number, unit))
        try:
            return await worker.waiting[number]
        finally:
            del worker.waiting[number]

    async def watch(self) -> None:
        """The workers watch for themselves."""

    async def close(self) -> None:
        """End the workers and wait for them."""
        for worker in self._workers:
            worker.reading.cancel()
            worker.writer.close()
        await asyncio.gather(*(worker.reading for worker in self._workers), return_exceptions=True)
        for worker in self._workers:
            try:
                await asyncio.to_thread(worker.process.wait, STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers.clear()

    async def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", CODE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the parent's: it closes the socket
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        _write(writer, self._open_player)
        waiting: dict[int, asyncio.Future[list[Ended]]] = {}
        reading = asyncio.create_task(_answers(reader, waiting, process))
        return _Worker(process=process, writer=writer, reading=reading, waiting=waiting)


async def _answers(
    reader: asyncio.StreamReader, waiting: dict[int, asyncio.Future[list[Ended]]], process: subprocess.Popen[bytes]
) -> None:
    """Hand out what a worker sends; when it dies, everyone who waits for it hears so."""
    try:
        while True:
            number, answer = await _read(reader)
            future = waiting.get(number)
            if future is None or future.done():
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        code = await asyncio.to_thread(process.wait)
        for future in waiting.values():
            if not future.done():
                future.set_exception(ServerError(f"a worker process died (exit code {code})", url=f"process {process.pid}"))


def serve(descriptor: int) -> None:
    """What a worker does: play the units that come in at the socket `descriptor` until it closes."""
    event_loop.run(_serve(socket.socket(fileno=descriptor)))


async def _serve(parent: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=parent)
    try:
        open_player = await _read(reader)
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # the parent died first
    player: Player = open_player()
    playing: set[asyncio.Task[None]] = set()
    watching = asyncio.create_task(player.watch())
    try:
        while True:
            number, unit = await _read(reader)
            task = asyncio.create_task(_answer(number, player.play(unit), writer))
            playing.add(task)
            task.add_done_callback(playing.discard)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the parent has what it wants
    finally:
        for task in (watching, *playing):
            task.cancel()
        await asyncio.gather(watching, *playing, return_exceptions=True)
        await player.close()


async def _answer(number: int, play: Coroutine[Any, Any, list[Ended]], writer: asyncio.StreamWriter) -> None:
    try:
        answer: Any = [
            Ended(planned=replace(one.planned, row={}), attempts=[_slim(attempt) for attempt in one.attempts]) for one in await play
        ]
    except GymBridgeError as error:
        answer = error
    except Exception as error:  # the door of a worker: whoever waits for this unit would wait for ever
        answer = ServerError(f"a worker failed: {type(error).__name__}: {error}", url=f"process {os.getpid()}")
    _write(writer, (number, answer))


def _slim(rollout: Rollout) -> Rollout:
    """The rollout with its row as a line of the file, and as a dict only what the parent looks at."""
    row = {"reward": rollout.row["reward"], "gym_bridge": rollout.row["gym_bridge"]}
    return replace(rollout, line=rollout.line or dump_line(rollout.row), row=row)


def _write(writer: asyncio.StreamWriter, value: object) -> None:
    body = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    writer.write(len(body).to_bytes(4, "big") + body)


async def _read(reader: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await reader.readexactly(4), "big")
    return pickle.loads(await reader.readexactly(size))
