"""What the tests of the dialects play on: servers that answer what they are told, and one attempt at a rollout."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.http import MAX_REPLY_BYTES, HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.environment import Environment
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Failure, RolloutKey
from tests.rollouts.stage import Script, ScriptedEndpoint, serving

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    """A server of `routes`; it keeps every request that it got, and what came with it."""

    routes: dict[str, Handler]
    seen: list[tuple[str, Any]] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)

    def application(self) -> web.Application:
        """The server; other routes are answered 404."""

        async def noting(request: web.Request) -> web.StreamResponse:
            self.requests.append(request)
            self.seen.append((request.path, await request.json() if request.can_read_body else None))
            handler = self.routes.get(request.path)
            return await handler(request) if handler else web.json_response({"detail": "Not Found"}, status=404)

        app = web.Application(client_max_size=MAX_REPLY_BYTES)
        app.router.add_route("*", "/{path:.*}", noting)
        return app

    def sent_to(self, route: str) -> list[Any]:
        """Bodies of the requests to one route."""
        return [body for path, body in self.seen if path == route]

    @property
    def paths(self) -> list[str]:
        """Routes that were asked, in order."""
        return [path for path, _ in self.seen]


Made = Callable[[str, HttpClient], Environment]


def play_in(
    server: Server, made: Made, row: dict[str, Any], *, attempt: int = 0, cancel_after_s: float | None = None
) -> tuple[Played | Failure, Play]:
    """One attempt at `row` in the environment that `made` gives for the server's address."""

    async def run() -> tuple[Played | Failure, Play]:
        play = Play(attempt=attempt)
        http = HttpClient()
        async with serving(server.application()) as url:
            try:
                async with asyncio.timeout(cancel_after_s):
                    return await made(url + "/", http).play(row, RolloutKey(4, 2), play), play
            except RolloutError as error:
                return error.failure, play
            finally:
                await http.close()

    return asyncio.run(run())


def looping(script: Script, **limits: Any) -> TurnLoop:
    """A turn loop over a script."""
    return TurnLoop(endpoint=ScriptedEndpoint(script), limits=Limits(**limits), seed=0)


def answering(body: Any, status: int = 200) -> Handler:
    """A handler with one answer: bytes and texts as they are, anything else as JSON."""
    return in_turn(body, status=status)


def in_turn(*bodies: Any, status: int = 200) -> Handler:
    """A handler that answers the bodies one after the other, and the last one ever after."""
    left = list(bodies)

    async def handler(request: web.Request) -> web.StreamResponse:
        body = left.pop(0) if len(left) > 1 else left[0]
        if not isinstance(body, str | bytes):
            return web.json_response(body, status=status)
        return web.Response(body=body.encode() if isinstance(body, str) else body, status=status, content_type="application/json")

    return handler


async def abort(request: web.Request) -> web.StreamResponse:
    """Break the connection before an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half(request: web.Request) -> web.StreamResponse:
    """Break the connection within the body."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"reward": 1.0')
    assert request.transport is not None
    request.transport.close()
    return response


async def hang(request: web.Request) -> web.StreamResponse:
    """Answer long after anybody waits."""
    await asyncio.sleep(30)
    return web.Response()


async def flood(request: web.Request) -> web.StreamResponse:
    """Answer a right reward, and then blanks without end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"reward": 1.0}')
    sent = 0
    while sent < 4 * MAX_REPLY_BYTES:
        await response.write(b" " * (1 << 20))
        sent += 1 << 20
    raise AssertionError("the client read it all")
