"""Posting to a model server that fails in every way, and how that is told."""

import asyncio
import pickle
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.rollouts.http import MAX_REPLY_BYTES
from gym_bridge.rollouts.models.model_http import EndpointError, ModelHttp
from tests.rollouts.model_stage import Answer, ModelServer, answer, client, model_server

NOW: dict[str, Any] = {"retry_after_ms": "1"}
FLAGS = ("unreachable", "timeout", "context_overflow", "configuration", "transient")


def posted(*answers: Answer, url: str = "{}", payload: Any = None, **options: Any) -> tuple[Any, ModelServer]:
    """What a post gives, the value or the error, and the server."""
    given: dict[str, Any] = {"api_key": None, "timeout_s": 10.0, **options}

    async def run() -> tuple[Any, ModelServer]:
        async with model_server(*answers) as server, client() as pool:
            try:
                http = ModelHttp(url.format(server.url), client=pool, **given)
                return await http.post("/chat/completions", payload or {"model": "m"}), server
            except EndpointError as error:
                return error, server

    return asyncio.run(run())


def flags(error: EndpointError) -> set[str]:
    return {name for name in FLAGS if getattr(error, name)}


async def reset(http: web.Request) -> web.StreamResponse:
    assert http.transport is not None
    http.transport.abort()
    return web.Response()


async def half(http: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(http)
    await response.write(b'{"id"')
    assert http.transport is not None
    http.transport.close()
    return response


async def hang(http: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3)
    return web.Response()


async def endless(http: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(http)
    for _ in range(MAX_REPLY_BYTES // (1 << 20) + 2):
        await response.write(b" " * (1 << 20))
    return response


def test_a_post_goes_under_the_base_with_key_headers_and_the_extra_body_last():
    value, server = posted(
        answer({"id": 1}),
        url="{}/?api-version=3",
        payload={"model": "m", "top_k": 1},
        api_key="sk-1",
        headers={"X-Team": "blue"},
        extra_body={"top_k": 5, "min_p": 0.1},
    )
    assert value == {"id": 1}
    assert server.bodies == [{"model": "m", "top_k": 5, "min_p": 0.1}]
    assert server.paths == ["/v1/chat/completions?api-version=3"]
    (headers,) = server.headers
    assert (headers["Authorization"], headers["X-Team"], headers["Content-Type"]) == ("Bearer sk-1", "blue", "application/json")


def test_without_a_key_no_authorization_is_sent():
    _, server = posted(answer({}))
    assert "Authorization" not in server.headers[0]


def test_a_header_of_the_user_stands_over_ours_whatever_its_case():
    _, server = posted(answer({}), api_key="sk-1", headers={"authorization": "Basic eA=="})
    assert server.headers[0].getall("Authorization") == ["Basic eA=="]


def test_a_user_in_the_url_becomes_basic_authorization_unless_there_is_a_key():
    async def run() -> list[str]:
        async with model_server(answer({})) as server, client() as pool:
            url = server.url.replace("http://", "http://ann:pass@")
            for key in (None, "sk-1"):
                await ModelHttp(url, client=pool, api_key=key, timeout_s=5).post("x", {})
            return [headers["Authorization"] for headers in server.headers]

    assert asyncio.run(run()) == ["Basic YW5uOnBhc3M=", "Bearer sk-1"]


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1?key=sk-1"])
def test_a_url_that_is_none_is_a_mistake_of_the_user_and_not_repeated(url: str):
    with pytest.raises(ConfigError, match="no http:// or https:// address") as raised:
        posted(answer({}), url=url)
    assert "sk-1" not in str(raised.value)


def test_a_payload_that_is_no_json_is_a_data_error():
    with pytest.raises(DataError, match="cannot be written as JSON"):
        posted(answer({}), payload={"text": "\ud800"})


@pytest.mark.parametrize(
    ("status", "requests", "told"),
    [
        (400, 1, set()),
        (401, 1, {"configuration"}),
        (403, 1, {"configuration"}),
        (404, 1, {"configuration"}),
        (405, 1, {"configuration"}),
        (408, 3, {"transient"}),
        (409, 3, {"transient"}),
        (422, 1, set()),
        (429, 3, {"transient"}),
        (500, 3, {"transient"}),
        (501, 1, {"configuration"}),
        (503, 3, {"transient"}),
    ],
)
def test_a_status_is_told_and_asked_again_where_that_may_help(status: int, requests: int, told: set[str]):
    error, server = posted(answer({"error": {"message": "too busy"}}, status=status, **NOW))
    assert (error.status, len(server.bodies), error.attempts, flags(error)) == (status, requests, requests, told)
    assert str(error) == f"{server.url}: HTTP {status}: too busy"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), flags(again), again.retry_after_s) == (str(error), told, 0.001)


def test_what_fails_once_succeeds_the_next_time():
    for first in (reset, half, answer(status=429, **NOW), answer(raw=b"", status=502)):
        value, server = posted(first, answer({"ok": True}))
        assert value == {"ok": True}
        assert len(server.bodies) == 2


@pytest.mark.parametrize("broken", [reset, half])
def test_a_connection_that_breaks_is_tried_again_and_no_unreachable_one(broken: Answer):
    error, server = posted(broken, max_retries=1)
    assert (len(server.bodies), error.status, flags(error)) == (2, None, {"transient"})


def test_an_endpoint_is_left_alone_for_as_long_as_it_asks():
    (value, _), took_s = timed(answer(status=429, Retry_After="0.3"), answer({"ok": True}))
    assert value == {"ok": True}
    assert took_s >= 0.3
    (value, _), took_s = timed(answer(status=429, Retry_After="9", retry_after_ms="0"), answer({"ok": True}))
    assert value == {"ok": True}
    assert took_s < 5


def timed(*answers: Answer) -> tuple[Any, float]:
    loop = asyncio.new_event_loop()
    started = loop.time()
    outcome = posted(*answers)
    took_s = loop.time() - started
    loop.close()
    return outcome, took_s


@pytest.mark.parametrize(("given", "low", "high"), [("60", 60, 60), ("soon", None, None), ("nan", None, None), ("date", 80, 90)])
def test_a_wait_beyond_the_calls_time_is_told_and_not_waited_for(given: str, low: float | None, high: float | None):
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True) if given == "date" else given
    error, server = posted(answer(status=503, Retry_After=value), timeout_s=2, max_retries=0 if low is None else 2)
    assert len(server.bodies) == 1
    assert error.retry_after_s is None if low is None else low <= error.retry_after_s <= high


