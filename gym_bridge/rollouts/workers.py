"""Several processes that play: units go out and ended attempts come back over a socket pair a process.

A worker ends when its socket does, so that none outlives the process that started it.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gym_bridge.errors import GymBridgeError, ServerError
from gym_bridge.rollouts import event_loop
from gym_bridge.rollouts.attempts import Unit
from gym_bridge.rollouts.players import Retried
from gym_bridge.rollouts.remote_player import OpenPlayer, RemotePlayer, serve_player
from gym_bridge.schemas.rollouts import Rollout

STOP_TIMEOUT_S = 10.0
CODE = "import sys; from gym_bridge.rollouts.workers import serve; serve(int(sys.argv[1]))"


class WorkerPool:
    """A player over `num_workers` processes, each of which calls `open_player`. A unit goes to the one with the fewest."""

    def __init__(self, open_player: OpenPlayer, *, num_workers: int, trusted: bool = False):
        """`trusted`: a rollout has succeeded before."""
        self._open_player, self._num_workers, self._trusted = open_player, num_workers, trusted
        self._workers: list[tuple[RemotePlayer, subprocess.Popen[bytes]]] = []
        self._starting = asyncio.Lock()

    async def play(self, unit: Unit, retried: Retried) -> Sequence[Rollout]:
        """As `Player.play`. Raises ServerError as well when a worker dies."""
        async with self._starting:
            while len(self._workers) < self._num_workers:
                self._workers.append(await self._start())
        worker = min((one for one, _ in self._workers), key=lambda one: one.num_waiting)
        last = await worker.play(unit, retried, trusted=self._trusted)
        self._trusted |= bool(last) and all(one.failure is None for one in last)
        return last

    async def watch(self) -> None:
        """The workers watch for themselves."""

    async def close(self) -> None:
        """End the workers and wait for them."""
        await asyncio.gather(*(_ended(worker, process) for worker, process in self._workers))
        self._workers.clear()

    async def _start(self) -> tuple[RemotePlayer, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", CODE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the parent's: it closes the socket
                env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)},
            )

        async def cause() -> GymBridgeError:
            code = await asyncio.to_thread(process.wait)
            return ServerError(f"a worker process died (exit code {code})", url=f"process {process.pid}")

        reader, writer = await asyncio.open_connection(sock=ours)
        return RemotePlayer(reader, writer, self._open_player, cause=cause), process


async def _ended(worker: RemotePlayer, process: subprocess.Popen[bytes]) -> None:
    await worker.close()
    try:
        await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(descriptor: int) -> None:
    """What a worker does: play the units that come in at the socket `descriptor` until it closes."""
    event_loop.run(_serve(socket.socket(fileno=descriptor)))


async def _serve(parent: socket.socket) -> None:
    await serve_player(*await asyncio.open_connection(sock=parent))
