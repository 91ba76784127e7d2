"""NeMo Gym's agents, which play whole rollouts themselves: POST /run with a task answers its rollout's row."""

import ast
import re
from dataclasses import dataclass
from typing import Any

import orjson

from gym_bridge.rollouts.failing import RolloutError, bad_status
from gym_bridge.rollouts.http import HttpClient, Reply
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.policy_server.attribution import name_of, named, sampled_turns, unnamed
from gym_bridge.rollouts.policy_server.calls import PolicyServer
from gym_bridge.rollouts.sessions.environment import Session, faults_the_row, finite, json_object, numbered, params_of, rewarded
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, FailureType, Item, RolloutKey, Row, StopReason
from gym_bridge.schemas.seams import Usage
from gym_bridge.schemas.tokens import TurnTokens

INNER = re.compile(r"Hit an exception in \S* calling an inner server: (b(['\"]).*\2)\s*", re.DOTALL)
"""What NeMo Gym's servers make of another server's error: a JSON string, nested once for each server on the way."""
TOKEN_FIELDS = frozenset({"prompt_token_ids", "generation_token_ids", "generation_log_probs"})
SAID_BY_MODEL = ("message", "function_call", "reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The environment at the `url` of an agent. `timeout_s` is for a whole rollout.

    With `policy`, the agent's model is the policy that trains: every turn is then one that its endpoint sampled, with the version
    of the weights that did, and a rollout of which that cannot be said fails.
    """

    url: str
    http: HttpClient
    timeout_s: float
    policy: PolicyServer | None = None

    async def play(self, row: Row, key: RolloutKey, play: Play) -> Played:
        """Let the agent play. Raises RolloutError.

        The agent's row stands over the task's, which keeps what servers on the way dropped. Turns, tool calls and usage are read
        off the response; tokens are taken out of its items, and stand in `play.turns`.
        """
        params = params_of(row)
        sent = numbered(row, key)
        if play.attempt:
            sent[ATTEMPT_INDEX] = play.attempt
        if self.policy is None:
            return await self._play(row, sent, params, play)
        rollout = name_of(key, attempt=play.attempt)
        try:
            played = await self._play(row, named(sent, params, rollout), params, play)
            play.turns = sampled_turns(play, rollout, self.policy, agent_url=self.url)
            return Played(row=unnamed(played.row, row), stop=played.stop)
        finally:
            self.policy.calls.drop(rollout)

    async def _play(self, row: Row, sent: Row, params: Row, play: Play) -> Played:
        session = Session(self.http, self.url, timeout_s=self.timeout_s)
        with play.waiting_for("agent"):
            reply = await session.post("/run", sent, FailureType.AGENT)
        if reply.status >= 300:
            raise _failed(reply, session.url)
        answer = rewarded(json_object(reply, FailureType.AGENT, route="/run"))
        response = answer.get("response")
        if not isinstance(response, dict) or not isinstance(response.get("output"), list):
            raise RolloutError(FailureType.AGENT, "/run answered a reward without a response.output", status=reply.status)
        if not isinstance(answer.get("responses_create_params"), dict):
            answer["responses_create_params"] = params
        _read(response, play)
        stop = _stop(answer, play)
        _take_tokens(play)
        if play.turns:
            answer["response"] = {**response, "output": play.output}
        return Played(row={**row, **answer}, stop=stop)


def inner_body(body: bytes) -> tuple[str, int]:
    """The text of the server's error that lies innermost in an agent's, and how many servers passed it on."""
    text, depth = body.decode(errors="replace"), 0
    while True:
        if text.startswith('"'):
            try:
                text = str(orjson.loads(text))
            except orjson.JSONDecodeError:
                return text, depth
        wrapped = INNER.fullmatch(text)
        if wrapped is None:
            return text, depth
        try:
            text = ast.literal_eval(wrapped[1]).decode(errors="replace")
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text, depth
        depth += 1


def _failed(reply: Reply, url: str) -> RolloutError:
    """The error for an agent's error: a refused row is told from all else, though both are passed on as a 500."""
    text, depth = inner_body(reply.body)
    told = Reply(reply.status, text.encode(), reply.headers)
    # Refusals of the resources server come through one server; those of a model server through two.
    refused = reply.status == 422 or (depth == 1 and text.startswith('{"detail":['))
    if refused and faults_the_row(told.body):
        return RolloutError(FailureType.INVALID_ROW, f"/run refused the row: {told.short()}", status=422, terminal=True)
    return bad_status(told, FailureType.AGENT, url=url, route="/run")


def _stop(answer: Row, play: Play) -> StopReason:
    """Why the agent ended, as far as its row tells."""
    if play.incomplete_reason is not None:
        return StopReason.CONTENT_FILTER if play.incomplete_reason == "content_filter" else StopReason.MAX_OUTPUT_TOKENS
    if answer.get("terminated") is True:
        return StopReason.TERMINATED
    if answer.get("truncated") is True:
        return StopReason.ENVIRONMENT_TRUNCATED
    last = play.output[-1].get("type") if play.output else None
    return StopReason.MAX_TURNS if last in ("function_call", "function_call_output") else StopReason.AGENT_ENDED


def _read(response: Row, play: Play) -> None:
    """Fill `play` from a whole Responses object."""
    play.output = [item for item in response["output"] if isinstance(item, dict)]
    play.last_items = _last_items(play.output)
    play.num_turns = len(play.last_items)
    play.num_tool_calls = sum(item.get("type") == "function_call" for item in play.output)
    play.usage = _usage(response.get("usage"))
    play.model = response["model"] if isinstance(response.get("model"), str) else ""
    play.incomplete_reason = _incomplete_reason(response)


def _incomplete_reason(response: Row) -> str | None:
    details = response.get("incomplete_details")
    if isinstance(details, dict) and isinstance(details.get("reason"), str):
        return details["reason"]
    return "max_output_tokens" if response.get("status") == "incomplete" else None


def _last_items(output: list[Item]) -> list[int]:
    """For each model call the index of its last item.

    A call ends before a tool output or a message of somebody else, after an item with token ids, and before reasoning or text
    that follows its text or calls.
    """
    ends: list[int] = []
    open_call = said = False
    for index, item in enumerate(output):
        kind = item.get("type", "message")
        if kind not in SAID_BY_MODEL or (kind == "message" and item.get("role") != "assistant"):
            open_call = said = False
            continue
        if open_call and not (said and kind != "function_call"):
            ends[-1] = index
        else:
            ends.append(index)
            said = False
        open_call = not item.get("generation_token_ids")
        said = said or kind != "reasoning"
    return ends


def _take_tokens(play: Play) -> None:
    """Move the tokens that stand in the items to `play.turns`; weights of an unknown version count as 0.

    Calls without tokens, as when the prompt overflowed, have no turn there, and then `play.last_items` passes over them too.
    """
    found = [(index, tokens) for index in play.last_items if (tokens := _tokens(play.output[index])) is not None]
    if not found:
        return
    before: tuple[int, ...] = ()
    for index, (prompt, completion, logprobs) in found:
        turn = TurnTokens(
            prompt_ids=prompt,
            completion_ids=completion,
            logprobs=logprobs,
            policy_version=0,
            starts_segment=not before or prompt[: len(before)] != before,
        )
        play.turns.append(turn)
        before = turn.all_ids
        play.output[index] = {name: value for name, value in play.output[index].items() if name not in TOKEN_FIELDS}
    play.last_items = [index for index, _ in found]


def _tokens(item: Item) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]] | None:
    """NeMo Gym's token fields of an item; None where they are absent, or no tokens that anything was sampled from."""
    prompt, completion = _ids(item.get("prompt_token_ids")), _ids(item.get("generation_token_ids"))
    given = item.get("generation_log_probs")
    if not prompt or not completion or not isinstance(given, list) or len(given) != len(completion):
        return None
    logprobs = tuple(logprob for one in given if (logprob := finite(one)) is not None)
    return (prompt, completion, logprobs) if len(logprobs) == len(completion) else None


def _ids(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 2**31 for one in value):
        return None
    return tuple(value)


def _usage(reported: Any) -> Usage:
    if not isinstance(reported, dict):
        return Usage()
    return Usage(
        input_tokens=_count(reported, "input_tokens"),
        output_tokens=_count(reported, "output_tokens"),
        cached_tokens=_count(reported.get("input_tokens_details"), "cached_tokens"),
        reasoning_tokens=_count(reported.get("output_tokens_details"), "reasoning_tokens"),
    )


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if type(value) is int else 0
