"""The pool of connections: whole replies or a told reason why none came, bounded, and never a request sent twice."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from aiohttp import web

from gym_bridge.rollouts import http
from gym_bridge.rollouts.http import HttpClient, HttpError, Reply, YoungRequests, connections_for
from tests.rollouts.dialects import Handler, abort, answering, flood, half, hang
from tests.rollouts.stage import serving


async def drip(request: web.Request) -> web.StreamResponse:
    """A byte now and then, for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x")
        await asyncio.sleep(0.02)


def asking(handler: Handler, ask: Callable[[HttpClient, str], Awaitable[None]], **options: int) -> int:
    """Run `ask` against a server with one route; how many requests it got."""
    count = 0

    async def counting(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        return await handler(request)

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/x", counting)
        client = HttpClient(**options)
        async with serving(app) as url:
            try:
                await ask(client, f"{url}/x")
            finally:
                await client.close()

    asyncio.run(run())
    return count


@pytest.mark.parametrize(
    ("handler", "kind"), [(abort, "broken"), (half, "broken"), (flood, "too_large"), (hang, "timeout"), (drip, "timeout")]
)
def test_without_a_whole_reply_the_reason_is_told_and_the_request_is_not_sent_again(
    handler: Handler, kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http, "MAX_REPLY_BYTES", 100_000)

    async def ask(client: HttpClient, url: str) -> None:
        with pytest.raises(HttpError) as raised:
            await client.post(url, b"{}", timeout_s=0.4)
        assert raised.value.kind == kind
        assert str(raised.value)

    assert asking(handler, ask) == 1


@pytest.mark.parametrize("status", [200, 307, 404, 429, 500, 503])
def test_a_status_is_no_error_and_no_redirect_is_followed(status: int):
    async def ask(client: HttpClient, url: str) -> None:
        reply = await client.post(url, b"{}", timeout_s=20)
        assert (reply.status, reply.body) == (status, b"why")
        assert (await client.get(url, timeout_s=20)).status == status

    assert asking(answering("why", status=status), ask) == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://127.0.0.1:99999/x", "nowhere", "ftp://127.0.0.1/x", ""])
def test_an_address_where_nobody_answers_is_told_apart(url: str):
    async def ask(client: HttpClient, _: str) -> None:
        with pytest.raises(HttpError) as raised:
            await client.post(url, b"", timeout_s=20)
        assert raised.value.kind == "unreachable"

    assert asking(answering({}), ask) == 0


def test_a_request_on_a_connection_that_the_server_has_closed_is_not_sent_twice():
    async def close_after(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()  # the answer never goes out, although the request was worked on
        return web.Response()

    async def ask(client: HttpClient, url: str) -> None:
        for _ in range(3):
            with pytest.raises(HttpError) as raised:
                await client.post(url, b"{}", timeout_s=20)
            assert raised.value.kind == "broken"

    assert asking(close_after, ask) == 3


def test_no_more_connections_are_open_than_allowed_and_all_requests_are_answered():
    now = most = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return web.Response()

    async def ask(client: HttpClient, url: str) -> None:
        replies = await asyncio.gather(*(client.post(url, b"", timeout_s=20) for _ in range(20)))
        assert {reply.status for reply in replies} == {200}

    assert asking(handler, ask, max_connections=3) == 20
    assert most == 3


def test_many_that_begin_together_are_few_connections_to_a_quick_server_and_as_many_as_they_are_to_a_slow_one(monkeypatch):
    async def most_at_once(waiting_for: int) -> int:
        at_once = most = 0
        all_here = asyncio.Event()

        async def answer(request: web.Request) -> web.Response:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            if at_once == waiting_for:
                all_here.set()
            await all_here.wait()
            at_once -= 1
            return web.Response()

        app = web.Application()
        app.router.add_post("/x", answer)
        client = HttpClient()
        if not waiting_for:
            all_here.set()
        async with serving(app) as url:
            replies = await asyncio.gather(*(client.post(f"{url}/x", b"", timeout_s=30) for _ in range(600)))
            await client.close()
        assert {one.status for one in replies} == {200}
        return most

    assert asyncio.run(most_at_once(600)) == 600
    monkeypatch.setattr(http, "YoungRequests", partial(YoungRequests, young_s=30))  # however slowly this machine answers
    assert asyncio.run(most_at_once(0)) <= 256


def test_a_request_that_is_called_off_or_fails_makes_room_once():
    async def run() -> None:
        young = YoungRequests(most=1, young_s=0.05)

        async def ask(seconds: float) -> None:
            async with young.one():
                await asyncio.sleep(seconds)

        called_off = asyncio.create_task(ask(10))
        await asyncio.sleep(0.01)
        called_off.cancel()
        await asyncio.gather(called_off, return_exceptions=True)
        slow = asyncio.create_task(ask(0.2))
        await asyncio.sleep(0.01)
        began = time.monotonic()
        await ask(0.0)  # waits until the slow one is old
        assert 0.02 < time.monotonic() - began < 0.15
        await slow
        held = asyncio.create_task(ask(10))
        await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):  # neither has made room twice
            await asyncio.wait_for(ask(0.0), 0.02)
        held.cancel()

    asyncio.run(run())


def test_time_spent_waiting_for_a_connection_counts():
    async def ask(client: HttpClient, url: str) -> None:
        outcomes = await asyncio.gather(*(client.post(url, b"", timeout_s=0.3) for _ in range(2)), return_exceptions=True)
        assert [one.kind for one in outcomes if isinstance(one, HttpError)] == ["timeout", "timeout"]

    assert asking(hang, ask, max_connections=1) == 1


def test_a_client_can_be_closed_and_used_again():
    async def ask(client: HttpClient, url: str) -> None:
        for _ in range(2):
            assert (await client.get(url, timeout_s=20)).body == b"[1]"
            await client.close()
        await client.close()

    assert asking(answering([1]), ask) == 2


def test_a_body_in_a_message_is_unwrapped_and_cut():
    assert Reply(500, b"\"RuntimeError('x')\"", {}).short() == "RuntimeError('x')"
    assert Reply(500, b'"no end', {}).short() == '"no end'
    assert Reply(500, b"x" * 501, {}).short() == "x" * 500 + " ..."
    assert Reply(500, b"\xff", {}).short() == "\ufffd"


def test_the_descriptor_limit_is_shared_between_model_and_tools():
    model, tools = connections_for("model"), connections_for("tools")
    assert model == 2 * tools
    assert tools >= 1
