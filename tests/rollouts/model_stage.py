"""Model servers that answer what a script says, and what they were asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.models.model_http import ModelHttp
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn, TurnRequest
from gym_bridge.schemas.tokens import SampleKey
from tests.rollouts.stage import serving

KEY = SampleKey(0, 4, 2, 1)
TOOL = {"type": "function", "name": "add", "description": "Add.", "parameters": {"type": "object"}, "strict": None}

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(body: Any = None, *, status: int = 200, raw: bytes | None = None, **headers: str) -> Answer:
    """An answer of `body` as JSON, or of `raw`."""
    data = json.dumps(body).encode() if raw is None else raw

    async def give(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=data, status=status, headers=named, content_type="application/json")

    return give


@dataclass
class ModelServer:
    """Gives its answers in order, the last one for ever."""

    answers: tuple[Answer, ...]
    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    async def handle(self, http: web.Request) -> web.StreamResponse:
        """Note the request and answer it."""
        self.bodies.append(await http.json())
        self.headers.append(http.headers)
        self.paths.append(http.path_qs)
        return await self.answers[min(len(self.bodies), len(self.answers)) - 1](http)


@asynccontextmanager
async def model_server(*answers: Answer) -> AsyncIterator[ModelServer]:
    """A server on a free port; its `url` ends in /v1."""
    server = ModelServer(answers)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/v1/{route:.*}", server.handle)
    async with serving(app) as url:
        server.url = url + "/v1"
        yield server


@asynccontextmanager
async def client() -> AsyncIterator[HttpClient]:
    """A pool of connections, closed at the end."""
    pool = HttpClient()
    try:
        yield pool
    finally:
        await pool.close()


def taken(kind: Callable[..., Any], reply: Any, request: TurnRequest, **options: Any) -> tuple[Turn, Any]:
    """The turn that an endpoint of `kind` makes of `reply`, and the body that it sent."""
    http_options = {name: options.pop(name) for name in ("extra_body", "headers") if name in options}

    async def run() -> tuple[Turn, Any]:
        given = answer(raw=reply) if isinstance(reply, bytes) else answer(reply)
        async with model_server(given) as server, client() as pool:
            http = ModelHttp(server.url, client=pool, api_key=None, timeout_s=20, **http_options)
            endpoint = kind(http, "org/my-model", **options)
            turn = await endpoint.turn(request)
            await endpoint.close()
            return turn, server.bodies[0]

    return asyncio.run(run())


def asking(*items: Item, tools: tuple[Item, ...] = (), **params: Any) -> TurnRequest:
    """A request of `items`."""
    return TurnRequest(items=items, tools=tools, params={"input": "said in items", **params}, key=KEY)
