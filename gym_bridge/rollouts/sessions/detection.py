"""Finds out which dialect a server speaks."""

from typing import Literal

import orjson

from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.rollouts.http import HttpClient, HttpError, Reply
from gym_bridge.schemas.rollouts import Row

Dialect = Literal["seed_verify", "gymnasium", "agent"]
TIMEOUT_S = 30.0
NOT_THERE = frozenset({404, 405, 501})
MARKS: tuple[tuple[str, Dialect], ...] = (("/run", "agent"), ("/seed_session", "seed_verify"), ("/reset", "gymnasium"))
"""The route by which each dialect is known."""
PROBES: tuple[tuple[str, Dialect], ...] = (("/seed_session", "seed_verify"), ("/reset", "gymnasium"), ("/run", "agent"))
"""The order in which a server without a description is asked. An empty task is refused by an agent, and harmless to others."""


async def detect(url: str, http: HttpClient, *, timeout_s: float = TIMEOUT_S) -> Dialect:
    """The dialect of the resources server at `url`, by `/openapi.json`, then by what answers a POST.

    Raises ConfigError for an agent, and ServerError for a server that speaks no dialect or does not answer.
    """
    url = url.rstrip("/")
    dialect = _dialect_of(await description(url, http, timeout_s=timeout_s)) or await _probed(url, http, timeout_s)
    if dialect == "agent":
        raise ConfigError(f"{url} is an agent (it has /run), not a resources server; pass it as --agent-url {url}")
    return dialect


async def description(url: str, http: HttpClient, *, timeout_s: float = TIMEOUT_S) -> Row | None:
    """What the server at `url` says of itself: its `/openapi.json`; None where it has none. Raises ServerError for no answer."""
    url = url.rstrip("/")
    try:
        reply = await http.get(f"{url}/openapi.json", timeout_s=timeout_s)
    except HttpError as error:
        raise _unanswered(url, "GET /openapi.json", error) from error
    try:
        described = orjson.loads(reply.body) if reply.status < 300 else None
    except orjson.JSONDecodeError:
        return None
    return described if isinstance(described, dict) else None


def _dialect_of(described: Row | None) -> Dialect | None:
    """By its own description; None where it has none, or none that says."""
    paths = described.get("paths") if described is not None else None
    return next((dialect for route, dialect in MARKS if isinstance(paths, dict) and route in paths), None)


async def _probed(url: str, http: HttpClient, timeout_s: float) -> Dialect:
    tried: list[str] = []
    for route, dialect in PROBES:
        try:
            reply: Reply = await http.post(f"{url}{route}", b"{}", timeout_s=timeout_s)
        except HttpError as error:
            raise _unanswered(url, f"POST {route}", error) from error
        if reply.status not in NOT_THERE and not 300 <= reply.status < 400 and reply.status not in (401, 403):
            return dialect
        tried.append(f"POST {route} answered {reply.status}")
    message = f"speaks no dialect of NeMo Gym: GET /openapi.json names none of its routes, {', '.join(tried)}; expected the address"
    raise ServerError(f"{message} of a resources server, or --dialect", url=url)


def _unanswered(url: str, request: str, error: HttpError) -> ServerError:
    return ServerError(f"does not answer {request}: {error}; is the server running, and this its address?", url=url)