def test_no_answer_in_time_is_a_timeout_that_is_not_tried_again():
    error, server = posted(hang, timeout_s=0.2)
    assert (len(server.bodies), error.status, flags(error)) == (1, None, {"timeout"})
    assert str(error) == f"{server.url}: no answer within 0.2 s"


def test_retries_stay_within_the_time_of_the_call():
    error, server = posted(answer(status=500), hang, timeout_s=1.0)
    assert (len(server.bodies), flags(error)) == (2, {"timeout"})


def test_nobody_at_the_address_is_unreachable():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    error, _ = posted(answer({}), url=url, max_retries=1)
    assert (flags(error), error.url, error.attempts) == ({"unreachable", "transient"}, url, 2)


@pytest.mark.parametrize(
    "raw", [b"<html>", b"{", b"", b"null", b"[]", b"3", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": "\\ud800"}', b'{"a": "\xff"}']
)
def test_a_body_that_is_no_json_object_is_an_error_that_shows_it(raw: bytes):
    error, server = posted(answer(raw=raw))
    assert (len(server.bodies), flags(error)) == (1, set())
    assert "expected" in str(error)
    assert raw.decode(errors="replace").replace("\\", "\\\\")[:5] in str(error)


def test_an_endless_body_is_an_error_and_not_read_to_its_end():
    error, server = posted(endless)
    assert (len(server.bodies), flags(error)) == (1, set())
    assert "longer than" in str(error)


def test_a_long_body_of_an_error_is_cut():
    error, _ = posted(answer(raw=b"x" * 100_000, status=400))
    assert str(error).endswith("x" * 490 + " ...")
    assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "in the error"}}, "in the error"),
        ({"error": "as text"}, "as text"),
        ({"object": "error", "message": "older vLLM", "code": 400}, "older vLLM"),
        ({"detail": "FastAPI"}, "FastAPI"),
        ({"detail": [{"loc": ["body", "seed"]}]}, '{"detail": [{"loc": ["body", "seed"]}]}'),
        ("Hit an exception in vllm_model", "Hit an exception in vllm_model"),
        ({}, "{}"),
    ],
)
def test_the_message_of_an_error_is_found_in_the_form_of_every_server(body: Any, said: str):
    error, server = posted(answer(body, status=400))
    assert str(error) == f"{server.url}: HTTP 400: {said}"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 2048 tokens. However, you requested 2070 tokens"),
        (400, "The decoder prompt (length 3000) is longer than the maximum model length of 2048."),
        (400, "Make sure that `max_model_len` is no smaller than the number of text tokens."),
        (400, "max_tokens must be at least 1, got -4."),
        (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
        (400, "Your input exceeds the context window of this model."),
        (400, "the request exceeds the available context size"),
        (413, "prompt is too long: 210000 tokens > 200000 maximum"),
        (500, "Input length (5000) exceeds model's maximum context length (4096)."),
    ],
)
def test_a_prompt_that_is_too_long_is_an_overflow_and_not_tried_again(status: int, message: str):
    error, server = posted(answer({"error": {"message": message, "code": status}}, status=status))
    assert (len(server.bodies), flags(error)) == (1, {"context_overflow"})


