"""Plays many rollouts side by side; every one ends as a row with a reward or as a typed failure."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp

from gym_bridge.errors import DataError, ServerError
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.sessions.nemo_gym import NemoGymSession
from gym_bridge.rollouts.turn_loop import Play, TurnLoop
from gym_bridge.schemas.rollouts import (
    ATTEMPT_INDEX,
    FAILURE_CLASS,
    ROLLOUT_INDEX,
    TASK_INDEX,
    BridgeFields,
    Failure,
    FailureType,
    Group,
    Rollout,
    RolloutKey,
    Row,
)

AGENT_REF = {"type": "responses_api_agents", "name": "gym_bridge"}
BACKOFF_S = 0.5
KEEPALIVE_S = 4.0  # uvicorn, on which NeMo Gym's servers stand, closes connections that idle for 5 s
TERMINAL = {FailureType.INVALID_ROW}  # another attempt would end the same way


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRollout:
    """A rollout to be played."""

    key: RolloutKey
    row: Row
    group: int = 0
    """Position of the task among those planned."""
    first_attempt: int = 0
    """Attempts that an earlier run made in vain."""


class RolloutCollector:
    """The collector over a resource server: direct mode, in which this process is the agent.

    The second attempt at a rollout waits about `backoff_s` seconds, each further one twice as long.
    """

    def __init__(
        self,
        loop: TurnLoop,
        *,
        server_url: str,
        concurrency: int,
        max_attempts: int,
        rollout_timeout_s: float,
        backoff_s: float = BACKOFF_S,
    ):
        self.loop = loop
        self.server_url = server_url
        self.concurrency = concurrency
        self.max_attempts = max_attempts
        self.rollout_timeout_s = rollout_timeout_s
        self.backoff_s = backoff_s

    async def groups(self, tasks: Iterable[Row], *, group_size: int) -> AsyncGenerator[Group, None]:
        """The group of every task, in order of completion; failed members are in it.

        A task's rollouts are numbered from its `_ng_rollout_index`, or from 0. Raises ServerError when a server is gone.
        """
        members: dict[int, list[Rollout]] = defaultdict(list)
        async with aclosing(self._ended(plan(tasks, num_repeats=group_size))) as ended:
            async for planned, attempts in ended:
                group = members[planned.group]
                group.append(attempts[-1])
                if len(group) == group_size:
                    ordered = tuple(sorted(members.pop(planned.group), key=lambda one: one.key))
                    yield Group(task_index=planned.key.task_index, rollouts=ordered)

    async def rollouts(self, planned: Iterable[PlannedRollout]) -> AsyncGenerator[Rollout, None]:
        """Every planned rollout, in order of completion; failed attempts that are tried again come out as well, before it.

        At most `concurrency` are in flight, and `planned` is read as they finish. Raises ServerError when a server is gone.
        """
        async with aclosing(self._ended(planned)) as ended:
            async for _, attempts in ended:
                for rollout in attempts:
                    yield rollout

    async def _ended(self, planned: Iterable[PlannedRollout]) -> AsyncGenerator[tuple[PlannedRollout, list[Rollout]], None]:
        """Every planned rollout with all attempts at it, in order of completion."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        source = iter(planned)
        running: dict[asyncio.Task[list[Rollout]], PlannedRollout] = {}
        try:
            while True:
                for one in _take(source, self.concurrency - len(running)):
                    running[asyncio.create_task(self._persist(one, connector))] = one
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                # Those that raise come last: what ended beside them is kept.
                for task in sorted(done, key=lambda task: task.exception() is not None):
                    one = running.pop(task)
                    yield one, task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await connector.close()

    async def _persist(self, planned: PlannedRollout, connector: aiohttp.TCPConnector) -> list[Rollout]:
        """All attempts at one rollout; the last one is its end."""
        attempts: list[Rollout] = []
        for attempt in range(planned.first_attempt, self.max_attempts):
            rollout, gone = await self._attempt(planned, attempt, connector)
            attempts.append(rollout)
            last = attempt + 1 >= self.max_attempts
            if rollout.failure is None or rollout.failure.type in TERMINAL or (last and gone is None):
                return attempts
            if last and gone is not None:
                message = rollout.failure.message.removeprefix(f"{gone}: ")
                raise ServerError(f"gone: {message}", url=gone, attempts=len(attempts))
            await asyncio.sleep(self.backoff_s * 2**attempt * random.uniform(0.5, 1.5))
        return attempts

    async def _attempt(self, planned: PlannedRollout, attempt: int, connector: aiohttp.TCPConnector) -> tuple[Rollout, str | None]:
        """One attempt in a fresh session, and the URL that is gone when it failed because no connection could be made."""
        play = Play()
        started = time.perf_counter()
        gone = None
        try:
            async with asyncio.timeout(self.rollout_timeout_s):
                return await self._play(planned, attempt, connector, play), None
        except RolloutError as error:
            failure, gone = error.failure, error.gone
        except TimeoutError:
            failure = Failure(type=FailureType.TIMEOUT, message=f"not finished after {self.rollout_timeout_s:g} s")
        except Exception as error:  # the door of one rollout: a row that we cannot play must not end the collection
            failure = Failure(type=FailureType.INVALID_ROW, message=f"{type(error).__name__}: {error}")
        row = _failure_row(planned, attempt, failure, play, elapsed_s=time.perf_counter() - started)
        return Rollout(key=planned.key, attempt=attempt, row=row, failure=failure), gone

    async def _play(self, planned: PlannedRollout, attempt: int, connector: aiohttp.TCPConnector, play: Play) -> Rollout:
        # A row out of a failures file is a task like any other: what it says of its earlier end must not reach /verify's reply.
        row = {name: value for name, value in planned.row.items() if name not in (FAILURE_CLASS, ATTEMPT_INDEX)}
        if not isinstance(row.get("responses_create_params"), dict) or "input" not in row["responses_create_params"]:
            raise RolloutError(FailureType.INVALID_ROW, "the task has no responses_create_params.input")
        started = time.perf_counter()
        async with NemoGymSession(self.server_url, connector, timeout_s=self.rollout_timeout_s) as session:
            await session.seed(row)
            stop = await self.loop.play(row, planned.key, session, play)
            verifying = time.perf_counter()
            params = {**row["responses_create_params"], **self.loop.params}
            response = _response(planned.key, play, params)
            verdict = await session.verify({**row, "responses_create_params": params, "response": response})
        ended = time.perf_counter()
        timings = {"total": ended - started, "model": play.model_s, "tools": play.tools_s, "verify": ended - verifying}
        finished = {
            **row,
            **verdict,
            "responses_create_params": params,
            "response": response,
            TASK_INDEX: planned.key.task_index,
            ROLLOUT_INDEX: planned.key.rollout_index,
            "agent_ref": row.get("agent_ref", AGENT_REF),
            "gym_bridge": {"stop_reason": str(stop), "truncated": stop.truncated} | _bridge_fields(play, attempt, timings),
        }
        return Rollout(key=planned.key, attempt=attempt, row=finished, turns=tuple(play.turns))


