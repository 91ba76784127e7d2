"""Posts to an OpenAI-compatible endpoint, and how its failures are told.

The calls go through aiohttp and orjson, not through the client of the `openai` package, whose types the endpoints name in
annotations alone. Measured on 2 cores, Python 3.11, a null server in a process of its own, 64 calls in flight, 1 KB replies
with reasoning and a tool call, medians of three runs in calls/s: Responses 423 by `openai` 3.52.0 (on httpx2 2.16.2), 13,400 by
`ModelHttp` (aiohttp 3.14.5, orjson 3.13.0), 15,100 by a bare aiohttp session; chat 666, 14,100 and 14,700.
"""

import asyncio
import random
import re
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
from multidict import CIMultiDict
from yarl import URL

from gym_bridge.errors import ConfigError, DataError, ServerError
from gym_bridge.rollouts.http import HttpClient, HttpError, Reply, retry_after_s
from gym_bridge.rollouts.models.redaction import Redaction

AGAIN = frozenset({408, 409, 429})
"""Statuses beside 5xx (but 501) after which the same request may succeed."""
CONFIGURATION = frozenset({301, 302, 303, 307, 308, 401, 402, 403, 404, 405, 410, 415, 501})
"""Statuses with which every other request would end as well."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
OVERFLOW_STATUSES = frozenset({400, 413, 422, 500})
OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size"  # the codes of OpenAI and of llama.cpp
    r"|maximum context length|max_model_len|maximum model length"  # vLLM
    r"|model's context length|context window|available context size|prompt is too long"  # SGLang, OpenAI, llama.cpp, Anthropic
    r"|max_(?:completion_)?tokens must be at least 1, got -",  # older vLLM: what is left of the context is negative
    re.IGNORECASE,
)
MESSAGE_LENGTH = 500
READ_OF_AN_ERROR = 64 << 10


class EndpointError(ServerError):
    """A model endpoint failed, or answered what is no reply of its wire."""

    unreachable = False
    """No connection could be made."""
    timeout = False
    """No whole reply came in time."""
    context_overflow = False
    """The conversation leaves no room in the model's context."""
    configuration = False
    """A wrong key, address, model name or setting: every other rollout would fail the same way."""
    transient = False
    """The same request may yet succeed."""
    retry_after_s: float | None = None
    """How long the endpoint asks to be left alone."""


