"""Which dialect a server speaks: by its description, or by what it answers."""

import asyncio
from typing import Any

import pytest

from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.sessions.detection import Dialect, detect
from tests.rollouts.dialects import Handler, Server, abort, answering
from tests.rollouts.stage import CounterServer, serving


def detected(app: Any, *, path: str = "/") -> Dialect:
    async def run() -> Dialect:
        http = HttpClient()
        try:
            async with serving(app) as url:
                return await detect(url + path, http)
        finally:
            await http.close()

    return asyncio.run(run())


def described(*routes: str) -> Handler:
    return answering({"openapi": "3.1.0", "paths": {route: {"post": {}} for route in routes}})


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        (("/seed_session", "/verify", "/{path}"), "seed_verify"),
        (("/reset", "/step"), "gymnasium"),
        (("/seed_session", "/verify", "/reset"), "seed_verify"),
    ],
)
def test_a_server_that_describes_itself_is_not_asked_anything_else(routes: tuple[str, ...], expected: str):
    server = Server({"/openapi.json": described(*routes)})
    assert detected(server.application()) == expected
    assert server.paths == ["/openapi.json"]


@pytest.mark.parametrize("description", [answering("nope", 404), answering("<html>"), answering([]), described("/other")])
@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ({"/seed_session": answering({})}, "seed_verify"),
        ({"/seed_session": answering({"detail": []}, 422)}, "seed_verify"),
        ({"/reset": answering("broken", 500)}, "gymnasium"),
        ({"/reset": answering({"detail": []}, 422), "/seed_session": answering("", 405)}, "gymnasium"),
    ],
)
def test_any_other_server_is_known_by_what_answers(description: Handler, routes: dict[str, Handler], expected: str):
    assert detected(Server({"/openapi.json": description, **routes}).application()) == expected


def test_our_own_servers_speak_seed_verify():
    assert detected(application(CounterServer())) == "seed_verify"


@pytest.mark.parametrize("routes", [{"/openapi.json": described("/run", "/v1/responses")}, {"/run": answering({}, 422)}])
def test_an_agent_is_refused_with_what_to_say_instead(routes: dict[str, Handler]):
    with pytest.raises(ConfigError, match=r"is an agent .* --agent-url http://127.0.0.1:\d+$"):
        detected(Server(routes).application())


def test_a_server_of_no_dialect_is_told_with_what_was_tried():
    with pytest.raises(ServerError, match=r"no dialect.*POST /seed_session answered 404, POST /reset answered 404"):
        detected(Server({}).application())


def test_a_refusal_of_a_proxy_is_no_dialect():
    with pytest.raises(ServerError, match="POST /seed_session answered 401"):
        detected(Server({f"/{route}": answering("who?", 401) for route in ("seed_session", "reset", "run")}).application())


def test_a_server_that_does_not_answer_is_told_with_what_was_tried():
    with pytest.raises(ServerError, match=r"does not answer GET /openapi.json.*is the server running"):
        detected(Server({"/openapi.json": abort}).application())
    with pytest.raises(ServerError, match=r"does not answer POST /seed_session"):
        detected(Server({"/seed_session": abort}).application())