def plan(tasks: Iterable[Row], *, num_repeats: int) -> Iterator[PlannedRollout]:
    """`num_repeats` rollouts of every task, in order. A task without `_ng_task_index` is known by its position.

    A task that comes again gets further rollout indices: no key is planned twice. Raises DataError for an index that is no
    whole number.
    """
    taken: dict[int, int] = {}
    for position, row in enumerate(tasks):
        task_index, first = _index(row, TASK_INDEX, position), _index(row, ROLLOUT_INDEX, 0)
        first = max(first, taken.get(task_index, 0))
        taken[task_index] = first + num_repeats
        for repeat in range(num_repeats):
            yield PlannedRollout(key=RolloutKey(task_index, first + repeat), row=row, group=position)


def _index(row: Row, name: str, default: int) -> int:
    value = row.get(name)
    if value is not None and type(value) is not int:
        raise DataError(f"{name} of a task is {value!r}; expected a whole number")
    return default if value is None else value


def _take(source: Iterator[PlannedRollout], count: int) -> Iterator[PlannedRollout]:
    for _ in range(count):
        try:
            yield next(source)
        except StopIteration:
            return


def _response(key: RolloutKey, play: Play, params: Row) -> Row:
    """A Responses object over all turns, as NeMo Gym's SimpleAgent returns it."""
    usage = play.usage
    return {
        "id": f"resp_{key.task_index}_{key.rollout_index}",
        "created_at": time.time(),
        "object": "response",
        "model": play.model,
        "status": "incomplete" if play.incomplete_reason else "completed",
        "incomplete_details": {"reason": play.incomplete_reason} if play.incomplete_reason else None,
        "output": play.output,
        "parallel_tool_calls": params.get("parallel_tool_calls") is not False,
        "tool_choice": params.get("tool_choice") or "auto",
        "tools": params.get("tools") or [],
        "usage": {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        },
    }


def _bridge_fields(play: Play, attempt: int, timings_s: dict[str, float]) -> BridgeFields:
    return BridgeFields(
        num_turns=play.num_turns,
        num_tool_calls=play.num_tool_calls,
        num_tool_errors=play.num_tool_errors,
        attempt=attempt,
        policy_versions=[turn.policy_version for turn in play.turns],
        timings_s={name: round(seconds, 6) for name, seconds in timings_s.items()},
    )


def _failure_row(planned: PlannedRollout, attempt: int, failure: Failure, play: Play, *, elapsed_s: float) -> Row:
    fields = _bridge_fields(play, attempt, {"total": elapsed_s, "model": play.model_s, "tools": play.tools_s})
    described = {"type": str(failure.type), "message": failure.message, "status": failure.status}
    return {
        **planned.row,
        "reward": None,
        TASK_INDEX: planned.key.task_index,
        ROLLOUT_INDEX: planned.key.rollout_index,
        ATTEMPT_INDEX: attempt,
        FAILURE_CLASS: str(failure.type),
        "agent_ref": planned.row.get("agent_ref", AGENT_REF),
        "gym_bridge": {"failure": described} | fields,
    }
