"""NeMo Gym's gymnasium dialect, in which this process is the agent: /reset, then a /step for each model call, /close."""

import logging
import uuid
from dataclasses import dataclass
from typing import Any

from gym_bridge.rollouts.failing import RolloutError, bad_status
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import RepeatedTurns
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.rows import response_object
from gym_bridge.rollouts.sessions.environment import Session, finite, numbered, params_of
from gym_bridge.rollouts.turn_loop import Conversation, TurnLoop, conversation_of
from gym_bridge.schemas.rollouts import FailureType, Item, RolloutKey, Row, StopReason
from gym_bridge.schemas.seams import Turn

CLOSE_TIMEOUT_S = 5.0
NO_OUTPUT = '{"error": "The environment gave no output for this call."}'

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What an environment answers: to /reset an observation and info, to /step all of it."""

    observation: str | None
    info: Row
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gymnasium:
    """The environment at the `url` of a gymnasium server.

    The reward is the sum over all steps, which the row tells one by one as `turn_rewards`. Observations are user messages: that of
    /reset ends the task's input, the others stand in the output. After a model call that a limit cut off, or that passed one, its
    step is made still, since its reward is due; only calls beyond `max_tool_calls` are not, and earn nothing.
    """

    url: str
    http: HttpClient
    loop: TurnLoop
    request_timeout_s: float

    async def play(self, row: Row, key: RolloutKey, play: Play) -> Played:
        """Reset, step until the environment or a limit ends it, close. Raises RolloutError."""
        params, sent = params_of(row), numbered(row, key)
        session = Session(self.http, self.url, timeout_s=self.request_timeout_s)
        with play.waiting_for("reset"):
            reply = await session.ask("/reset", sent, FailureType.SEED)
        closes = isinstance(reply.get("info"), dict) and reply["info"].get("supports_explicit_close") is True
        try:
            start = _observed(reply, FailureType.SEED)
            params = _observing(params, start.observation)
            episode = _Episode(self.loop, session, conversation_of(params, key), play, sent, start)
            stop = await episode.run()
        finally:
            if closes:  # also when the attempt fails or is cancelled: the server holds a slot for it
                await _close(session)
        return Played(
            row={
                **row,
                "responses_create_params": params,
                "response": response_object(key, play, params),
                "reward": episode.reward,
                "terminated": episode.last.terminated,
                "truncated": episode.last.truncated or not episode.last.terminated,
                "info": episode.last.info,
            },
            stop=stop,
        )


@dataclass(slots=True)
class _Episode:
    loop: TurnLoop
    session: Session
    conversation: Conversation
    play: Play
    sent: Row
    last: Step
    reward: float = 0.0

    async def run(self) -> StopReason:
        """Ask the model and step, until it is over."""
        play, limits = self.play, self.loop.limits
        repeated = RepeatedTurns()
        repeatable = self.last.info.get("supports_step_idempotency") is True
        while True:
            before = len(play.output)
            turn = await self.loop.ask(self.conversation, play)
            if turn is None:
                return StopReason.CONTEXT_OVERFLOW
            calls = [item for item in turn.items if item.get("type") == "function_call"]
            stop = limits.after_call(turn, calls, play, answers=False)
            if stop is StopReason.MAX_TOOL_CALLS:
                play.turn_rewards.append(0.0)
                return stop
            await self._step(turn, calls, repeatable=repeatable)
            if self.last.terminated or self.last.truncated:
                cut_off = turn.incomplete_reason is not None
                return stop if stop and cut_off else _ended(self.last)
            stop = stop or limits.after_tools(play, num_repeated=repeated.see(play.output[before:]))
            if stop is not None:
                return stop

    async def _step(self, turn: Turn, calls: list[Item], *, repeatable: bool) -> None:
        play, conversation = self.play, self.conversation
        latest = Play(output=list(turn.items), usage=turn.usage, incomplete_reason=turn.incomplete_reason, model=turn.model)
        payload = {**self.sent, "response": response_object(conversation.key, latest, conversation.params)}
        if repeatable:
            payload["_ng_step_request_id"] = uuid.uuid4().hex
        with play.waiting_for("step"):
            reply = await self._asked(payload, repeatable=repeatable)
        self.last = _stepped(reply)
        self.reward += self.last.reward
        if finite(self.reward) is None:
            raise RolloutError(FailureType.STEP, f"the rewards of the steps add up to {self.reward}")
        play.turn_rewards.append(self.last.reward)
        outputs = _tool_outputs(self.last.info, calls)
        unanswered = [] if self.last.terminated or self.last.truncated else _unanswered(calls, outputs)
        play.output += outputs + unanswered
        play.num_tool_calls += len(calls)
        play.num_tool_errors += len(unanswered)
        if self.last.observation:
            play.output.append(_user(self.last.observation))

    async def _asked(self, payload: Row, *, repeatable: bool) -> Row:
        """The reply to a step. It is made once; a server that knows steps by their id is asked again when a connection broke."""
        try:
            return await self.session.ask("/step", payload, FailureType.STEP)
        except RolloutError as error:
            failure = error.failure
            if not repeatable or failure.status is not None or failure.type is not FailureType.STEP:
                raise
        return await self.session.ask("/step", payload, FailureType.STEP)


async def _close(session: Session) -> None:
    """Give the server's slot back. What was played stands, whether that succeeds or not."""
    try:
        reply = await session.post("/close", {}, FailureType.STEP, timeout_s=CLOSE_TIMEOUT_S)
        if reply.status >= 300:
            raise bad_status(reply, FailureType.STEP, url=session.url, route="/close")
    except RolloutError as error:
        log.warning("%s: a session was not closed: %s", session.url, error)


