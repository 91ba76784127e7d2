"""What every dialect is to the collector, and the HTTP session that the dialects share."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from gym_bridge.rollouts.cookies import Cookies
from gym_bridge.rollouts.failing import RolloutError, bad_status, no_reply
from gym_bridge.rollouts.http import HttpClient, HttpError, Reply
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.schemas.rollouts import FAILURE_CLASS, ROLLOUT_INDEX, TASK_INDEX, FailureType, RolloutKey, Row

FAILURE_TYPES = frozenset(FailureType)


class Environment(Protocol):
    """Where rollouts are played: one dialect at one address. It serves any number of rollouts at once."""

    async def play(self, row: Row, key: RolloutKey, play: Play) -> Played:
        """Play the task `row` in a session of its own until it has its reward. Raises RolloutError.

        `play` is filled on the way, so that a failure can tell how far it came.
        """
        ...


class Session:
    """One rollout's conversation with a server: cookies of its own on shared connections."""

    def __init__(self, http: HttpClient, url: str, *, timeout_s: float):
        self.url = url.rstrip("/")
        self._http, self._timeout_s = http, timeout_s
        self._cookies = Cookies()

    async def post(
        self,
        route: str,
        payload: Any,
        failure: FailureType,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """The reply to a POST of JSON, whatever its status. Raises RolloutError with type `failure` where none comes."""
        try:
            return await self._http.post(
                f"{self.url}{route}",
                orjson.dumps(payload),
                timeout_s=self._timeout_s if timeout_s is None else timeout_s,
                headers={"Content-Type": "application/json", **(headers or {})},
                cookies=self._cookies,
            )
        except HttpError as error:
            raise no_reply(error, failure, url=self.url, route=route) from error

    async def ask(self, route: str, payload: Any, failure: FailureType) -> Row:
        """The JSON object that a POST is answered with. Raises RolloutError for anything else; a 422 faults the row."""
        reply = await self.post(route, payload, failure)
        if reply.status == 422 and faults_the_row(reply.body):
            message = f"{route} refused the row: {reply.short()}"
            raise RolloutError(FailureType.INVALID_ROW, message, status=422, terminal=True)
        if reply.status >= 300:
            raise bad_status(reply, failure, url=self.url, route=route)
        return json_object(reply, failure, route=route)


def json_object(reply: Reply, failure: FailureType, *, route: str) -> Row:
    """The JSON object in the body of a reply. Raises RolloutError with type `failure` for anything else."""
    try:
        found = orjson.loads(reply.body)
    except orjson.JSONDecodeError as error:
        raise RolloutError(failure, f"{route} answered no JSON: {reply.short()}", status=reply.status) from error
    if not isinstance(found, dict):
        raise RolloutError(failure, f"{route} answered {type(found).__name__}, not an object", status=reply.status)
    return found


def faults_the_row(refusal: bytes) -> bool:
    """Whether FastAPI's account of an invalid body names something else than the `response`, which is not the row's."""
    try:
        detail = orjson.loads(refusal)
    except orjson.JSONDecodeError:
        return True
    errors = detail.get("detail") if isinstance(detail, dict) else None
    if not isinstance(errors, list) or not errors:
        return True
    places = [error.get("loc") if isinstance(error, dict) else None for error in errors]
    return not all(isinstance(place, list) and place[:2] == ["body", "response"] for place in places)


def params_of(row: Row) -> Row:
    """The `responses_create_params` of a task. Raises RolloutError for a row that no conversation can be made of."""
    params = row.get("responses_create_params")
    given = params.get("input") if isinstance(params, dict) else None
    if not isinstance(params, dict) or given is None:
        raise _invalid("the task has no responses_create_params.input")
    if not isinstance(given, str) and not _objects(given):
        raise _invalid("responses_create_params.input is neither a text nor a list of objects")
    if not _objects(params.get("tools") or []):
        raise _invalid("responses_create_params.tools is no list of objects")
    return params


def numbered(row: Row, key: RolloutKey) -> Row:
    """The task as servers are sent it: with its indices, by which a verifier that compares siblings tells them apart."""
    return {**row, TASK_INDEX: key.task_index, ROLLOUT_INDEX: key.rollout_index}


def rewarded(verdict: Row) -> Row:
    """A verdict with its reward as a float.

    Raises RolloutError for a reward that is no finite number, and for a verdict that reports a failure: its reward is none.
    """
    if reported := verdict.get(FAILURE_CLASS):
        told = verdict.get("_ng_failure_judge_error")
        message = f"the verifier reported {reported!r}" + (f": {told}" if told else "")
        kind = FailureType(reported) if isinstance(reported, str) and reported in FAILURE_TYPES else FailureType.JUDGE
        raise RolloutError(kind, message, terminal=verdict.get("_ng_failure_terminal") is True)
    if verdict.get("_ng_no_persist"):
        raise RolloutError(FailureType.AGENT, "the agent gave the rollout up, and asks that it is not kept (_ng_no_persist)")
    reward = finite(verdict.get("reward"))
    if reward is None:
        message = f"the verifier gave the reward {verdict.get('reward')!r}; expected a finite number"
        raise RolloutError(FailureType.VERIFY, message)
    return {**verdict, "reward": reward}


def finite(value: Any) -> float | None:
    """A finite number as a float; None for anything else, and for a boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _invalid(message: str) -> RolloutError:
    return RolloutError(FailureType.INVALID_ROW, message, terminal=True)
