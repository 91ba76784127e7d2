"""A resource server over real HTTP: endpoints, errors, sessions and tools."""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers.base import ResourceServer, Response, ShuffledRewards, Task, Verdict
from gym_bridge.resource_servers.serving import serve
from gym_bridge.resource_servers.sessions import SessionMissing
from gym_bridge.resource_servers.tools import tool


class CounterTask(Task):
    start: int
    expected: int


@dataclass
class Count:
    value: int


class Step(BaseModel):
    title: str
    size: int


class CounterServer(ResourceServer[CounterTask, Count]):
    """A counter that tools move."""

    Task = CounterTask

    @tool
    async def increase(self, session: Count, schema: int) -> dict[str, int]:
        """Count up."""
        await asyncio.sleep(0)
        session.value += schema
        return {"value": session.value}

    @tool
    async def follow(self, session: Count, steps: list[Step], title: str | None) -> str:
        """Take all steps."""
        session.value += sum(step.size for step in steps)
        return f"{title}: {session.value}"

    @tool
    async def fail(self, session: Count) -> None:
        """Always fail."""
        raise LookupError("no such thing")

    async def seed(self, task: CounterTask) -> Count:
        return Count(task.start)

    async def verify(self, task: CounterTask, response: Response, session: Count | None) -> Verdict:
        if session is None:
            raise SessionMissing
        reward = float("nan") if response.final_text == "nan" else float(session.value == task.expected)
        return Verdict(reward=reward, fields={"final": session.value})

    @classmethod
    def make_tasks(cls, knobs, *, num_tasks, seed, split):
        return iter([])


TASK: dict[str, Any] = {"responses_create_params": {"input": "count"}, "start": 3, "expected": 5, "id": "mine", "_ng_task_index": 7}
OUTPUT = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "done"}]}]


def with_server(server: ResourceServer, talk: Callable[[str], Awaitable[Any]]) -> Any:
    """What `talk(url)` returns, while `server` answers on a free port."""

    async def run() -> Any:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(server, port=0, on_ready=ready.set_result))
        try:
            return await asyncio.wait_for(talk(await ready), 60)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    return asyncio.run(run())


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


