"""The ceiling: a bare aiohttp script that plays the same rollouts with the same requests, and keeps nothing.

One session, one JSON library, no limits, no retries, no accounting: it stops at the first thing that goes wrong.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson

Row = dict[str, Any]
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Targets:
    """Addresses, without a slash at their end."""

    model: str
    resources: str


async def play(session: aiohttp.ClientSession, row: Row, targets: Targets) -> float:
    """One rollout's reward: seed, model calls and the tools that they name, verify."""
    _, cookies = await post(session, f"{targets.resources}/seed_session", row, {})
    params = row["responses_create_params"]
    output: list[Row] = []
    while True:
        asked = {"model": "null", "input": [*params["input"], *output], "tools": params["tools"]}
        body, _ = await post(session, f"{targets.model}/v1/responses", asked, {})
        response = orjson.loads(body)
        output += response["output"]
        calls = [item for item in response["output"] if item["type"] == "function_call"]
        if not calls:
            break
        for call in calls:
            url = f"{targets.resources}/{call['name']}"
            body, cookies = await post(session, url, orjson.loads(call["arguments"]), cookies)
            output.append({"type": "function_call_output", "call_id": call["call_id"], "output": body.decode()})
    verified = {**row, "response": {**response, "output": output}}
    body, _ = await post(session, f"{targets.resources}/verify", verified, cookies)
    return orjson.loads(body)["reward"]


async def post(session: aiohttp.ClientSession, url: str, payload: Any, cookies: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """The body of the reply to a POST of JSON, and the cookies with those it set."""
    async with session.post(url, data=orjson.dumps(payload), headers=JSON, cookies=cookies) as reply:
        body = await reply.read()
        if reply.status != 200:
            raise SystemExit(f"{url} answered {reply.status}: {body[:300]!r}")
        set_here = {name: morsel.value for name, morsel in reply.cookies.items()}
        return body, {**cookies, **set_here} if set_here else cookies


async def collect(tasks: Path, targets: Targets, *, num_repeats: int, concurrency: int) -> int:
    """Play every task `num_repeats` times; returns how many rollouts got their reward."""
    done = 0

    def planned() -> Iterator[Row]:
        with tasks.open("rb") as lines:
            for position, line in enumerate(lines):
                row = orjson.loads(line)
                for repeat in range(num_repeats):
                    yield {**row, "_ng_task_index": position, "_ng_rollout_index": repeat}

    async def player(rows: Iterator[Row]) -> None:
        nonlocal done
        for row in rows:
            await play(session, row, targets)
            done += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        rows = planned()
        await asyncio.gather(*(player(rows) for _ in range(concurrency)))
    return done


def timed(tasks: Path, targets: Targets, *, num_repeats: int, concurrency: int) -> tuple[int, float]:
    """Rollouts and seconds."""
    started = time.perf_counter()
    done = asyncio.run(collect(tasks, targets, num_repeats=num_repeats, concurrency=concurrency))
    return done, time.perf_counter() - started