def _ended(last: Step) -> StopReason:
    return StopReason.TERMINATED if last.terminated else StopReason.ENVIRONMENT_TRUNCATED


def _user(text: str) -> Item:
    return {"type": "message", "role": "user", "content": text}


def _observing(params: Row, observation: str | None) -> Row:
    """The parameters with the reset's observation as the last message of the input."""
    if not observation:
        return params
    given = params["input"]
    items = [_user(given)] if isinstance(given, str) else given
    return {**params, "input": [*items, _user(observation)]}


def _observed(reply: Row, failure: FailureType) -> Step:
    """Observation and info of a reply."""
    observation, info = reply.get("observation"), reply.get("info")
    if observation is not None and not isinstance(observation, str):
        raise RolloutError(failure, f"the observation is of type {type(observation).__name__}; expected a text or null")
    if info is not None and not isinstance(info, dict):
        raise RolloutError(failure, f"info is of type {type(info).__name__}; expected an object")
    return Step(observation=observation, info=info or {})


def _stepped(reply: Row) -> Step:
    """A /step reply, checked."""
    observed = _observed(reply, FailureType.STEP)
    reward = finite(reply.get("reward"))
    if reward is None:
        raise RolloutError(FailureType.STEP, f"/step gave the reward {reply.get('reward')!r}; expected a finite number")
    over = {name: reply.get(name, False) for name in ("terminated", "truncated")}
    for name, value in over.items():
        if not isinstance(value, bool):
            raise RolloutError(FailureType.STEP, f"/step gave {name!r} as {value!r}; expected true or false")
    return Step(observation=observed.observation, info=observed.info, reward=reward, **over)


def _tool_outputs(info: Row, calls: list[Item]) -> list[Item]:
    """What the tools gave that ran within a step."""
    given = info.get("tool_outputs") or []
    known = {call.get("call_id") for call in calls}
    if not isinstance(given, list) or not all(map(_is_output, given)):
        raise RolloutError(FailureType.STEP, "info.tool_outputs of /step is no list of objects with texts 'call_id' and 'output'")
    for one in given:
        if one["call_id"] not in known:
            raise RolloutError(FailureType.STEP, f"/step gave an output for {one['call_id']!r}, which is no call of this turn")
    return [{"type": "function_call_output", "call_id": one["call_id"], "output": one["output"]} for one in given]


def _is_output(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("call_id"), str) and isinstance(one.get("output"), str)


def _unanswered(calls: list[Item], outputs: list[Item]) -> list[Item]:
    """Outputs for the calls that the environment passed over: no model endpoint takes a call without one."""
    answered = {output["call_id"] for output in outputs}
    return [
        {"type": "function_call_output", "call_id": call.get("call_id"), "output": NO_OUTPUT}
        for call in calls
        if call.get("call_id") not in answered
    ]
