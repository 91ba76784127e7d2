"""The agent: asks the model, calls the tools that it names, until it answers or a limit stops it."""

import asyncio
import re
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import orjson

from gym_bridge.errors import ContextOverflowError, DataError, GymBridgeError
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.limits import Limits, RepeatedTurns
from gym_bridge.rollouts.models.model_http import EndpointError
from gym_bridge.rollouts.play import Play
from gym_bridge.schemas.rollouts import FailureType, Item, RolloutKey, StopReason
from gym_bridge.schemas.seams import ModelEndpoint, Turn, TurnRequest
from gym_bridge.schemas.tokens import SampleKey

RESERVED = frozenset({"seed_session", "verify", "aggregate_metrics", "reverify_mode", "mcp", "reset", "step", "close"})
"""Routes that are no tools, even where a task's row offers them."""
ROUTE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class ToolSession(Protocol):
    """The part of a session that the turn loop needs."""

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """Text of one tool call's result, and whether it is an error. Raises RolloutError where no answer came."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a rollout begins with: its task's items and tools, and the parameters of every model call."""

    key: RolloutKey
    items: tuple[Item, ...]
    tools: tuple[Item, ...]
    """In the flat Responses form."""
    params: Mapping[str, Any]
    """Responses parameters."""


def conversation_of(params: Mapping[str, Any], key: RolloutKey, *, more_tools: tuple[Item, ...] = ()) -> Conversation:
    """The conversation that a task's `responses_create_params` ask for."""
    given = params["input"]
    items = ({"role": "user", "content": given},) if isinstance(given, str) else tuple(given)
    return Conversation(key=key, items=items, tools=(*(params.get("tools") or ()), *more_tools), params=params)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLoop:
    """Plays one rollout after NeMo Gym's SimpleAgent; tool calls of one turn run at once unless the task forbids it."""

    endpoint: ModelEndpoint
    limits: Limits
    seed: int

    async def play(self, conversation: Conversation, session: ToolSession, play: Play) -> StopReason:
        """Play until a stop reason; `play` holds what was reached, also when this raises RolloutError."""
        repeated = RepeatedTurns()
        at_once = conversation.params.get("parallel_tool_calls") is not False
        while True:
            before = len(play.output)
            turn = await self.ask(conversation, play)
            if turn is None:
                return StopReason.CONTEXT_OVERFLOW
            calls = _calls_of(turn)
            stop = self.limits.after_call(turn, calls, play)
            if stop is not None:
                return stop
            if calls:
                await _call_tools(calls, conversation.tools, session, play, at_once=at_once)
            stop = self.limits.after_tools(play, num_repeated=repeated.see(play.output[before:]))
            if stop is not None:
                return stop

    async def ask(self, conversation: Conversation, play: Play) -> Turn | None:
        """One model call over the task's items and the output so far, taken into `play`.

        None when what was played no longer fits the model's context. Raises RolloutError when the endpoint fails.
        """
        key = conversation.key
        request = TurnRequest(
            items=(*conversation.items, *play.output),
            tools=conversation.tools,
            params=conversation.params,
            key=SampleKey(self.seed, key.task_index, key.rollout_index, play.num_turns),
            previous=play.turns[-1] if play.turns else None,
        )
        try:
            with play.waiting_for("model"):
                turn = await self.endpoint.turn(request)
        except GymBridgeError as error:
            if play.num_turns and _overflows(error):
                return None
            raise _model_failure(error) from error
        play.add(turn)
        return turn


def _calls_of(turn: Turn) -> list[Item]:
    """The function calls of a turn. Raises RolloutError for one without a call_id, which nothing could answer."""
    calls = [item for item in turn.items if item.get("type") == "function_call"]
    if not all(isinstance(call.get("call_id"), str) for call in calls):
        raise RolloutError(FailureType.MODEL, "the model's endpoint gave a function_call without a call_id")
    return calls


def _overflows(error: GymBridgeError) -> bool:
    return isinstance(error, ContextOverflowError) or (isinstance(error, EndpointError) and error.context_overflow)


def _model_failure(error: GymBridgeError) -> RolloutError:
    if _overflows(error):
        return RolloutError(FailureType.CONTEXT_OVERFLOW, str(error), terminal=True)
    if isinstance(error, DataError):  # the task asks for what this endpoint cannot be asked
        return RolloutError(FailureType.INVALID_ROW, str(error), terminal=True)
    if not isinstance(error, EndpointError):
        return RolloutError(FailureType.MODEL, str(error))
    return RolloutError(
        FailureType.TIMEOUT if error.timeout else FailureType.MODEL,
        str(error),
        status=error.status,
        url=error.url,
        blocks="gone" if error.unreachable else "refused" if error.configuration else None,
        retry_after_s=error.retry_after_s,
    )


async def _call_tools(calls: list[Item], tools: tuple[Item, ...], session: ToolSession, play: Play, *, at_once: bool) -> None:
    known = {tool.get("name") for tool in tools}
    names = sorted({call["name"] for call in calls if _is_route(call.get("name"), known)})
    with play.waiting_for(f"tool {', '.join(names)}" if names else "tool", counted_as="tools"):
        if at_once and len(calls) > 1:
            outcomes = await _all_at_once([_call(call, known, session) for call in calls])
        else:
            outcomes = [await _call(call, known, session) for call in calls]
    for call, (output, failed) in zip(calls, outcomes, strict=True):
        play.output.append({"type": "function_call_output", "call_id": call["call_id"], "output": output})
        play.num_tool_errors += failed
    play.num_tool_calls += len(calls)


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
    if not _is_route(name, known):
        return orjson.dumps({"error": f"Unknown tool: {name}"}).decode(), True
    try:
        arguments = orjson.loads(call.get("arguments") or "{}")
        if not isinstance(arguments, dict):
            raise ValueError(f"expected a JSON object, got {type(arguments).__name__}")
        orjson.dumps(arguments)  # it reads deeper objects than it writes
    except (ValueError, orjson.JSONEncodeError) as error:
        return orjson.dumps({"error": f"Invalid tool call arguments: {error}"}).decode(), True
    return await session.call_tool(name, arguments)


def _is_route(name: Any, known: set[Any]) -> TypeGuard[str]:
    """Whether a name that the model wrote is one of the `known` tools, and fit for a URL and for a log."""
    return isinstance(name, str) and name in known and name not in RESERVED and ROUTE.fullmatch(name) is not None
