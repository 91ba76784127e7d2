"""A model that knows its lines: what it says depends on the task's first user message and on how much it has said."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from aiohttp import web

from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Item, Row
from gym_bridge.schemas.seams import Turn, TurnRequest
from tests.rollouts.stage import ScriptedEndpoint, turn

Lines = Sequence[Sequence[Item]]
"""The items of each turn."""


def prompt_of(items: Sequence[Mapping[str, Any]]) -> str:
    """The first user message."""
    return next(str(item["content"]) for item in items if item.get("role") == "user")


def prompt_of_row(row: Row) -> str:
    """The first user message of a task."""
    given = row["responses_create_params"]["input"]
    return given if isinstance(given, str) else prompt_of(given)


def next_turn(lines: Lines, items: Sequence[Mapping[str, Any]]) -> Sequence[Item]:
    """The first turn of which nothing is among the items."""
    said = sum(item.get("type") in ("function_call", "reasoning") or item.get("role") == "assistant" for item in items)
    return lines[list(accumulate(map(len, lines), initial=0)).index(said)]


def looping(scripts: Mapping[str, Lines]) -> TurnLoop:
    """The turn loop of direct mode over the scripts by prompt."""

    def script(request: TurnRequest) -> Turn:
        return turn(*next_turn(scripts[prompt_of(request.items)], request.items))

    return TurnLoop(endpoint=ScriptedEndpoint(script), limits=Limits(max_turns=30), seed=0)


class ModelServer:
    """An OpenAI Responses endpoint for NeMo Gym's agents, in a thread of its own."""

    def __init__(self) -> None:
        self.scripts: Mapping[str, Lines] = {}
        self.url = ""

    async def respond(self, request: web.Request) -> web.Response:
        """POST /v1/responses."""
        asked = await request.json()
        items = [{"role": "user", "content": asked["input"]}] if isinstance(asked["input"], str) else asked["input"]
        output = next_turn(self.scripts[prompt_of(items)], items)
        usage = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        whole = {"id": "resp", "created_at": 1.0, "object": "response", "model": "scripted", "output": list(output)}
        more = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": {**usage, **details}}
        return web.json_response({**whole, **more})

    @contextmanager
    def serving(self) -> Iterator["ModelServer"]:
        """Serve inside the block."""
        ready = threading.Event()
        loop = asyncio.new_event_loop()

        async def run(stop: asyncio.Event) -> None:
            app = web.Application(client_max_size=16 << 20)
            app.router.add_post("/v1/responses", self.respond)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await stop.wait()
            await runner.cleanup()

        stop = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.run_until_complete(run(stop)), daemon=True)
        thread.start()
        try:
            assert ready.wait(10)
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)
            loop.close()
