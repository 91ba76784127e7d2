"""What the tests of the resource servers play on: a server on a free port, requests to it, and whole rollouts in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from hypothesis import strategies as st

from gym_bridge.resource_servers.base import ResourceServer
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Failure, RolloutKey
from tests.rollouts.stage import Script, ScriptedEndpoint, in_order, said, serving, turn

Reply = tuple[int, Any]


class Client:
    """POSTs to one server with one jar of cookies."""

    def __init__(self, url: str, http: aiohttp.ClientSession):
        self.url, self.http = url, http

    async def post(self, path: str, body: Any) -> Reply:
        """Status and JSON of the reply."""
        async with self.http.post(self.url + path, json=body, timeout=aiohttp.ClientTimeout(20)) as reply:
            return reply.status, await reply.json()

    async def verify(self, row: dict[str, Any], text: str) -> Any:
        """The reply of /verify for an answer."""
        status, reply = await self.post("/verify", answered(row, text))
        assert status == 200, reply
        return reply


@asynccontextmanager
async def client_of(server: ResourceServer) -> AsyncIterator[Client]:
    """A client of `server`, which lives as long as the block."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with serving(application(server)) as url, aiohttp.ClientSession(cookie_jar=jar) as http:
        yield Client(url, http)


def verified(server: ResourceServer, rows_and_texts: list[tuple[dict[str, Any], str]]) -> list[Any]:
    """The replies of /verify, asked one after the other."""

    async def run() -> list[Any]:
        async with client_of(server) as client:
            return [await client.verify(row, text) for row, text in rows_and_texts]

    return asyncio.run(run())


def posted(server: ResourceServer, requests: list[tuple[str, Any]]) -> list[Reply]:
    """Replies to POSTs, one after the other."""

    async def run() -> list[Reply]:
        async with client_of(server) as client:
            return [await client.post(path, body) for path, body in requests]

    return asyncio.run(run())


def rolled_out(server: ResourceServer, row: dict[str, Any], script: Script | str) -> Played | Failure:
    """One rollout by the collector's own dialect; a text is what the model answers."""
    told = in_order(turn(said(script))) if isinstance(script, str) else script

    async def run() -> Played | Failure:
        http = HttpClient()
        loop = TurnLoop(endpoint=ScriptedEndpoint(told), limits=Limits(), seed=0)
        async with serving(application(server)) as url:
            try:
                environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20)
                return await environment.play(row, RolloutKey(4, 2), Play())
            except RolloutError as error:
                return error.failure
            finally:
                await http.close()

    return asyncio.run(run())


def answered(row: dict[str, Any], text: str, **response: Any) -> dict[str, Any]:
    """The body of /verify for a row and an answer."""
    return {**row, "response": {"output": [said(text)], **response}}


def task(content: str = "go", **fields: Any) -> dict[str, Any]:
    """A task row."""
    return {"responses_create_params": {"input": [{"role": "user", "content": content}]}, **fields}


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def bodies(*keys: str) -> st.SearchStrategy[Any]:
    """Bodies with some of the keys of a task row, right or wrong values under them."""
    messages = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.text(max_size=50) | anything}
    )
    output = st.fixed_dictionaries({"output": st.lists(messages | st.just(said("hello")), max_size=3)})
    params = st.fixed_dictionaries({"input": st.text(max_size=20) | st.lists(messages, max_size=2) | anything})
    known = {
        "responses_create_params": params | anything,
        "response": output | anything,
        **{key: anything | st.text(max_size=20) for key in keys},
    }
    return st.fixed_dictionaries({}, optional=known) | anything
