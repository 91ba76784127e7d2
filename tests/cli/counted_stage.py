"""A counter and a chat endpoint that always play alike, and what a collection leaves of them."""

import asyncio
import json
import threading
import zlib
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from gym_bridge.resource_servers.http import application
from gym_bridge.resource_servers.tools import tool
from tests.rollouts.stage import Count, CounterServer

NUM_TASKS, NUM_REPEATS = 200, 2
PATIENCE_S = 60.0


class QuickCounter(CounterServer):
    """A counter that takes no time."""

    @tool
    async def add(self, session: Count, count: int) -> dict[str, int]:
        """Count up."""
        session.value += count
        return {"value": session.value}


class Counted:
    """A resource server and a chat endpoint in a thread. What the model says depends on what it is asked alone.

    By a checksum of the task and the seed it counts rightly, wrongly, says too much, or finds the prompt too long. A server that
    does not verify asks to be left alone for ten minutes.
    """

    def __init__(self, *, verifies: bool = True):
        self.num_calls = self.num_refused = 0
        self._verifies = verifies
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Counted":
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        app = application(QuickCounter())
        app.router.add_post("/v1/chat/completions", self._answer)
        app.middlewares.append(self._refusing)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _refusing(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != "/verify" or self._verifies:
            return await handler(request)
        self.num_refused += 1
        return web.Response(status=503, headers={"Retry-After": "600"})

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.num_calls += 1
        await asyncio.sleep(0.002)
        last = body["messages"][-1]
        luck = zlib.crc32(f"{last['content']} {body['seed']}".encode())
        if last["role"] == "tool":
            return _said({"content": f"It is {last['content']}."})
        if luck % 19 == 0:
            error = {"message": "maximum context length is 9 tokens", "code": "context_length_exceeded"}
            return web.json_response({"error": error}, status=400)
        if luck % 5 == 0:
            return _said({"content": "one, two, thr"}, finish_reason="length")
        function = {"name": "add", "arguments": json.dumps({"count": 1 + luck % 3})}
        return _said({"content": None, "tool_calls": [{"id": f"call_{luck}", "type": "function", "function": function}]})


def _said(message: dict[str, Any], *, finish_reason: str = "stop") -> web.Response:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return web.json_response({"model": "counter", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}})


def write_counting_tasks(path: Path, *, num_tasks: int = NUM_TASKS) -> None:
    """Tasks of the counter."""
    params = [{"input": f"task {number}: count", "tools": QuickCounter.tools()} for number in range(num_tasks)]
    rows = ({"responses_create_params": one, "start": 1, "expected": 3} for one in params)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(tasks: Path, output: Path, *, server: str, model_url: str, workers: int) -> list[object]:
    """A collection that writes to `output`."""
    return [
        *("collect", "--quiet", "--input", tasks, "--output", output, "--server", server, "--dialect", "seed_verify"),
        *("--model", "counter", "--model-url", f"{model_url}/v1", "--model-api", "chat", "--concurrency", 16),
        *("--num-repeats", NUM_REPEATS, "--seed-per-repeat", "--workers", workers),
    ]


def lasting(path: Path) -> dict[tuple[int, int], Any]:
    """Rows by their rollout, without what differs between two runs; no rollout may come twice."""
    found: dict[tuple[int, int], Any] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        key = (row["_ng_task_index"], row["_ng_rollout_index"])
        assert key not in found
        row.get("response", {}).pop("created_at", None)
        for name in ("timings_s", "waits_s", "attempt"):
            del row["gym_bridge"][name]
        row.pop("_ng_attempt_index", None)
        found[key] = row
    return found


def failures_of(output: Path) -> dict[tuple[int, int], Any]:
    """Failed attempts beside `output`."""
    return lasting(output.with_name(output.stem + "_failures.jsonl"))
