"""Functions that may hang, blow up or be talked into mischief by what a model wrote, called in processes that can be killed.

A worker is `scorer_worker.py`: one function, JSON lines in and out. `Scorer` adds whose fault it is when there is no result.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from gym_bridge.resource_servers.base import VerificationFailed

START_TIMEOUT_S = 60.0
MEMORY_GIB = 4
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ScoringTimeout(Exception):  # noqa: N818 - the answer's doing, no error of ours
    """The function was not done at its deadline; its process is gone."""


class ScoringCrashed(Exception):  # noqa: N818 - as above
    """The function raised, or its process died."""


class ScorerPool:
    """Calls of `function` (`package.module:name`) in `num_workers` child processes, each killed and replaced at `deadline_s`."""

    def __init__(self, function: str, *, num_workers: int, deadline_s: float):
        self._function, self._num_workers, self._deadline_s = function, num_workers, deadline_s
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        self._workers: list[_Worker] = []

    async def start(self) -> None:
        """Make the workers. A worker's process starts with its first call: most servers need one at a time."""
        for _ in range(self._num_workers):
            worker = _Worker(self._function, self._deadline_s)
            self._workers.append(worker)
            self._idle.put_nowait(worker)

    async def stop(self) -> None:
        """Kill the processes."""
        for worker in self._workers:
            await worker.kill()

    async def call(self, arguments: Mapping[str, Any]) -> Any:
        """What the function returns for keyword `arguments`, both JSON. Waits for an idle worker; that is not in the deadline.

        Raises ScoringTimeout, ScoringCrashed, and VerificationFailed where no process can be started.
        """
        worker = await self._idle.get()
        try:
            return await worker.call(arguments)
        finally:
            self._idle.put_nowait(worker)


class _Worker:
    """One process, started when it is needed."""

    def __init__(self, function: str, deadline_s: float):
        self._function, self._deadline_s = function, deadline_s
        self._process: asyncio.subprocess.Process | None = None

    async def call(self, arguments: Mapping[str, Any]) -> Any:
        line = orjson.dumps(arguments) + b"\n"
        process = self._process or await self._start()
        try:
            async with asyncio.timeout(self._deadline_s):
                reply = await _asked(process, line)
        except TimeoutError:
            await self.kill()
            raise ScoringTimeout(f"not done after {self._deadline_s:g} s") from None
        except BaseException:  # cancelled half way: a reply would be taken for that of the next call
            await self.kill()
            raise
        if "result" in reply:
            return reply["result"]
        if not reply:
            await self.kill()
        raise ScoringCrashed(reply.get("error", "the process died"))

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "gym_bridge.resource_servers.scorer_worker", self._function]
        limits = [str(MEMORY_GIB), str(self._deadline_s)]
        environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG") if name in os.environ}
        environment |= dict.fromkeys(THREADS, "1") | {"PYTHONDONTWRITEBYTECODE": "1"}
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *command, *limits, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                ready = await _asked(self._process, b"")
        except TimeoutError:
            ready = {"error": f"not ready after {START_TIMEOUT_S:g} s"}
        except BaseException:
            await self.kill()
            raise
        if ready != {"result": "ready"}:
            await self.kill()
            raise VerificationFailed(f"the scorer {self._function} does not start: {ready.get('error', 'it died')}")
        return self._process


async def _asked(process: asyncio.subprocess.Process, line: bytes) -> dict[str, Any]:
    """The worker's next line; empty when it has died, or said what it should not."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(ConnectionError, ValueError):  # a line that is too long, or no JSON
        process.stdin.write(line)
        await process.stdin.drain()
        reply = orjson.loads(await process.stdout.readline())
        if isinstance(reply, dict):
            return reply
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A result, or why there is none: what the candidate wrote cannot be scored."""

    result: Any = None
    timed_out: bool = False
    crashed: bool = False


class Scorer:
    """A pool whose silence is told apart: an answer that cannot be scored is the model's fault, a broken verifier is not."""

    def __init__(self, pool: ScorerPool):
        self._pool = pool

    async def score(self, arguments: Mapping[str, Any], *, reference: Mapping[str, Any]) -> Scored:
        """The result for `arguments`. Where none comes, `reference`, the same task with its own answer, is scored as a check.

        Raises VerificationFailed when the reference cannot be scored either.
        """
        try:
            return Scored(result=await self._pool.call(arguments))
        except ScoringTimeout:
            scored = Scored(timed_out=True)
        except ScoringCrashed:
            scored = Scored(crashed=True)
        try:
            await self._pool.call(reference)
        except (ScoringTimeout, ScoringCrashed) as error:
            raise VerificationFailed(f"the task's own answer cannot be scored: {error}") from error
        return scored