class ModelHttp:
    """Posts JSON to one OpenAI-compatible endpoint: key, headers, extra body, retries of safe failures.

    `url` is the base to which routes are appended, with its `/v1` where the server has one. `headers` stand over our own
    and `extra_body` over every payload, key by key. A call may take `timeout_s` in all, whatever is tried within it. The
    pool of connections belongs to whoever made `client`. Raises ConfigError for a `url` that is no address.
    """

    def __init__(
        self,
        url: str,
        *,
        client: HttpClient,
        api_key: str | None,
        timeout_s: float,
        headers: Mapping[str, str] = {},
        extra_body: Mapping[str, Any] = {},
        max_retries: int = 2,
    ):
        base = _base(url)
        self.url = str(base.with_user(None).with_query(None))
        """The address as messages show it: without user, password and query."""
        self._query = f"?{base.raw_query_string}" if base.raw_query_string else ""
        self._client, self._timeout_s, self._max_retries = client, timeout_s, max_retries
        self._extra_body = dict(extra_body)
        self._headers = CIMultiDict({"Content-Type": "application/json"})
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        elif base.user is not None:
            user = b64encode(f"{base.user}:{base.password or ''}".encode()).decode()
            self._headers["Authorization"] = f"Basic {user}"
        self._headers.update(headers)
        secrets = [(api_key, "<key>"), (self._headers.get("Authorization"), "<key>")]
        secrets += [(base.user, "<user>"), (base.password, "<password>")]
        secrets += [(value, "<query>") for value in base.query.values()]
        self._redact = Redaction([*secrets, *((value, f"<{name}>") for name, value in headers.items())])

    async def post(self, route: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The object that `route` answers. Raises EndpointError, and DataError for a payload that is no JSON.

        Asked again, at most `max_retries` times within the time of the call: a connection that fails or breaks, 408, 409, 429
        and 5xx. The wait is what the reply asks for, else half to all of 0.5 s, 1 s, 2 s, ... 8 s; where the call has less
        time left than that, the error is raised at once.
        """
        try:
            body = orjson.dumps({**payload, **self._extra_body})
        except orjson.JSONEncodeError as error:
            raise DataError(f"the request to the model cannot be written as JSON: {error}") from error
        address = f"{self.url.rstrip('/')}/{route.lstrip('/')}{self._query}"
        deadline, attempt = time.monotonic() + self._timeout_s, 1
        while True:
            try:
                return await self._attempt(address, body, timeout_s=deadline - time.monotonic(), attempt=attempt)
            except EndpointError as error:
                wait_s = _wait_s(error, attempt)
                if not error.transient or attempt > self._max_retries or time.monotonic() + wait_s >= deadline:
                    raise
                failed = error
            await asyncio.sleep(wait_s)
            if time.monotonic() >= deadline:
                raise failed
            attempt += 1

    def error(self, message: str, *, status: int | None = None, attempts: int = 1) -> EndpointError:
        """An error of this endpoint about `message`, in which secrets are blotted out and what is too long is cut."""
        message = self._redact(message)
        message = message if len(message) <= MESSAGE_LENGTH else message[:MESSAGE_LENGTH] + " ..."
        return EndpointError(message, url=self.url, status=status, attempts=attempts)

    async def _attempt(self, address: str, body: bytes, *, timeout_s: float, attempt: int) -> dict[str, Any]:
        try:
            reply = await self._client.post(address, body, timeout_s=timeout_s, headers=self._headers)
        except HttpError as failure:
            message = f"no answer within {self._timeout_s:g} s" if failure.kind == "timeout" else str(failure)
            error = self.error(message, attempts=attempt)
            error.unreachable, error.timeout = failure.kind == "unreachable", failure.kind == "timeout"
            error.transient = failure.kind in ("unreachable", "broken")
            raise error from None  # what the client says may hold the whole address
        if not 200 <= reply.status < 300:
            raise self._refusal(reply, attempt)
        try:
            value = orjson.loads(reply.body)
        except orjson.JSONDecodeError as error:
            raise self.error(f"expected JSON, got {_text(reply)!r}: {error}", attempts=attempt) from None
        if not isinstance(value, dict):
            raise self.error(f"expected a JSON object, got {_text(reply)}", attempts=attempt)
        return value

    def _refusal(self, reply: Reply, attempt: int) -> EndpointError:
        said = _said(reply) or "(no body)"
        to = f", redirected to {reply.headers['Location']}" if "Location" in reply.headers else ""
        error = self.error(f"HTTP {reply.status}{to}: {said}", status=reply.status, attempts=attempt)
        text = _text(reply)
        out_of_quota = reply.status == 429 and "insufficient_quota" in text
        error.context_overflow = reply.status in OVERFLOW_STATUSES and OVERFLOW.search(text) is not None
        error.configuration = not error.context_overflow and (reply.status in CONFIGURATION or out_of_quota)
        passing = reply.status in AGAIN or reply.status >= 500
        error.transient = passing and not (error.context_overflow or error.configuration)
        error.retry_after_s = retry_after_s(reply.headers)
        return error


def _base(url: str) -> URL:
    with suppress(ValueError):
        base = URL(url).with_fragment(None)
        if base.scheme in ("http", "https") and base.host:
            return base
    raise ConfigError("the model's URL is no http:// or https:// address, such as http://localhost:8000/v1")


def _wait_s(error: EndpointError, attempt: int) -> float:
    if error.retry_after_s is not None:
        return error.retry_after_s
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def _text(reply: Reply) -> str:
    return reply.body[:READ_OF_AN_ERROR].decode(errors="replace")


def _said(reply: Reply) -> str:
    """The message of an error's body, in the forms of OpenAI, of older vLLM, of FastAPI and of NeMo Gym; else the body."""
    try:
        value = orjson.loads(_text(reply))
    except orjson.JSONDecodeError:
        return _text(reply)
    error = value.get("error") or value if isinstance(value, dict) else value
    message = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return message if isinstance(message, str) else _text(reply)
