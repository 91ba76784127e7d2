"""The agent: asks the model, calls the tools that it names, until it answers or a limit stops it."""

import asyncio
import re
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from gym_bridge.errors import GymBridgeError
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.schemas.rollouts import FailureType, Item, RolloutKey, Row, StopReason
from gym_bridge.schemas.seams import ModelEndpoint, Turn, TurnRequest, Usage
from gym_bridge.schemas.tokens import SampleKey, TurnTokens

RESERVED = frozenset({"seed_session", "verify", "aggregate_metrics", "reverify_mode", "mcp"})
"""Routes that are no tools, even where a task's row offers them."""
ROUTE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class ToolSession(Protocol):
    """The part of a session that the turn loop needs."""

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, int]:
        """Body and HTTP status of one tool call."""
        ...


@dataclass(slots=True, kw_only=True)
class Play:
    """What a rollout has come to so far."""

    output: list[Item] = field(default_factory=list)
    turns: list[TurnTokens] = field(default_factory=list)
    num_turns: int = 0
    num_tool_calls: int = 0
    num_tool_errors: int = 0
    usage: Usage = field(default_factory=Usage)
    incomplete_reason: str | None = None
    model: str = ""
    model_s: float = 0.0
    tools_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLoop:
    """Plays one rollout after NeMo Gym's SimpleAgent; tool calls of one turn run at once unless the task forbids it.

    Limits are checked in this order after each model call: its output tokens, then whether it called no tool, then `max_turns`.
    """

    endpoint: ModelEndpoint
    max_turns: int
    seed: int
    params: Mapping[str, Any]
    """Responses parameters of the run, laid over the task's own."""

    async def play(self, row: Row, key: RolloutKey, session: ToolSession, play: Play) -> StopReason:
        """Play until a stop reason; `play` holds what was reached, also when this raises RolloutError."""
        params = {**row["responses_create_params"], **self.params}
        tools = tuple(params.get("tools") or ())
        task_items = _items(params["input"])
        while True:
            request = TurnRequest(
                items=(*task_items, *play.output),
                tools=tools,
                params=params,
                key=SampleKey(self.seed, key.task_index, key.rollout_index, play.num_turns),
                previous=play.turns[-1] if play.turns else None,
            )
            turn = await self._ask(request, play)
            calls = [item for item in turn.items if item.get("type") == "function_call"]
            if turn.incomplete_reason:
                return StopReason.MAX_OUTPUT_TOKENS
            if not calls:
                return StopReason.ANSWERED
            await self._call_tools(calls, tools, session, play, at_once=params.get("parallel_tool_calls") is not False)
            if play.num_turns >= self.max_turns:
                return StopReason.MAX_TURNS

    async def _ask(self, request: TurnRequest, play: Play) -> Turn:
        started = time.perf_counter()
        try:
            turn = await self.endpoint.turn(request)
        except GymBridgeError as error:
            gone = getattr(error, "url", None) if getattr(error, "unreachable", False) else None
            raise RolloutError(FailureType.MODEL, str(error), status=getattr(error, "status", None), gone=gone) from error
        play.model_s += time.perf_counter() - started
        play.output += turn.items
        play.num_turns += 1
        play.usage += turn.usage
        play.incomplete_reason = turn.incomplete_reason
        play.model = turn.model
        if turn.tokens is not None:
            play.turns.append(turn.tokens)
        return turn

    async def _call_tools(
        self, calls: list[Item], tools: tuple[Item, ...], session: ToolSession, play: Play, *, at_once: bool
    ) -> None:
        started = time.perf_counter()
        known = {tool.get("name") for tool in tools}
        if at_once:
            outcomes = await _all_at_once([_call(call, known, session) for call in calls])
        else:
            outcomes = [await _call(call, known, session) for call in calls]
        for call, (output, failed) in zip(calls, outcomes, strict=True):
            play.output.append({"type": "function_call_output", "call_id": call["call_id"], "output": output})
            play.num_tool_errors += failed
        play.num_tool_calls += len(calls)
        play.tools_s += time.perf_counter() - started


async def _all_at_once(calls: list[Coroutine[Any, Any, tuple[str, bool]]]) -> list[tuple[str, bool]]:
    """Outcomes in order; when one raises, the others end before it is raised: they must not talk to a session that is over."""
    running = [asyncio.create_task(one) for one in calls]
    try:
        return await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _call(call: Item, known: set[Any], session: ToolSession) -> tuple[str, bool]:
    """Output of one tool call and whether it failed. A name that the task does not offer never becomes a URL."""
    name = call.get("name")
    if not isinstance(name, str) or name not in known or name in RESERVED or not ROUTE.fullmatch(name):
        return orjson.dumps({"error": f"Unknown tool: {name}"}).decode(), True
    try:
        arguments = orjson.loads(call.get("arguments") or "{}")
        if not isinstance(arguments, dict):
            raise ValueError(f"expected a JSON object, got {type(arguments).__name__}")
        orjson.dumps(arguments)  # it reads deeper objects than it writes
    except (ValueError, orjson.JSONEncodeError) as error:
        return orjson.dumps({"error": f"Invalid tool call arguments: {error}"}).decode(), True
    body, status = await session.call_tool(name, arguments)
    return body, status >= 400


def _items(task_input: str | list[Item]) -> tuple[Item, ...]:
    return ({"role": "user", "content": task_input},) if isinstance(task_input, str) else tuple(task_input)
