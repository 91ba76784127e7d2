"""What the tests of rollouts play on: real servers on free ports, and model endpoints that follow a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gym_bridge.resource_servers.base import ResourceServer, Response, Task, Verdict
from gym_bridge.resource_servers.http import application
from gym_bridge.resource_servers.sessions import SessionMissing
from gym_bridge.resource_servers.tools import tool
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn, TurnRequest, Usage


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """The address of `app` on a free port."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving_counter() -> AsyncIterator[tuple[str, "CounterServer"]]:
    """A counter server, its address, and what it saw."""
    server = CounterServer()
    async with serving(application(server)) as url:
        yield url, server


def said(text: str) -> Item:
    """An assistant's message item."""
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": [part]}


def called(name: str, arguments: Any, call_id: str = "c0") -> Item:
    """A function_call item; arguments that are a string are given as they are."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": text}


def turn(*items: Item, tokens_in: int = 10, tokens_out: int = 2, incomplete: str | None = None) -> Turn:
    """A turn of the given items."""
    usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out)
    return Turn(items=items, usage=usage, incomplete_reason=incomplete, model="scripted")


Script = Callable[[TurnRequest], Turn | Awaitable[Turn]]


@dataclass
class ScriptedEndpoint:
    """A model endpoint that answers what `script` says, and keeps the requests."""

    script: Script
    requests: list[TurnRequest] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def turn(self, request: TurnRequest) -> Turn:
        """The script's answer."""
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.script(request)
            return answer if isinstance(answer, Turn) else await answer
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        """Nothing to release."""


def in_order(*turns: Turn) -> Script:
    """The first turn of every rollout is `turns[0]`, and so on; the last one is repeated."""
    return lambda request: turns[min(request.key.turn, len(turns) - 1)]


class CounterTask(Task):
    """Where the counter starts and should end."""

    start: int = 0
    expected: int = 0


@dataclass
class Count:
    """A session."""

    value: int


class CounterServer(ResourceServer[CounterTask, Count]):
    """A counter that tools move; the reward is 1 when it ends at `expected`. It notes every request in `seen`."""

    Task = CounterTask

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []
        self.at_once = self.most_at_once = 0

    @tool
    async def add(self, session: Count, count: int) -> dict[str, int]:
        """Count up."""
        self.seen.append(f"add {count}")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.05)
        self.at_once -= 1
        session.value += count
        return {"value": session.value}

    @tool
    async def break_down(self, session: Count) -> None:
        """Always fail."""
        self.seen.append("break_down")
        raise LookupError("no such thing")

    async def seed(self, task: CounterTask) -> Count:
        """A session at the task's start."""
        self.seen.append("seed")
        return Count(task.start)

    async def verify(self, task: CounterTask, response: Response, session: Count | None) -> Verdict:
        """1.0 when the counter stands where it should."""
        self.seen.append("verify")
        if session is None:
            raise SessionMissing
        return Verdict(reward=float(session.value == task.expected), fields={"final": session.value})

    @classmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: str):
        """None."""
        return iter([])


def counter_task(**fields: Any) -> dict[str, Any]:
    """A task row of the counter."""
    params = {"input": [{"role": "user", "content": "count"}], "tools": CounterServer.tools()}
    return {"responses_create_params": params, "start": 3, "expected": 5, **fields}
