"""One load on a resource server from a process of its own: `python -m benchmarks.resource_servers_client LOAD` prints its figures.

Both are JSON. Requests go over raw streams, each connection's one after the other: a client must cost less than what it measures.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.processes import cpu_s_of, memory_mib

MAX_REPLY_BYTES = 2**20
LENGTH = re.compile(r"^content-length: (\d+)", re.IGNORECASE | re.MULTILINE)
COOKIE = re.compile(r"^set-cookie: ([^;]+)", re.IGNORECASE | re.MULTILINE)
Call = tuple[str, str]
"""Path and body of a POST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of a server."""

    url: str
    pid: int
    """Of the server."""
    visits: str
    """A file with a JSON list of calls a line, the first of which opens the session of the others."""
    concurrency: int
    """Connections."""
    repeats: int = 0
    """How often each connection repeats each call of its visit; 0: every line is one session, seeded before any is worked on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What calls of one kind came to."""

    path: str
    requests: int
    seconds: float
    cpu_s: float
    """Of the server."""
    memory_mib: float
    """Resident memory of the server afterwards."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class Connection:
    """A kept-alive connection."""

    def __init__(self, netloc: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._netloc, self._reader, self._writer = netloc, reader, writer

    async def post(self, call: Call, cookie: str = "") -> str:
        """The session's cookie after a POST."""
        path, body = call
        session = f"Cookie: {cookie}\r\n" if cookie else ""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._netloc}\r\nContent-Type: application/json\r\n{session}"
        self._writer.write(f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode())
        said = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length, cookie_set = LENGTH.search(said), COOKIE.search(said)
        reply = await self._reader.readexactly(int(length[1]) if length else 0)
        if said.split(" ", 2)[1] != "200" or reply.startswith(b'{"error"'):
            raise RuntimeError(f"{path} answered {said.splitlines()[0]}: {reply[:300]!r}")
        return cookie_set[1] if cookie_set else cookie


class Measure:
    """Times loads over connections that stay open."""

    def __init__(self, load: Load, connections: Sequence[Connection]):
        self._load, self._connections = load, connections

    async def timed(self, path: str, requests: int, work: Callable[[Connection, int], Awaitable[None]]) -> Answered:
        """`work` on every connection at once."""
        cpu_s, started = cpu_s_of(self._load.pid), time.perf_counter()
        await asyncio.gather(*(work(connection, number) for number, connection in enumerate(self._connections)))
        seconds, cpu_s = time.perf_counter() - started, cpu_s_of(self._load.pid) - cpu_s
        return Answered(path=path, requests=requests, seconds=seconds, cpu_s=cpu_s, memory_mib=memory_mib(self._load.pid))


async def repeated(measure: Measure, load: Load, visits: list[list[Call]]) -> list[Answered]:
    """Every call again and again, one kind after the other, each connection in a session of its own."""
    cookies = [""] * load.concurrency
    found = []
    for position, (path, _) in enumerate(visits[0]):

        async def work(connection: Connection, number: int, position: int = position) -> None:
            call = visits[number % len(visits)][position]
            for _ in range(load.repeats):
                cookies[number] = await connection.post(call, cookies[number] if position else "")

        found.append(await measure.timed(path, load.repeats * load.concurrency, work))
    return found


async def all_alive(measure: Measure, visits: list[list[Call]]) -> list[Answered]:
    """Every session seeded, and then every one worked on."""
    cookies: dict[int, str] = {}
    to_seed, to_work_on = iter(enumerate(visits)), iter(enumerate(visits))

    async def seed(connection: Connection, _: int) -> None:
        for session, (opening, *_calls) in to_seed:
            cookies[session] = await connection.post(opening)

    async def work(connection: Connection, _: int) -> None:
        for session, (_opening, *calls) in to_work_on:
            for call in calls:
                await connection.post(call, cookies[session])

    seeded = await measure.timed(visits[0][0][0], len(visits), seed)
    return [seeded, await measure.timed("/<tool>", sum(len(visit) - 1 for visit in visits), work)]


async def answered(load: Load) -> list[Answered]:
    """Put the load on the server."""
    visits = [json.loads(line) for line in Path(load.visits).read_text().splitlines()]
    at = urlsplit(load.url)
    pairs = [await asyncio.open_connection(at.hostname, at.port, limit=MAX_REPLY_BYTES) for _ in range(load.concurrency)]
    measure = Measure(load, [Connection(at.netloc, reader, writer) for reader, writer in pairs])
    try:
        return await (repeated(measure, load, visits) if load.repeats else all_alive(measure, visits))
    finally:
        for _, writer in pairs:
            writer.close()


if __name__ == "__main__":
    print(json.dumps([asdict(one) for one in asyncio.run(answered(Load(**json.loads(sys.argv[1]))))]))