def test_the_code_of_an_overflow_is_enough():
    error, _ = posted(answer({"error": {"message": "no", "code": "context_length_exceeded"}}, status=400))
    assert flags(error) == {"context_overflow"}


@pytest.mark.parametrize("message", ["max_tokens must be at least 1, got 0.", "temperature must be at most 2"])
def test_another_wrong_request_is_no_overflow(message: str):
    error, _ = posted(answer({"error": {"message": message}}, status=400))
    assert flags(error) == set()


def test_an_account_without_quota_is_no_busy_server():
    error, server = posted(answer({"error": {"message": "pay", "code": "insufficient_quota"}}, status=429))
    assert (len(server.bodies), flags(error)) == (1, {"configuration"})


def test_a_redirect_is_not_followed_and_says_where_to():
    error, server = posted(answer(raw=b"", status=307, Location="https://other/v1"))
    assert flags(error) == {"configuration"}
    assert str(error) == f"{server.url}: HTTP 307, redirected to https://other/v1: (no body)"


def test_no_secret_reaches_an_error():
    echoed = {"error": {"message": "sk-secret Bearer sk-secret blue-team qwert%2Fz qwert/z ann s3cret!"}}
    for reply in (answer(echoed, status=401), answer(raw=str(echoed).encode()), answer([echoed])):

        async def run(given: Answer = reply) -> EndpointError:
            async with model_server(given) as server, client() as pool:
                url = server.url.replace("http://", "http://ann:s3cret%21@") + "?sig=qwert/z"
                http = ModelHttp(url, client=pool, api_key="sk-secret", timeout_s=5, headers={"X-Team": "blue-team"})
                with pytest.raises(EndpointError) as raised:
                    await http.post("/x", {})
                assert server.paths == ["/v1/x?sig=qwert/z"]
                assert raised.value.url == server.url
                return raised.value

        error = asyncio.run(run())
        assert "<key> <key> <X-Team> <query> <query> <user> <password>" in str(error)
        shown = str(error) + repr(error.__dict__) + repr(error.__cause__)
        assert not [word for word in ("secret", "blue", "qwert", "s3cret", " ann ") if word in shown]


def test_a_secret_across_the_cut_of_a_long_message_is_no_half_told():
    error, _ = posted(answer(raw=b"x" * 480 + b"sk-secret" * 20, status=400), api_key="sk-secret")
    assert "sk" not in str(error)