async def post(http: aiohttp.ClientSession, url: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post(url, data=io.BytesIO(data)) as reply:
        return reply.status, await reply.json()


def replies(*requests: tuple[str, Any], server: ResourceServer | None = None) -> list[tuple[int, Any]]:
    """Status and JSON of POSTs to a server, one after the other with one cookie jar."""

    async def talk(url: str) -> list[tuple[int, Any]]:
        async with client() as http:
            return [await post(http, url + path, body) for path, body in requests]

    return with_server(server or CounterServer(), talk)


def test_a_rollout_is_seeded_uses_tools_and_gets_its_whole_row_back():
    row = {**TASK, "response": {"output": OUTPUT}}
    seeded, first, second, verified = replies(
        ("/seed_session", TASK), ("/increase", {"schema": 1}), ("/increase", {"schema": 1}), ("/verify", row)
    )
    assert seeded == (200, {})
    assert first == (200, {"value": 4})
    assert second == (200, {"value": 5})
    assert verified == (200, {**row, "final": 5, "reward": 1.0})


def test_whole_numbers_beyond_64_bits_come_back_as_they_went():
    row = {**TASK, "serial": 10**40, "response": {"output": []}}
    assert replies(("/seed_session", TASK), ("/verify", row))[1][1]["serial"] == 10**40


def test_a_tool_without_a_session_is_refused_as_nemo_gym_does():
    refused = (400, {"detail": "Session not initialized. Please call seed_session first."})
    assert replies(("/increase", {"schema": 1}), ("/verify", {**TASK, "response": {"output": []}})) == [refused, refused]


def test_a_forged_cookie_opens_no_session():
    async def talk(url: str) -> list[int]:
        async with aiohttp.ClientSession() as http, http.post(url + "/seed_session", json=TASK) as reply:
            (cookie,) = reply.cookies.values()
        session_id, signature = cookie.value.split(".")
        forged = [f"{session_id}.{'0' * 64}", f"other.{signature}", session_id, "", ".", "\udcff"]
        statuses = []
        for value in [cookie.value, *forged]:
            async with aiohttp.ClientSession() as http:
                headers = {"Cookie": f"{cookie.key}={value}".encode(errors="surrogateescape").decode("latin-1")}
                async with http.post(url + "/increase", json={"schema": 1}, headers=headers) as reply:
                    statuses.append(reply.status)
        return statuses

    assert with_server(CounterServer(), talk) == [200, 400, 400, 400, 400, 400, 400]


def test_every_reply_of_a_session_sets_its_cookie_again():
    async def talk(url: str) -> list[dict[str, str]]:
        async with client() as http:
            cookies = []
            for path, body in [("/seed_session", TASK), ("/increase", {"schema": 1}), ("/increase", {}), ("/fail", {})]:
                async with http.post(url + path, json=body) as reply:
                    cookies.append({key: one.value for key, one in reply.cookies.items()})
                    assert all(
                        one["httponly"] and one["path"] == "/" and one["samesite"] == "Lax" for one in reply.cookies.values()
                    )
            return cookies

    first, *later = with_server(CounterServer(), talk)
    assert len(first) == 1
    assert later == [first] * 3


def test_fifty_interleaved_sessions_stay_apart():
    async def talk(url: str) -> list[int]:
        async def rollout(start: int) -> int:
            async with client() as http:
                await post(http, url + "/seed_session", {**TASK, "start": start * 1000})
                for _ in range(5):
                    await post(http, url + "/increase", {"schema": start})
                _, row = await post(http, url + "/verify", {**TASK, "response": {"output": OUTPUT}})
                return row["final"]

        return await asyncio.gather(*(rollout(start) for start in range(50)))

    assert with_server(CounterServer(), talk) == [start * 1000 + 5 * start for start in range(50)]


@pytest.mark.parametrize(
    ("path", "body", "loc", "kind"),
    [
        ("/seed_session", {"responses_create_params": {}, "start": 1}, ["body", "expected"], "missing"),
        ("/seed_session", {**TASK, "start": "x"}, ["body", "start"], "int_parsing"),
        ("/seed_session", [], ["body"], "dict_type"),
        ("/seed_session", b"{", ["body"], "json_invalid"),
        ("/seed_session", b'{"a": NaN}', ["body"], "json_invalid"),
        ("/seed_session", b"[" * 100_000, ["body"], "json_invalid"),
        ("/verify", TASK, ["body", "response"], "missing"),
        ("/verify", {**TASK, "response": {"output": [1]}}, ["body", "response", "output", 0], "dict_type"),
        ("/increase", {"schema": 1, "other": 2}, ["body", "other"], "extra_forbidden"),
        ("/increase", {}, ["body", "schema"], "missing"),
        ("/follow", {"title": None, "steps": [{"title": "a"}]}, ["body", "steps", 0, "size"], "missing"),
        ("/aggregate_metrics", {}, ["body", "verify_responses"], "missing"),
    ],
)
def test_a_body_that_fails_validation_is_answered_with_its_place(path: str, body: Any, loc: list, kind: str):
    status, reply = replies((path, body))[0]
    (detail,) = reply["detail"]
    assert (status, detail["loc"], detail["type"]) == (422, loc, kind)
    assert detail.keys() == {"loc", "msg", "type"}


def test_errors_have_nemo_gyms_shapes():
    async def talk(url: str) -> dict[str, tuple[int, Any]]:
        async with client() as http:
            await post(http, url + "/seed_session", TASK)
            got = {path: await post(http, url + path, {}) for path in ("/nowhere", "/fail", "/", "/increase/../verify/")}
            async with http.get(url + "/increase") as reply:
                got["GET"] = reply.status, await reply.json()
            got["nan"] = await post(http, url + "/verify", {**TASK, "response": {"output": [{**OUTPUT[0], "content": "nan"}]}})
            got["large"] = await post(http, url + "/increase", b" " * (8 * 2**20 + 1))
            return got

    assert with_server(CounterServer(), talk) == {
        "/nowhere": (404, {"detail": "Not Found"}),
        "/fail": (500, "LookupError('no such thing')"),
        "/": (405, {"detail": "Method Not Allowed"}),
        "/increase/../verify/": (404, {"detail": "Not Found"}),
        "GET": (405, {"detail": "Method Not Allowed"}),
        "nan": (500, "ValueError('reward nan is not a finite float')"),
        "large": (413, {"detail": "Request Entity Too Large"}),
    }


def test_a_body_that_does_not_decompress_is_the_clients_fault():
    async def talk(url: str) -> int:
        request = {"url": url + "/seed_session", "data": b"not gzip", "headers": {"Content-Encoding": "gzip"}}
        async with aiohttp.ClientSession() as http, http.post(**request) as reply:
            return reply.status

    assert with_server(CounterServer(), talk) == 422


def test_the_server_says_that_it_lives_and_whether_it_can_verify_again():
    async def talk(url: str) -> list[Any]:
        async with aiohttp.ClientSession() as http:
            return [await (await http.get(url + path)).json() for path in ("/", "/reverify_mode")]

    assert with_server(CounterServer(), talk) == [{"status": "ok"}, "stateless"]
    assert with_server(CounterServer(shuffle_rewards=True), talk) == [{"status": "ok"}, "unsupported"]


def test_metrics_are_those_of_every_number_by_task_and_over_all():
    rows = [
        {
            "reward": 1.0,
            "_ng_task_index": 4,
            "_ng_rollout_index": 0,
            "right": True,
            "note": "x",
            "response": {"usage": {"total_tokens": 8}},
        },
        {"reward": 0.0, "_ng_task_index": 4, "_ng_rollout_index": 1, "right": False, "response": None},
        {"reward": 0.5, "_ng_task_index": 2, "_ng_rollout_index": 0},
    ]
    status, metrics = replies(("/aggregate_metrics", {"verify_responses": rows}))[0]
    assert status == 200
    tokens = {f"{name}/total_tokens": 8.0 for name in ("mean", "max", "min", "median")} | {"std/total_tokens": 0.0}
    reward = {"mean/reward": 0.5, "max/reward": 1.0, "min/reward": 0.0, "median/reward": 0.5, "std/reward": 0.5}
    right = {"mean/right": 0.5, "max/right": 1.0, "min/right": 0.0, "median/right": 0.5, "std/right": pytest.approx(0.5**0.5)}
    assert metrics["agent_metrics"] == {
        **reward,
        **right,
        **tokens,
    }
    alone = {"mean/reward": 0.5, "max/reward": 0.5, "min/reward": 0.5, "median/reward": 0.5, "std/reward": 0.0, "_ng_task_index": 2}
    assert metrics["group_level_metrics"][0] == alone
    assert metrics["group_level_metrics"][1]["std/reward"] == pytest.approx(0.5**0.5)
    assert metrics["key_metrics"] == {"mean/reward": 0.5, "mean/right": 0.5, "mean/total_tokens": 8.0}
    empty = {"group_level_metrics": [], "agent_metrics": {}, "key_metrics": {}}
    assert replies(("/aggregate_metrics", {"verify_responses": []})) == [(200, empty)]


def test_a_tools_schema_derives_from_its_signature():
    increase, follow, fail = CounterServer.tools()
    assert increase == {
        "type": "function",
        "name": "increase",
        "description": "Count up.",
        "parameters": {
            "type": "object",
            "properties": {"schema": {"type": "integer"}},
            "required": ["schema"],
            "additionalProperties": False,
        },
        "strict": True,
    }
    assert follow["parameters"]["properties"]["title"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert follow["parameters"]["$defs"]["Step"]["properties"] == {"title": {"type": "string"}, "size": {"type": "integer"}}
    assert fail["parameters"] == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def test_nested_arguments_reach_a_tool_as_the_models_of_its_signature():
    body = {"steps": [{"title": "a", "size": 2}, {"title": "b", "size": 5}], "title": None}
    assert replies(("/seed_session", TASK), ("/follow", body))[1] == (200, "None: 10")


def test_methods_that_cannot_be_strict_tools_are_refused():
    class Default(CounterServer):
        @tool
        async def bad(self, session: Count, a: int = 1) -> None:
            """Has a default."""

    class Untyped(CounterServer):
        @tool
        async def bad(self, session: Count, a) -> None:
            """Has no type."""

    class Undescribed(CounterServer):
        @tool
        async def bad(self, session: Count) -> None: ...

    class Reserved(CounterServer):
        @tool
        async def aggregate_metrics(self, session: Count) -> None:
            """Shadows an endpoint."""

    for server, words in [(Default, "no defaults"), (Untyped, "name: type"), (Undescribed, "docstring"), (Reserved, "reserved")]:
        with pytest.raises(ConfigError, match=words):
            server.tools()


def test_a_port_in_use_and_a_port_that_does_not_exist_are_one_line():
    async def talk(url: str) -> None:
        port = int(url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"^port {port} on 127.0.0.1 is in use; choose another or --port 0$"):
            await serve(CounterServer(), port=port, on_ready=print)
        with pytest.raises(ConfigError, match=r"^port 70000 does not exist"):
            await serve(CounterServer(), port=70000, on_ready=print)

    with_server(CounterServer(), talk)


def test_shuffled_rewards_keep_their_distribution_and_lose_their_signal():
    shuffle = ShuffledRewards(pool_size=100)
    given_rewards = [float(index % 4 == 0) for index in range(8000)]
    returned = [shuffle(reward) for reward in given_rewards]
    mean = sum(returned) / len(returned)
    agreement = sum(a == b for a, b in zip(given_rewards, returned, strict=True)) / len(returned)
    assert mean == pytest.approx(0.25, abs=0.02)
    assert agreement == pytest.approx(0.25 * 0.25 + 0.75 * 0.75, abs=0.02)


def test_final_text_is_what_the_assistant_said_after_its_last_tool_call():
    def message(text: Any, role: str = "assistant") -> dict[str, Any]:
        return {"type": "message", "role": role, "content": text}

    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    parts = [
        {"type": "output_text", "text": "4"},
        {"type": "refusal", "refusal": "9"},
        3,
        {"text": 5},
        {"type": "output_text", "text": "8"},
    ]
    cases = [
        ([], ""),
        ([message("48")], "48"),
        ([message("49"), message("50")], "49\n50"),
        ([message("48"), call], ""),
        ([message("1"), call, {"type": "function_call_output", "call_id": "c", "output": "2"}, message(parts)], "48"),
        ([message("48"), {"type": "reasoning", "summary": []}], "48"),
        ([message("48", "user")], ""),
        ([message(None)], ""),
    ]
    assert [Response(output=output).final_text for output, _ in cases] == [text for _, text in cases]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["schema", "steps", "output", "usage", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
keys = st.sampled_from(
    ["responses_create_params", "start", "expected", "response", "verify_responses", "schema", "steps", "title", "reward"]
)
fields = st.dictionaries(keys, json_values)
verify_bodies = st.builds(
    lambda output, extra: {**TASK, **extra, "response": {"output": output}}, st.lists(json_values, max_size=3), fields
)
verified = st.dictionaries(st.sampled_from(["reward", "_ng_task_index", "response"]), json_values)
metrics_bodies = st.builds(lambda rows: {"verify_responses": rows}, st.lists(verified, max_size=4))
bodies = st.binary(max_size=60) | json_values | fields | verify_bodies | metrics_bodies
paths = st.sampled_from(["/seed_session", "/verify", "/aggregate_metrics", "/increase", "/follow", "/reverify_mode", "/"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(paths, bodies), min_size=1, max_size=12))
def test_no_body_makes_the_server_fail_or_hang(requests: list[tuple[str, Any]]):
    for path, (status, _) in zip([path for path, _ in requests], replies(("/seed_session", TASK), *requests)[1:], strict=True):
        assert status in ({405} if path in ("/", "/reverify_mode") else {200, 400, 422})
