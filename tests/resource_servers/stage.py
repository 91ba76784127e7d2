"""What tests of resource servers play on: a server on a free port, clients with a cookie jar each, rollouts, and odd bodies."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from hypothesis import strategies as st

from gym_bridge.resource_servers.base import StepwiseServer, TaskServer
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.gymnasium import Gymnasium
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Failure, RolloutKey
from tests.rollouts.stage import Script, ScriptedEndpoint, in_order, said, serving, turn

Row = dict[str, Any]
Request = tuple[str, Any]
Reply = tuple[int, Any]


def rows(server: type[TaskServer], *, num_tasks: int = 20, seed: int = 0, split: Any = "train", **knobs: Any) -> list[Row]:
    """Task rows of a server."""
    return list(server.tasks(num_tasks=num_tasks, seed=seed, split=split, **knobs))


def task(content: str = "go", **fields: Any) -> Row:
    """A task row by hand."""
    return {"responses_create_params": {"input": [{"role": "user", "content": content}]}, **fields}


def answered(row: Row, text: str, *before: Row, **response: Any) -> Row:
    """Body of /verify and /step: the row and a response that ends with `text`."""
    return {**row, "response": {"output": [*before, said(text)], **response}}


class Client:
    """One rollout's client: its cookies are its own."""

    def __init__(self, http: aiohttp.ClientSession, url: str):
        self.http, self.url = http, url

    async def post(self, path: str, body: Any) -> Reply:
        """Status and JSON of a POST."""
        sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.post(self.url + path, **sent, timeout=aiohttp.ClientTimeout(20)) as reply:
            return reply.status, await reply.json()

    async def verify(self, row: Row, text: str) -> Any:
        """The reply of /verify for an answer."""
        status, reply = await self.post("/verify", answered(row, text))
        assert status == 200, reply
        return reply


@asynccontextmanager
async def clients_of(server: TaskServer, count: int) -> AsyncIterator[list[Client]]:
    """Clients of a server that lives as long as the block."""
    connector = aiohttp.TCPConnector(limit=50)
    async with serving(application(server)) as url:
        sessions = [
            aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), connector=connector, connector_owner=False)
            for _ in range(count)
        ]
        try:
            yield [Client(session, url) for session in sessions]
        finally:
            await asyncio.gather(*(session.close() for session in sessions))
            await connector.close()


@asynccontextmanager
async def client_of(server: TaskServer) -> AsyncIterator[Client]:
    """One client of a server that lives as long as the block."""
    async with clients_of(server, 1) as (client,):
        yield client


def with_clients(server: TaskServer, count: int, talk: Callable[[list[Client]], Awaitable[Any]]) -> Any:
    """What `talk` gives with `count` clients of a real server."""

    async def run() -> Any:
        async with clients_of(server, count) as clients:
            return await talk(clients)

    return asyncio.run(run())


def posted(server: TaskServer, requests: Iterable[Request]) -> list[Reply]:
    """Replies to POSTs of one client, one after the other."""

    async def talk(clients: list[Client]) -> list[Reply]:
        return [await clients[0].post(path, body) for path, body in requests]

    return with_clients(server, 1, talk)


def verified(server: TaskServer, rows_and_texts: Sequence[tuple[Row, str]]) -> list[Any]:
    """The replies of /verify, asked one after the other."""

    async def talk(clients: list[Client]) -> list[Any]:
        return [await clients[0].verify(row, text) for row, text in rows_and_texts]

    return with_clients(server, 1, talk)


def rolled_out(server: TaskServer, row: Row, script: Script | str, **limits: Any) -> Played:
    """One rollout of our collector: the real server, and a model that follows a script or answers a text. Raises RolloutError."""
    told = in_order(turn(said(script))) if isinstance(script, str) else script

    async def run() -> Played:
        http = HttpClient()
        loop = TurnLoop(endpoint=ScriptedEndpoint(told), limits=Limits(**limits), seed=0)
        dialect = Gymnasium if isinstance(server, StepwiseServer) else SeedVerify
        async with serving(application(server)) as url:
            try:
                environment = dialect(url=url, http=http, loop=loop, request_timeout_s=20)
                return await environment.play(row, RolloutKey(0, 0), Play(attempt=0))
            finally:
                await http.close()

    return asyncio.run(run())


def failed_rollout(server: TaskServer, row: Row, script: Script | str) -> Failure:
    """How such a rollout failed."""
    try:
        played = rolled_out(server, row, script)
    except RolloutError as error:
        return error.failure
    raise AssertionError(f"the rollout did not fail; its reward is {played.row['reward']}")


def json_values(*keys: str) -> st.SearchStrategy[Any]:
    """Any JSON, with numbers beyond 64 bits, and objects under the given keys."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30) | st.just(10**400)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(keys), inner, max_size=4), max_leaves=10
    )


def bodies(row: Row, *keys: str) -> st.SearchStrategy[Any]:
    """Bodies of requests: bytes, any JSON, the row with some keys replaced, and the row with some response."""
    values = json_values(*keys, *row, "output", "content", "text", "type", "role")
    wrong = st.dictionaries(st.sampled_from([*keys, *row, "response"]), values, max_size=4)
    texts = st.text(max_size=60) | st.text(alphabet="0123456789-=., ABCDk\\boxed{}", max_size=60)
    messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": texts | values})
    output = values | st.lists(values | messages | texts.map(said), max_size=3)
    return (
        st.binary(max_size=60)
        | values
        | wrong
        | wrong.map(lambda fields: {**row, **fields})
        | output.map(lambda items: {**row, "response": {"output": items}})
    )
