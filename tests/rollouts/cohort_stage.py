"""A verifier that compares the rollouts of a task, and a chat endpoint that never says the same twice, in a thread of their own."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

PATIENCE_S = 30.0


@dataclass
class Comparison:
    """What the members of a group answered, by their places in it."""

    answers: dict[int, int] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Comparing:
    """/verify answers once all `size` members of a group have come, with the place of an answer among them: 0 to 1.

    It keeps the contract of NeMo Gym's genrm_compare: a group is known by its `_ng_group_id`, else by its task; who hangs up
    leaves his answer behind, and another answer for the same place is refused. The model answers `free_calls` calls, the others
    wait for `release`. The members `failing` fail once, when all their siblings wait.
    """

    def __init__(self, size: int, *, free_calls: int = 1_000_000, failing: Collection[tuple[int, int]] = ()):
        self.size, self.free_calls, self.failing = size, free_calls, set(failing)
        self.num_calls = self.num_waiting = 0
        self.verified: Counter[tuple[int, int]] = Counter()
        """How often each member asked for its verdict."""
        self.most_groups_at_once = 0
        self._groups: dict[Any, Comparison] = {}
        self._loop = asyncio.new_event_loop()
        self._gate = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Comparing":
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def release(self) -> None:
        """The model answers everyone, now and later."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def wait_for_waiting(self, count: int) -> None:
        """Return once `count` members wait for their siblings."""
        deadline = time.monotonic() + PATIENCE_S
        while self.num_waiting < count:
            assert time.monotonic() < deadline, f"only {self.num_waiting} wait"
            time.sleep(0.005)

    def _serve(self) -> None:
        app = web.Application()
        app.router.add_post("/seed_session", _seed)
        app.router.add_post("/verify", self._verify)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.num_calls += 1
        number = self.num_calls
        if number > self.free_calls:
            await self._gate.wait()
        choice = {"index": 0, "message": {"role": "assistant", "content": str(number)}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 5}
        return web.json_response({"model": "counter", "choices": [choice], "usage": usage})

    async def _verify(self, request: web.Request) -> web.Response:
        row = await request.json()
        key = row["_ng_task_index"], row["_ng_rollout_index"]
        self.verified[key] += 1
        place = row.get("_ng_group_member_index", row["_ng_rollout_index"])
        answer = int(row["response"]["output"][-1]["content"][0]["text"])
        group = self._groups.setdefault(row.get("_ng_group_id", row["_ng_task_index"]), Comparison())
        async with group.changed:
            if key in self.failing:
                self.failing.remove(key)
                await group.changed.wait_for(lambda: len(group.answers) == self.size - 1)
                return web.json_response({"detail": "out of order"}, status=503)
            if not 0 <= place < self.size or group.answers.setdefault(place, answer) != answer:
                return web.json_response({"detail": f"a different response for member {place}"}, status=409)
            group.changed.notify_all()
            self.num_waiting += 1
            self.most_groups_at_once = max(self.most_groups_at_once, sum(map(self._is_open, self._groups.values())))
            await group.changed.wait_for(lambda: len(group.answers) == self.size)
            self.num_waiting -= 1
        compared = sorted(group.answers.values())
        return web.json_response({"reward": compared.index(answer) / (self.size - 1), "compared": compared})

    def _is_open(self, group: Comparison) -> bool:
        return 0 < len(group.answers) < self.size


async def _seed(request: web.Request) -> web.Response:
    return web.json_response({})
