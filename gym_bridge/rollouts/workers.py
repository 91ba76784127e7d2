"""Several processes that play: units go out and ended attempts come back over a socket pair a process.

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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gym_bridge.errors import GymBridgeError, ServerError
from gym_bridge.io.jsonl import dump_line
from gym_bridge.rollouts import event_loop
from gym_bridge.rollouts.attempts import Unit
from gym_bridge.rollouts.players import LocalPlayer, Retried
from gym_bridge.schemas.rollouts import Rollout

STOP_TIMEOUT_S = 10.0
OPENING = 0
"""Number of the answer that tells why a worker cannot play."""
CODE = "import sys; from gym_bridge.rollouts.workers import serve; serve(int(sys.argv[1]))"


class _Worker:
    """A process, and the units that it plays."""

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.process, self._reader, self._writer = process, reader, writer
        self._waiting: dict[int, tuple[asyncio.Future[Sequence[Rollout]], Retried]] = {}
        self._numbers = itertools.count(1)
        self._died: GymBridgeError | None = None
        self._reading = asyncio.create_task(self._read_answers())

    @property
    def num_waiting(self) -> int:
        """Units that it plays."""
        return len(self._waiting)

    async def play(self, unit: Unit, retried: Retried, *, trusted: bool) -> Sequence[Rollout]:
        """As `Player.play`; raises as well what the worker died of."""
        if self._died is not None:
            raise self._died
        number = next(self._numbers)
        last: asyncio.Future[Sequence[Rollout]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = last, retried
        _write(self._writer, (number, unit, trusted))
        try:
            return await last
        finally:
            del self._waiting[number]

    async def close(self) -> None:
        """End the process and wait for it."""
        self._reading.cancel()
        self._writer.close()
        await asyncio.gather(self._reading, return_exceptions=True)
        try:
            await asyncio.to_thread(self.process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    async def _read_answers(self) -> None:
        """Hand out what the worker sends; when it dies, everyone who waits for it, now or later, hears so."""
        try:
            while True:
                number, is_last, answer = await _read(self._reader)
                if number == OPENING:
                    self._die(answer)
                elif (waiting := self._waiting.get(number)) is not None:
                    last, retried = waiting
                    _settle(last, answer) if is_last else retried(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await asyncio.to_thread(self.process.wait)
            self._die(ServerError(f"a worker process died (exit code {code})", url=f"process {self.process.pid}"))

    def _die(self, error: GymBridgeError) -> None:
        self._died = self._died or error
        for last, _ in self._waiting.values():
            _settle(last, self._died)


def _settle(future: asyncio.Future[Sequence[Rollout]], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


class WorkerPool:
    """A player over `num_workers` processes, each of which calls `open_player`. A unit goes to the one with the fewest."""

    def __init__(self, open_player: Callable[[], LocalPlayer], *, num_workers: int, trusted: bool = False):
        """`open_player` is pickled: a function of a module, or a partial of one. `trusted`: a rollout has succeeded before."""
        self._open_player, self._num_workers, self._trusted = open_player, num_workers, trusted
        self._workers: list[_Worker] = []
        self._starting = asyncio.Lock()

    async def play(self, unit: Unit, retried: Retried) -> Sequence[Rollout]:
        """As `Player.play`. Raises ServerError as well when a worker dies."""
        async with self._starting:
            while len(self._workers) < self._num_workers:
                self._workers.append(await self._start())
        worker = min(self._workers, key=lambda one: one.num_waiting)
        last = await worker.play(unit, retried, trusted=self._trusted)
        self._trusted |= bool(last) and all(one.failure is None for one in last)
        return last

    async def watch(self) -> None:
        """The workers watch for themselves."""

    async def close(self) -> None:
        """End the workers and wait for them."""
        await asyncio.gather(*(worker.close() for worker in self._workers))
        self._workers.clear()

    async def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", CODE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the parent's: it closes the socket
                env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)},
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        _write(writer, self._open_player)
        return _Worker(process, reader, writer)


def serve(descriptor: int) -> None:
    """What a worker does: play the units that come in at the socket `descriptor` until it closes."""
    event_loop.run(_serve(socket.socket(fileno=descriptor)))


async def _serve(parent: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=parent)
    try:
        player = await _opened(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # the parent died first
    playing: set[asyncio.Task[None]] = set()
    watching = asyncio.create_task(player.watch())
    try:
        while True:
            number, unit, trusted = await _read(reader)
            if trusted:
                player.trust()
            task = asyncio.create_task(_answer(number, unit, player, writer))
            playing.add(task)
            task.add_done_callback(playing.discard)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the parent has what it wants
    finally:
        for task in (watching, *playing):
            task.cancel()
        await asyncio.gather(watching, *playing, return_exceptions=True)
        await player.close()


async def _opened(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> LocalPlayer:
    """The worker's player. What keeps it from opening is told to the parent, and then waits for the parent to hang up."""
    open_player = await _read(reader)
    try:
        return open_player()
    except GymBridgeError as error:
        _write(writer, (OPENING, True, error))
        while True:
            await _read(reader)


async def _answer(number: int, unit: Unit, player: LocalPlayer, writer: asyncio.StreamWriter) -> None:
    def tell(rollouts: Sequence[Rollout], *, is_last: bool = False) -> None:
        _write(writer, (number, is_last, [_slim(one) for one in rollouts]))

    try:
        tell(await player.play(unit, tell), is_last=True)
    except GymBridgeError as error:
        _write(writer, (number, True, error))
    except Exception as error:  # the door of a worker: whoever waits for this unit would wait for ever
        message = f"a worker failed: {type(error).__name__}: {error}"
        _write(writer, (number, True, ServerError(message, url=f"process {os.getpid()}")))


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
