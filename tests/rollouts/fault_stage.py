"""A resource server and a model server that fail as they are told, and remember what they did."""

import asyncio
import json
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.rollouts.stage import called, said

ADD = {"type": "function", "name": "add", "parameters": {"type": "object"}}
SESSION = "visit"

Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def status_500(request: web.Request) -> web.StreamResponse:
    """An error of the server's."""
    return web.json_response({"detail": "it broke"}, status=500)


async def status_429(request: web.Request) -> web.StreamResponse:
    """Too many requests; the next one may come soon."""
    return web.json_response({"detail": "slow down"}, status=429, headers={"Retry-After": "0.01"})


async def reset(request: web.Request) -> web.StreamResponse:
    """The connection is reset."""
    assert request.transport is not None
    sock: socket.socket = request.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    return web.Response()


async def half_body(request: web.Request) -> web.StreamResponse:
    """The connection ends within a body that says success."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"reward": 1.0')
    assert request.transport is not None
    request.transport.close()
    return response


async def endless_body(request: web.Request) -> web.StreamResponse:
    """A right answer, and then blanks without end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"reward": 1.0}')
    while True:
        await response.write(b" " * 50_000)


async def hang(request: web.Request) -> web.StreamResponse:
    """No answer."""
    await asyncio.Event().wait()
    raise AssertionError("nothing sets the event")


async def slow_drip(request: web.Request) -> web.StreamResponse:
    """An answer of one byte at a time."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)


async def invalid_json(request: web.Request) -> web.StreamResponse:
    """A body that is no JSON."""
    return web.Response(text='{"reward": 1.0', content_type="application/json")


async def nan_reward(request: web.Request) -> web.StreamResponse:
    """A reward as Python's json module writes it, which is no JSON."""
    return web.Response(text='{"reward": NaN}', content_type="application/json")


async def no_number(request: web.Request) -> web.StreamResponse:
    """A reward that is none."""
    return web.json_response({"reward": None})


async def wrong_schema(request: web.Request) -> web.StreamResponse:
    """JSON that is no answer to what was asked."""
    return web.json_response([{"score": 1.0}])


async def bottomless(request: web.Request) -> web.StreamResponse:
    """A right reward beside lists in lists, deeper than JSON is written here."""
    return web.Response(text='{"reward": 1.0, "x": ' + "[" * 300 + "]" * 300 + "}", content_type="application/json")


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        *(status_500, status_429, reset, half_body, endless_body, hang, slow_drip, invalid_json, nan_reward, no_number),
        wrong_schema,
    )
}
"""Without `bottomless`, which is tested alone."""


def fault_task(number: int, **fields: Any) -> dict[str, Any]:
    """A task whose rollout adds once. Its text tells the model server which task it is."""
    return {"responses_create_params": {"input": f"task {number}", "tools": [ADD]}, "number": number, **fields}


@dataclass
class FaultServers:
    """Both servers as one application: `/seed_session`, `/add`, `/verify` and `/v1/responses`.

    `choose` names the fault of a request, by its route and its task, or None. Half of the tool's faults come after it has worked,
    or all of them where it `always_works`.
    """

    choose: Callable[[str, int], str | None]
    always_works: bool = False
    seeded: list[int] = field(default_factory=list)
    """Task of every session, in order: its place is the session's name."""
    cookies_of_seeds: set[str | None] = field(default_factory=set)
    num_added: Counter[int] = field(default_factory=Counter)
    """How often the tool worked, by session."""
    num_verified: Counter[int] = field(default_factory=Counter)
    rewards: dict[int, float] = field(default_factory=dict)
    """What a session's verification gave, where it gave anything."""
    injected: Counter[str] = field(default_factory=Counter)

    def application(self) -> web.Application:
        """The servers."""
        app = web.Application()
        for route, handler in {"seed_session": self._seed, "add": self._add, "verify": self._verify}.items():
            app.router.add_post(f"/{route}", self._failing(route, handler))
        app.router.add_post("/v1/responses", self._failing("model", self._model))
        return app

    def _failing(self, route: str, handler: Fault) -> Fault:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            task = self._task_of(route, request, body)
            chosen = self.choose(route, task)
            if chosen is None or (chosen == "no_number" and route == "seed_session"):  # a seed's answer may hold anything
                return await handler(request)
            self.injected[chosen] += 1
            if route == "seed_session" or (route == "add" and (self.always_works or self.injected[chosen] % 2)):
                await handler(request)  # it did its work, and then the answer was lost
            if route == "verify":
                self.num_verified[int(request.cookies[SESSION])] += 1
            return await (FAULTS | {"bottomless": bottomless})[chosen](request)

        return handle

    def _task_of(self, route: str, request: web.Request, body: Any) -> int:
        if route == "model":
            return int(re.findall(r"task (\d+)", json.dumps(body["input"]))[0])
        return body["number"] if route == "seed_session" else self.seeded[int(request.cookies[SESSION])]

    async def _seed(self, request: web.Request) -> web.StreamResponse:
        self.cookies_of_seeds.add(request.cookies.get(SESSION))
        response = web.json_response({})
        response.set_cookie(SESSION, str(len(self.seeded)))
        self.seeded.append((await request.json())["number"])
        return response

    async def _add(self, request: web.Request) -> web.StreamResponse:
        self.num_added[int(request.cookies[SESSION])] += 1
        return web.json_response({"added": True})

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        session = int(request.cookies[SESSION])
        self.num_verified[session] += 1
        self.rewards[session] = self.seeded[session] + 0.5 * self.num_added[session]
        return web.json_response({"reward": self.rewards[session], "session": session})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        items = (await request.json())["input"]
        is_over = any(item.get("type") == "function_call_output" for item in items)
        output = [said("done")] if is_over else [called("add", {})]
        usage = {"input_tokens": 10, "output_tokens": 2}
        return web.json_response({"model": "m", "status": "completed", "output": output, "usage": usage})


def at_random(seed: int, *, share: float, among: Mapping[str, Any] = FAULTS) -> Callable[[str, int], str | None]:
    """Chooses a fault for that share of the requests; what a task meets does not depend on the others."""
    generators: dict[int, random.Random] = {}

    def choose(route: str, task: int) -> str | None:
        generator = generators.setdefault(task, random.Random(f"{seed} {task}"))
        return generator.choice([*among]) if generator.random() < share else None

    return choose
