"""A resource server on the network, with NeMo Gym's endpoints and errors.

POST /seed_session        task row -> {} and a session cookie
POST /<tool>              arguments -> the tool's result
POST /verify              task row + response -> the row + reward + the verifier's fields
POST /aggregate_metrics   {"verify_responses": [...]} -> metrics
GET  /reverify_mode       "stateless" or "unsupported"
GET  /                    {"status": "ok"}
"""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json, to_json

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers.aggregate import AggregateRequest, aggregate
from gym_bridge.resource_servers.base import ResourceServer, Response
from gym_bridge.resource_servers.sessions import SessionMissing, Sessions
from gym_bridge.resource_servers.tools import Tool, tools_of

HOST = "127.0.0.1"
"""Loopback only: nothing here asks a client who it is."""
MAX_BODY_BYTES = 8 * 2**20
STOP_TIMEOUT_S = 3.0
"""How long requests in flight may take when the server stops."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Model = TypeVar("Model", bound=BaseModel)
Reply = TypeVar("Reply", bound=web.StreamResponse)
_logger = logging.getLogger(__name__)


class VerifyRequest(BaseModel):
    """What stands in the body of POST /verify beside the task row."""

    model_config = ConfigDict(frozen=True)
    response: Response


def application(server: ResourceServer) -> web.Application:
    """The aiohttp application of `server`, with sessions of its own."""
    endpoints = Endpoints(server)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[endpoints.answer])
    app.router.add_get("/", endpoints.status)
    app.router.add_get("/reverify_mode", endpoints.reverify_mode)
    app.router.add_post("/seed_session", endpoints.seed_session)
    app.router.add_post("/verify", endpoints.verify)
    app.router.add_post("/aggregate_metrics", endpoints.aggregate_metrics)
    for one in tools_of(type(server)).values():
        app.router.add_post(f"/{one.name}", endpoints.tool(one))
    return app


async def serve(server: ResourceServer, *, port: int, on_ready: Callable[[str], None]) -> None:
    """Answer on 127.0.0.1:`port` (0: any free one) until cancelled; `on_ready` gets the address once it listens.

    Raises ConfigError when the port cannot be had.
    """
    runner = web.AppRunner(application(server), access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
    await runner.setup()
    try:
        await _listen(runner, port)
        on_ready(f"http://{HOST}:{runner.addresses[0][1]}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, port: int) -> None:
    try:
        await web.TCPSite(runner, HOST, port).start()
    except OverflowError as error:
        raise ConfigError(f"port {port} does not exist; choose one of 0 to 65535") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {HOST} is in use; choose another or --port 0") from error
        raise ConfigError(f"cannot listen on port {port} of {HOST}: {error.strerror}; choose another or --port 0") from error


class Endpoints:
    """The handlers of one server, and its sessions."""

    def __init__(self, server: ResourceServer):
        self._server = server
        self._sessions: Sessions[Any] = Sessions()

    async def status(self, request: web.Request) -> web.Response:
        """GET /: the server lives."""
        return _reply({"status": "ok"})

    async def reverify_mode(self, request: web.Request) -> web.Response:
        """GET /reverify_mode: whether /verify may be asked again later."""
        return _reply(self._server.reverify_mode)

    async def seed_session(self, request: web.Request) -> web.Response:
        """POST /seed_session: open a session for the task."""
        task = _checked(self._server.Task, await _body(request))
        token = self._sessions.open(await self._server.seed(task))
        return self._with_cookie(_reply({}), token)

    async def verify(self, request: web.Request) -> web.Response:
        """POST /verify: the row that came in, with its reward. NeMo Gym drops keys it does not know; we give them all back."""
        row = await _body(request)
        task, response = _checked(self._server.Task, row), _checked(VerifyRequest, row).response
        try:
            session = self._sessions.find(self._token(request))
        except SessionMissing:
            session = None
        verdict = await self._server.verify(task, response, session)
        return _reply({**row, **verdict.fields, "reward": self._server.final_reward(float(verdict.reward))})

    async def aggregate_metrics(self, request: web.Request) -> web.Response:
        """POST /aggregate_metrics: statistics over replies of /verify."""
        return _reply(aggregate(_checked(AggregateRequest, await _body(request)).verify_responses))

    def tool(self, tool: Tool) -> Handler:
        """The handler of POST /<tool>."""
        method = getattr(self._server, tool.name)

        async def call(request: web.Request) -> web.Response:
            arguments = _checked(tool.arguments, await _body(request))
            session = self._sessions.find(self._token(request))
            return _reply(await method(session, **tool.values(arguments)))

        return call

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error becomes NeMo Gym's reply for it. Its agent keeps the last reply's cookies only, so each reply sets ours."""
        try:
            response = await handler(request)
        except _InvalidBody as error:
            response = _reply({"detail": error.detail}, status=422)
        except SessionMissing as error:
            response = _reply({"detail": str(error)}, status=400)
        except web.HTTPException as error:
            response = _reply({"detail": error.reason}, status=error.status)
        except Exception as error:
            _logger.exception("%s %s failed", request.method, request.path)
            response = _reply(repr(error), status=500)
        token = self._token(request)
        if token in self._sessions and not response.cookies:
            self._with_cookie(response, token)
        return response

    def _token(self, request: web.Request) -> str:
        return request.cookies.get(self._sessions.cookie_name, "")

    def _with_cookie(self, response: Reply, token: str) -> Reply:
        response.set_cookie(self._sessions.cookie_name, token, httponly=True, samesite="Lax")
        return response


class _InvalidBody(Exception):  # noqa: N818 - the client's fault, answered and not logged
    def __init__(self, detail: list[dict[str, Any]]):
        self.detail = detail


async def _body(request: web.Request) -> dict[str, Any]:
    """The JSON object in the request. pydantic's parser keeps whole numbers of any size, refuses NaN and depth beyond 200."""
    try:
        value = from_json(await request.read(), allow_inf_nan=False)
    except (ValueError, web.RequestPayloadError) as error:
        raise _InvalidBody([{"loc": ["body"], "msg": f"JSON decode error: {error}", "type": "json_invalid"}]) from error
    if not isinstance(value, dict):
        raise _InvalidBody([{"loc": ["body"], "msg": "Input should be a valid dictionary", "type": "dict_type"}])
    return value


def _checked(model: type[Model], value: dict[str, Any]) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        detail = [{"loc": ["body", *one["loc"]], "msg": one["msg"], "type": one["type"]} for one in error.errors(include_url=False)]
        raise _InvalidBody(detail) from error


def _reply(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=to_json(value, inf_nan_mode="null"), status=status, content_type="application/json")
