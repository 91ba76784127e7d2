"""HTTP as rollouts need it: one pool of connections for a whole collection, bounded replies, a jar of cookies a rollout."""

import asyncio
import math
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import aiohttp
import orjson
from yarl import URL

from gym_bridge.rollouts.cookies import Cookies

KEEPALIVE_S = 4.0  # uvicorn, on which NeMo Gym's servers stand, closes connections that idle for 5 s
CONNECT_TIMEOUT_S = 30.0
MAX_REPLY_BYTES = 16 << 20
MOST_DESCRIPTORS = 65536
JSON_HEADERS = {"Content-Type": "application/json"}


def connections_for(share: Literal["model", "tools"]) -> int:
    """Connections that the descriptor limit leaves: half of it for model calls, a quarter for tools; the soft limit is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    descriptors = min(hard, MOST_DESCRIPTORS) if hard != resource.RLIM_INFINITY else MOST_DESCRIPTORS
    return descriptors // (2 if share == "model" else 4)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (a number of seconds or a date) ask for."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        with suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit_s
            if math.isfinite(seconds):
                return max(0.0, seconds)
    with suppress(KeyError, ValueError):
        when = parsedate_to_datetime(headers["Retry-After"])
        return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply, whatever its status."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    secret: str | None = None
    """What was sent and must not be shown, should the server echo it."""

    def short(self) -> str:
        """The body for a message: a JSON string is unwrapped, a long text is cut."""
        text = self.body.decode(errors="replace")
        if text.startswith('"'):  # NeMo Gym answers an error with the JSON string of its repr
            with suppress(orjson.JSONDecodeError):
                text = str(orjson.loads(self.body))
        text = text.replace(self.secret, "<token>") if self.secret else text
        return text if len(text) <= 500 else text[:500] + " ..."


class HttpError(Exception):
    """No whole reply came."""

    def __init__(self, message: str, *, kind: Literal["unreachable", "timeout", "broken", "too_large"]):
        self.kind = kind
        """unreachable: no connection could be made, so that the next request would fail as well."""
        super().__init__(message)


class YoungRequests:
    """At most `most` requests at a time that began less than `young_s` seconds ago; more wait for their turn.

    Thousands that begin together each open a connection, while a server that answers within milliseconds needs but a few. One that
    answers slowly has as many requests as there are: they grow old.
    """

    def __init__(self, most: int = 256, young_s: float = 0.1):
        self._room, self._young_s = asyncio.Semaphore(most), young_s

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A request that begins when the block does."""
        await self._room.acquire()
        is_young = True

        def grow_old() -> None:
            nonlocal is_young
            if is_young:
                is_young = False
                self._room.release()

        later = asyncio.get_running_loop().call_later(self._young_s, grow_old)
        try:
            yield
        finally:
            later.cancel()
            grow_old()


class HttpClient:
    """A pool of connections, opened with the first request; `close` it in the same event loop."""

    def __init__(self, *, max_connections: int = 0, bearer: str | None = None):
        """`bearer` is sent with every request that has no Authorization of its own."""
        self._max_connections = max_connections
        self._bearer = bearer
        self._own_headers = {"Authorization": f"Bearer {bearer}"} if bearer else None
        self._session: aiohttp.ClientSession | None = None
        self._young = YoungRequests()

    async def post(
        self,
        url: str,
        body: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] = JSON_HEADERS,
        cookies: Cookies | None = None,
    ) -> Reply:
        """One POST. Raises HttpError where no whole reply comes within `timeout_s` of its start; a status is no error here."""
        return await self._request("POST", url, body, timeout_s=timeout_s, headers=headers, cookies=cookies)

    async def get(self, url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Reply:
        """One GET; as `post`."""
        return await self._request("GET", url, None, timeout_s=timeout_s, headers=headers, cookies=None)

    async def close(self) -> None:
        """Release the connections; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _request(
        self,
        method: str,
        url: str,
        body: bytes | None,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None,
        cookies: Cookies | None,
    ) -> Reply:
        if timeout_s <= 0:
            raise HttpError("no time is left to ask", kind="timeout")
        try:
            address = URL(url)
        except ValueError as error:
            raise HttpError(f"{url}: {error}", kind="unreachable") from error
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=KEEPALIVE_S)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=self._own_headers
            )
        if cookies is not None and (said := cookies.header(address)):
            headers = {**(headers or {}), "Cookie": said}
        try:
            async with (
                self._young.one(),
                self._session.request(
                    method,
                    address,
                    data=body,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
                    allow_redirects=False,
                ) as reply,
            ):
                if cookies is not None:
                    cookies.take(reply)
                return Reply(reply.status, await _read(reply), reply.headers, self._bearer)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a TimeoutError is an OSError
            raise _http_error(error, timeout_s) from error


def _http_error(error: Exception, timeout_s: float) -> HttpError:
    match error:
        case aiohttp.ConnectionTimeoutError():
            return HttpError(f"no connection within {CONNECT_TIMEOUT_S:g} s", kind="unreachable")
        case TimeoutError():
            return HttpError(f"no answer within {timeout_s:g} s", kind="timeout")
        case aiohttp.ClientConnectorError():
            told = error.os_error.strerror or type(error.os_error).__name__
            return HttpError(f"no connection to {error.host}:{error.port}: {told}", kind="unreachable")
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return HttpError(str(error) or type(error).__name__, kind="unreachable")
    return HttpError(str(error) or type(error).__name__, kind="broken")


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise HttpError(f"the reply is longer than {MAX_REPLY_BYTES} bytes", kind="too_large")
    return bytes(body)
