"""What the tests of single servers play on: the server on a free port, clients with a cookie jar each, and whole rollouts."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
from hypothesis import strategies as st

from gym_bridge.resource_servers.base import StepwiseServer, TaskServer
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.gymnasium import Gymnasium
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import RolloutKey
from tests.rollouts.stage import Script, ScriptedEndpoint, said, serving

Row = dict[str, Any]
Request = tuple[str, Any]
Reply = tuple[int, Any]


def rows(server: type[TaskServer], *, num_tasks: int = 20, seed: int = 0, split: Any = "train", **knobs: Any) -> list[Row]:
    """Task rows of a server."""
    return list(server.tasks(num_tasks=num_tasks, seed=seed, split=split, **knobs))


def answered(row: Row, text: str, *before: Row) -> Row:
    """Body of /verify and /step: the row and a response that ends with `text`."""
    return {**row, "response": {"output": [*before, said(text)]}}


class Client:
    """One rollout's client: its cookies are its own."""

    def __init__(self, http: aiohttp.ClientSession, url: str):
        self._http, self._url = http, url

    async def post(self, path: str, body: Any) -> Reply:
        """Status and JSON of a POST."""
        sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self._http.post(self._url + path, **sent, timeout=aiohttp.ClientTimeout(20)) as reply:
            return reply.status, await reply.json()


def with_clients(server: TaskServer, count: int, talk: Callable[[list[Client]], Awaitable[Any]]) -> Any:
    """What `talk` gives with `count` clients of a real server."""

    async def run() -> Any:
        async with serving(application(server)) as url:
            connector = aiohttp.TCPConnector(limit=50)
            sessions = [
                aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), connector=connector, connector_owner=False)
                for _ in range(count)
            ]
            try:
                return await talk([Client(session, url) for session in sessions])
            finally:
                await asyncio.gather(*(session.close() for session in sessions))
                await connector.close()

    return asyncio.run(run())


def played(server: TaskServer, requests: Sequence[Request]) -> list[Reply]:
    """Replies to POSTs of one client, one after the other."""

    async def talk(clients: list[Client]) -> list[Reply]:
        return [await clients[0].post(path, body) for path, body in requests]

    return with_clients(server, 1, talk)


def rolled_out(server: TaskServer, row: Row, script: Script, **limits: Any) -> Played:
    """One rollout of our collector: a scripted model, the real server."""

    async def run() -> Played:
        http = HttpClient()
        loop = TurnLoop(endpoint=ScriptedEndpoint(script), limits=Limits(**limits), seed=0)
        dialect = Gymnasium if isinstance(server, StepwiseServer) else SeedVerify
        async with serving(application(server)) as url:
            try:
                environment = dialect(url=url, http=http, loop=loop, request_timeout_s=10)
                return await environment.play(row, RolloutKey(0, 0), Play(attempt=0))
            finally:
                await http.close()

    return asyncio.run(run())


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
    return (
        st.binary(max_size=60)
        | values
        | wrong
        | wrong.map(lambda fields: {**row, **fields})
        | texts.map(lambda text: answered(row, text))
        | values.map(lambda output: {**row, "response": {"output": output}})
        | st.lists(values, max_size=3).map(lambda output: {**row, "response": {"output": output}})
    )
