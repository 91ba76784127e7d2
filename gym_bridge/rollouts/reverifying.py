"""Stored rollouts scored again, without sampling."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.http import HttpClient, HttpError
from gym_bridge.rollouts.plan import PlannedRollout
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.environment import Session, rewarded
from gym_bridge.schemas.rollouts import (
    ATTEMPT_INDEX,
    FAILURE_CLASS,
    ROLLOUT_INDEX,
    TASK_INDEX,
    FailureType,
    RolloutKey,
    Row,
    StopReason,
)
from gym_bridge.schemas.seams import Usage

COUNTS = ("num_turns", "num_tool_calls", "num_tool_errors")
VERIFICATIONS = frozenset({FailureType.VERIFY, FailureType.JUDGE})
CHECK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reverification:
    """An environment in which rollouts are not played but verified: a row brings its response."""

    url: str
    http: HttpClient
    request_timeout_s: float

    async def play(self, row: Row, key: RolloutKey, play: Play) -> Played:
        """POST /verify with the row as it is stored. Raises RolloutError."""
        fields = row.get("gym_bridge") or {}
        for name in COUNTS:
            setattr(play, name, fields.get(name) or 0)
        play.usage = Usage(input_tokens=fields.get("num_input_tokens") or 0, output_tokens=fields.get("num_output_tokens") or 0)
        stored = {name: value for name, value in row.items() if name not in ("gym_bridge", "reward")}
        if not isinstance(row.get("response"), dict):
            raise RolloutError(FailureType.INVALID_ROW, "the row has no response to verify", terminal=True)
        with play.waiting_for("verify"):
            session = Session(self.http, self.url, timeout_s=self.request_timeout_s)
            verdict = rewarded(await session.ask("/verify", stored, FailureType.VERIFY))
        kept = {name: row[name] for name in ("responses_create_params", "response") if name in row}
        return Played(row={**stored, **verdict, **kept}, stop=_stop(fields))


async def check_stateless(url: str, http: HttpClient) -> None:
    """Raises ConfigError unless the server says that it verifies without a session, ServerError where it does not answer."""
    try:
        reply = await http.get(f"{url.rstrip('/')}/reverify_mode", timeout_s=CHECK_TIMEOUT_S)
    except HttpError as error:
        raise ServerError(str(error), url=url) from error
    try:
        mode = orjson.loads(reply.body) if reply.status == 200 else f"status {reply.status}"
    except orjson.JSONDecodeError:
        mode = reply.short()
    if mode != "stateless":
        raise ConfigError(f"{url}: /reverify_mode answered {mode!r}, not 'stateless'; pass --force to verify all the same")


def stored_rollouts(rows: Iterable[Row], failures: Iterable[Row], *, only: Literal["all", "failed"]) -> Iterator[PlannedRollout]:
    """What is to be verified: rollouts, and the latest failed verification of those that never got a reward."""
    done: set[RolloutKey] = set()
    for position, row in enumerate(rows):
        key = _key(row, position)
        done.add(key)
        if only == "all":
            yield PlannedRollout(key=key, row=row, group=key.task_index)
    latest: dict[RolloutKey, Row] = {}
    for row in failures:
        key = _key(row, None)
        if key not in done and row.get(FAILURE_CLASS) in VERIFICATIONS and "response" in row:
            latest[key] = row
    for key, row in latest.items():
        told = {name: value for name, value in row.items() if name not in (FAILURE_CLASS, ATTEMPT_INDEX)}
        yield PlannedRollout(key=key, row=told, group=key.task_index)


def _key(row: Row, position: int | None) -> RolloutKey:
    task, rollout = row.get(TASK_INDEX, position), row.get(ROLLOUT_INDEX, 0)
    if type(task) is not int or type(rollout) is not int:
        raise ConfigError(f"a row has {TASK_INDEX} {task!r} and {ROLLOUT_INDEX} {rollout!r}; expected whole numbers")
    return RolloutKey(task, rollout)


def _stop(fields: dict[str, Any]) -> StopReason:
    try:
        return StopReason(fields.get("stop_reason") or "")
    except ValueError:
        return StopReason.AGENT_ENDED
