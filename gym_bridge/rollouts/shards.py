"""Collectors in processes of their own, on any machine: they come and go, and what one leaves undone is played by another.

The pool listens, and writes where and with which secret to a file that the shards read; each of them connects, and both ends prove
that they know the secret before either reads anything else of the other.
"""

import asyncio
import hmac
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gym_bridge.errors import GymBridgeError, ServerError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.rollouts import event_loop
from gym_bridge.rollouts.attempts import Unit
from gym_bridge.rollouts.players import PATIENCE_S, Retried
from gym_bridge.rollouts.remote_player import HUNG_UP, OpenPlayer, RemotePlayer, serve_player
from gym_bridge.schemas.rollouts import Rollout
from gym_bridge.schemas.seams import Sampler

log = logging.getLogger(__name__)

CODE = "import sys; from pathlib import Path; from gym_bridge.rollouts.shards import serve; serve(Path(sys.argv[1]))"
"""What a Python runs to be a shard; its argument is the file to read."""
NONCE_BYTES = 32
GREETING_S = 10.0
"""How long the two ends may take to prove themselves."""
SILENT_S = 120
"""A peer that has been cut off for so long is gone."""
BETWEEN_TRIES_S = 0.5
MAX_GONE = 5
"""A rollout that so many collectors did not survive is what ends them."""
POOL, SHARD = b"pool", b"shard"


class ShardGoneError(GymBridgeError):
    """A shard has hung up; its units are played again."""


