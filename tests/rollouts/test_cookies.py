"""Cookies of one rollout, set and read back by a real server."""

import asyncio

import pytest
from aiohttp import web

from gym_bridge.rollouts.cookies import Cookies
from gym_bridge.rollouts.http import HttpClient
from tests.rollouts.stage import serving

SESSION = "session=eyJpZCI6IDF9.aJx3Qg.m0Yq; path=/; Max-Age=1209600; httponly; samesite=lax"


def sent_after(*replies: list[str], route: str = "/verify") -> str | None:
    """The Cookie header of a request to `route`, after as many requests to /a/seed whose replies set cookies."""
    seen: list[str | None] = []
    remaining = list(replies)

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        response = web.Response(text="{}")
        for line in remaining.pop(0) if remaining else []:
            response.headers.add("Set-Cookie", line)
        return response

    async def talk() -> None:
        app = web.Application()
        app.router.add_post("/{route:.*}", answer)
        http, cookies = HttpClient(), Cookies()
        async with serving(app) as url:
            for _ in replies:
                await http.post(f"{url}/a/seed", b"{}", timeout_s=5, cookies=cookies)
            await http.post(url + route, b"{}", timeout_s=5, cookies=cookies)
            await http.close()

    asyncio.run(talk())
    return seen[-1]


def test_a_session_cookie_goes_back_to_every_route_as_it_came():
    assert sent_after([SESSION]) == "session=eyJpZCI6IDF9.aJx3Qg.m0Yq"


def test_the_newest_value_of_a_cookie_counts():
    assert sent_after([SESSION], ["session=2; path=/", "b=3; path=/"]) == "session=2; b=3"


@pytest.mark.parametrize(
    "gone",
    ["session=null; path=/; expires=Wed, 21 Oct 2015 07:28:00 GMT", "session=; path=/; Max-Age=0"],
)
def test_a_cookie_that_the_server_deletes_is_sent_no_more(gone: str):
    assert sent_after([SESSION, "kept=1; path=/"], [gone]) == "kept=1"


def test_a_cookie_for_some_routes_goes_to_them_alone():
    narrow = ["narrow=1; path=/a", SESSION.replace("session", "wide")]
    assert sent_after(narrow, route="/verify") == "wide=eyJpZCI6IDF9.aJx3Qg.m0Yq"
    assert set(str(sent_after(narrow, route="/a/b")).split("; ")) == {"narrow=1", "wide=eyJpZCI6IDF9.aJx3Qg.m0Yq"}


def test_a_cookie_without_a_path_belongs_to_the_routes_beside_the_one_that_set_it():
    assert sent_after(["own=1"], route="/a/b") == "own=1"
    assert sent_after(["own=1"], route="/b") is None


def test_a_cookie_for_encrypted_connections_stays_at_home():
    assert sent_after(["secret=1; path=/; secure"]) is None


def test_no_cookie_no_header():
    assert sent_after([]) is None