class ShardPool:
    """A player over the shards that are connected; a unit goes to the one with the fewest, and to another when that one is gone."""

    def __init__(
        self,
        open_player: OpenPlayer,
        *,
        board: Path,
        host: str,
        sampler: Sampler | None = None,
        whole_rows: bool = False,
        trusted: bool = False,
        patience_s: float = PATIENCE_S,
    ):
        """`board`: the file that shards read. `host`: an address of this machine that they reach. `sampler`: theirs, too.
        `trusted`: a rollout has succeeded before. `patience_s`: how long there may be no shard at all."""
        self._open_player, self._board, self._host, self._sampler = open_player, board, host, sampler
        self._whole_rows, self._trusted, self._patience_s = whole_rows, trusted, patience_s
        self._secret = secrets.token_bytes(NONCE_BYTES)
        self._shards: list[RemotePlayer] = []
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._starting = asyncio.Lock()
        self._refusal: GymBridgeError | None = None  # of a shard that cannot play: none can
        self._meetings: set[asyncio.Task[None]] = set()

    @property
    def num_shards(self) -> int:
        """Those that are connected."""
        return len(self._able())

    async def play(self, unit: Unit, retried: Retried) -> Sequence[Rollout]:
        """As `Player.play`. Raises ServerError as well when there has been no shard for `patience_s` seconds, and what keeps a
        shard from playing."""
        num_told = num_gone = 0

        def tell(rollouts: Sequence[Rollout]) -> None:
            nonlocal num_told
            num_told += 1
            retried(rollouts)

        while True:
            left = tuple(replace(one, first_attempt=one.first_attempt + num_told) for one in unit)
            shard = await self._least_busy()
            try:
                last = await shard.play(left, tell, trusted=self._trusted)
            except ShardGoneError as error:
                num_gone += 1
                if num_gone == MAX_GONE:
                    keys = ", ".join(str(tuple(one.key)) for one in unit)
                    raise ServerError(f"{num_gone} collectors have ended while they played {keys}", url=str(self._board)) from error
                log.warning("%s; its rollouts are played again", error)
                continue
            self._trusted |= bool(last) and all(one.failure is None for one in last)
            return last

    async def watch(self) -> None:
        """The shards watch for themselves."""

    async def close(self) -> None:
        """Hang up, and listen no more."""
        if self._server is not None:
            self._server.close()
            self._board.unlink(missing_ok=True)
        for meeting in self._meetings:
            meeting.cancel()
        await asyncio.gather(*self._meetings, return_exceptions=True)

    async def _least_busy(self) -> RemotePlayer:
        async with self._starting:
            if self._server is None:
                self._server = await self._listen()
        async with self._changed:
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._changed.wait_for(lambda: self._refusal or self._able())
            except TimeoutError:
                raise ServerError(f"no collector for {self._patience_s:g} s", url=str(self._board)) from None
        if self._refusal is not None:
            raise self._refusal
        return min(self._able(), key=lambda one: one.num_waiting)

    def _able(self) -> list[RemotePlayer]:
        return [one for one in self._shards if one.died is None]

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._met, host=self._host)
        with written_aside(self._board) as file:
            os.fchmod(file.fileno(), 0o600)
            port = server.sockets[0].getsockname()[1]
            file.write(json.dumps({"host": self._host, "port": port, "secret": self._secret.hex()}).encode())
        return server

    def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody has connected."""
        meeting = asyncio.create_task(self._meet(reader, writer))
        self._meetings.add(meeting)
        meeting.add_done_callback(self._meetings.discard)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            _keep_alive(writer)
            async with asyncio.timeout(GREETING_S):
                await _proven(reader, writer, self._secret, own=POOL, other=SHARD)
        except (*HUNG_UP, TimeoutError, PermissionError):
            log.warning("%s:%s connected, but knows no secret", *peer[:2])
            writer.close()
            return

        async def gone() -> GymBridgeError:
            return ShardGoneError(f"the collector at {peer[0]}:{peer[1]} is gone")

        shard = RemotePlayer(reader, writer, self._open_player, sampler=self._sampler, whole_rows=self._whole_rows, cause=gone)
        async with self._changed:
            self._shards.append(shard)
            self._changed.notify_all()
        try:
            await asyncio.wait([shard.reading])
        finally:
            self._shards.remove(shard)
            await shard.close()
        if shard.died is not None and not isinstance(shard.died, ShardGoneError):
            async with self._changed:
                self._refusal = shard.died
                self._changed.notify_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Board:
    """Where the pool listens."""

    host: str
    port: int
    secret: bytes


def serve(board: Path) -> None:
    """What a shard does: play for the pool of which `board` tells, and for the next one when that is gone; without end."""
    event_loop.run(_serve(board))


async def _serve(board: Path) -> None:
    while True:
        found = _read_board(board)
        if found is not None:
            with suppress(*HUNG_UP, OSError, TimeoutError):
                await _played_for(found)
        await asyncio.sleep(BETWEEN_TRIES_S)


async def _played_for(pool: _Board) -> None:
    reader, writer = await asyncio.open_connection(pool.host, pool.port)
    try:
        _keep_alive(writer)
        async with asyncio.timeout(GREETING_S):
            await _proven(reader, writer, pool.secret, own=SHARD, other=POOL)
        log.info("playing for %s:%d", pool.host, pool.port)
        await serve_player(reader, writer)
    finally:
        writer.close()


def _read_board(path: Path) -> _Board | None:
    try:
        found = json.loads(path.read_bytes())
    except OSError:
        return None
    return _Board(host=found["host"], port=found["port"], secret=bytes.fromhex(found["secret"]))


async def _proven(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes, *, own: bytes, other: bytes) -> None:
    """Both ends send a number, and answer the other's with what only the secret gives. Raises PermissionError."""
    ours = secrets.token_bytes(NONCE_BYTES)
    writer.write(ours)
    theirs = await reader.readexactly(NONCE_BYTES)
    writer.write(hmac.digest(secret, own + theirs, "sha256"))
    if not hmac.compare_digest(await reader.readexactly(NONCE_BYTES), hmac.digest(secret, other + ours, "sha256")):
        raise PermissionError("another secret")


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Notice a peer that is cut off, and bear one that is for a while."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, SILENT_S // 10 - 3)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
