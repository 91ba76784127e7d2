"""The frame of resource servers: settings, files, entry points, steps, deadlines, tokens, workers, the guide's example."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import registry
from gym_bridge.resource_servers.base import ResourceServer, Response, Step, StepwiseServer, Task, Verdict, VerificationFailed
from gym_bridge.resource_servers.http import application
from gym_bridge.resource_servers.process import ServerProcess
from gym_bridge.resource_servers.registry import load_server, make_server
from gym_bridge.resource_servers.serving import token_for
from gym_bridge.resource_servers.sessions import Sessions
from gym_bridge.resource_servers.tools import tool
from gym_bridge.schemas.addresses import TOKEN_VARIABLE
from tests.rollouts.stage import serving

GUIDE = Path(__file__).parents[2] / "docs" / "write_a_resource_server.md"
ROW: dict[str, Any] = {"responses_create_params": {"input": "x"}}
ANSWER = {"output": [{"type": "message", "role": "assistant", "content": "up"}]}


class Greeting(StrictModel):
    """How to greet."""

    word: str
    times: int = 1


class Greeter(ResourceServer[Task, list[str]]):
    """Greets as its settings say; slow, broken or unsure where the task asks for it."""

    Task = Task
    Settings = Greeting
    stateless: ClassVar[bool] = True
    deadline_s = 0.2

    @tool
    async def greet(self, session: list[str], name: str) -> str:
        """Greet."""
        assert isinstance(self.settings, Greeting)
        session.append(name)
        return " ".join([self.settings.word] * self.settings.times + [name])

    @tool
    async def sleep(self, session: list[str], seconds: float) -> None:
        """Take long."""
        await asyncio.sleep(seconds)

    async def seed(self, task: Task) -> list[str]:
        return []

    async def verify(self, task: Task, response: Response, session: list[str] | None) -> Verdict:
        raise VerificationFailed("the judge is asleep")

    @classmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: str) -> Iterator[Any]:
        return iter([ROW] * num_tasks)


@dataclass
class Floor:
    """Where the lift is."""

    number: int
    ended: bool = False


class Lift(StepwiseServer[Task, Floor]):
    """`up` goes up; the third floor is the goal."""

    Task = Task

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.floors: list[Floor] = []
        self.life: list[str] = []

    async def start(self) -> None:
        self.life.append("started")

    async def stop(self) -> None:
        self.life.append("stopped")

    async def reset(self, task: Task) -> tuple[Floor, str]:
        self.floors.append(Floor(0))
        return self.floors[-1], "You are on floor 0."

    async def step(self, task: Task, response: Response, session: Floor) -> Step:
        session.number += response.final_text == "up"
        return Step(reward=0.5, observation=f"floor {session.number}", terminated=session.number == 3, info={"n": session.number})

    def end(self, session: Floor) -> None:
        session.ended = True

    @classmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: str) -> Iterator[Any]:
        return iter([ROW] * num_tasks)


def talked(server: Any, *requests: tuple[str, Any], token: str | None = None, bearer: str | None = None) -> list[tuple[int, Any]]:
    """Status and JSON of requests with one cookie jar; a body of None is a GET."""

    async def run() -> list[tuple[int, Any]]:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        jar = aiohttp.CookieJar(unsafe=True)
        found = []
        async with serving(application(server, token=token)) as url, aiohttp.ClientSession(cookie_jar=jar, headers=headers) as http:
            for path, body in requests:
                async with http.request("GET" if body is None else "POST", url + path, json=body) as reply:
                    found.append((reply.status, await reply.json()))
        return found

    return asyncio.run(run())


def test_a_step_wise_server_resets_steps_and_closes():
    server = Lift()
    row = {**ROW, "response": ANSWER}
    reset, *steps, closed, gone = talked(server, ("/reset", ROW), *[("/step", row)] * 3, ("/close", {}), ("/step", row))
    assert reset == (200, {"observation": "You are on floor 0.", "info": {"supports_explicit_close": True}})
    assert [reply["observation"] for _, reply in steps] == ["floor 1", "floor 2", "floor 3"]
    assert steps[2][1] == {"observation": "floor 3", "reward": 0.5, "terminated": True, "truncated": False, "info": {"n": 3}}
    assert closed == (200, {})
    assert gone[0] == 400
    assert server.floors == [Floor(3, ended=True)]
    assert server.life == ["started", "stopped"]


def test_sessions_that_are_left_open_end_with_the_server():
    server = Lift()
    talked(server, ("/reset", ROW))
    assert server.floors == [Floor(0, ended=True)]


def test_states_that_are_pushed_out_or_too_old_are_let_go_once():
    now, ended = 0.0, []
    sessions: Sessions[str] = Sessions(ttl_s=10, limit=2, clock=lambda: now, on_end=ended.append)
    first, _ = sessions.open("a"), sessions.open("b")
    sessions.find(first)
    sessions.open("c")
    assert ended == ["b"]
    now = 11.0
    sessions.open("d")
    assert ended == ["b", "a", "c"]
    sessions.close_all()
    assert ended == ["b", "a", "c", "d"]


def test_a_verifier_that_cannot_tell_answers_as_nemo_gym_does():
    ((status, reply),) = talked(Greeter(Greeting(word="hi")), ("/verify", {**ROW, "response": ANSWER}))
    assert (status, reply["reward"], reply["_ng_failure_class"]) == (200, 0.0, "judge_failed")
    assert reply["_ng_failure_judge_error"] == "the judge is asleep"


def test_a_handler_that_takes_too_long_is_answered():
    _, slow = talked(Greeter(Greeting(word="hi")), ("/seed_session", ROW), ("/sleep", {"seconds": 5.0}))
    assert slow == (504, {"detail": "not done after 0.2 s"})


def test_a_token_is_asked_of_everyone_but_who_asks_whether_it_lives():
    server = Greeter(Greeting(word="hi"))
    requests = [("/", None), ("/openapi.json", None), ("/seed_session", ROW)]
    assert [status for status, _ in talked(server, *requests, token="s3cret")] == [200, 401, 401]
    assert [status for status, _ in talked(server, *requests, token="s3cret", bearer="other")] == [200, 401, 401]
    assert [status for status, _ in talked(server, *requests, token="s3cret", bearer="s3cret")] == [200, 200, 200]


def test_beyond_loopback_a_token_is_needed_or_a_word_for_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert token_for("127.0.0.1", open_to_all=False) is None
    with pytest.raises(ConfigError, match="set GYM_BRIDGE_SERVER_TOKEN, or pass --no-auth"):
        token_for("0.0.0.0", open_to_all=False)
    assert token_for("0.0.0.0", open_to_all=True) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    assert token_for("0.0.0.0", open_to_all=False) == "s3cret"


def test_the_openapi_document_names_every_route_and_its_schemas():
    _, (status, found) = talked(Greeter(Greeting(word="hi")), ("/", None), ("/openapi.json", None))
    assert status == 200
    assert set(found["paths"]) == {
        *("/", "/aggregate_metrics", "/reverify_mode", "/seed_session", "/verify", "/greet", "/sleep"),
    }
    takes = found["paths"]["/greet"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert (takes["properties"]["name"]["type"], takes["required"]) == ("string", ["name"])
    ((_, lift),) = talked(Lift(), ("/openapi.json", None))
    assert set(lift["paths"]) == {"/", "/aggregate_metrics", "/reset", "/step", "/close"}


def test_settings_come_from_a_yaml_file_and_overrides_and_typos_are_refused(tmp_path: Path):
    path = tmp_path / "greeter.yaml"
    path.write_text(f"server: {__name__}:Greeter\nsettings: {{word: hello, times: 2}}\n")
    server = make_server(str(path), overrides=["times=3"])
    assert server.settings == Greeting(word="hello", times=3)
    assert load_server(str(path)) is Greeter
    with pytest.raises(ConfigError, match="did you mean 'times'"):
        make_server(str(path), overrides=["time=3"])
    with pytest.raises(ConfigError, match="'word' is required"):
        make_server(f"{__name__}:Greeter")
    path.write_text("servers: x\n")
    with pytest.raises(ConfigError, match="did you mean 'server'"):
        make_server(str(path))


def test_a_server_that_lacks_a_part_is_the_users_mistake(tmp_path: Path):
    path = tmp_path / "half.py"
    path.write_text(
        "from gym_bridge.resource_servers.base import ResourceServer, Task\n"
        "class Half(ResourceServer[Task, None]):\n    async def seed(self, task): ...\n"
    )
    with pytest.raises(ConfigError, match=r"Half lacks make_tasks, verify"):
        load_server(str(path))


@pytest.mark.parametrize(
    ("text", "told"),
    [("from gym_bridge.nowhere import Lift\n", "No module named 'gym_bridge.nowhere'"), ("class A(:\n", "invalid syntax")],
)
def test_a_file_that_cannot_be_imported_is_a_users_mistake(text: str, told: str, tmp_path: Path):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"broken.py: cannot be imported: {told}"):
        load_server(str(path))


def test_a_file_of_several_servers_is_asked_which(tmp_path: Path):
    path = tmp_path / "two.py"
    path.write_text(f"from {__name__} import Lift\nclass A(Lift): pass\nclass B(Lift): pass\n")
    with pytest.raises(ConfigError, match=r"expected one resource server, found \['A', 'B'\]"):
        load_server(str(path))
    assert load_server(f"{path}:B").__name__ == "B"
    with pytest.raises(ConfigError, match=r"one resource server called C, found"):
        load_server(f"{path}:C")
    with pytest.raises(ConfigError, match="no such file"):
        load_server(str(tmp_path / "none.py"))


def test_an_installed_package_registers_servers_and_ours_keep_their_names(monkeypatch: pytest.MonkeyPatch):
    @dataclass
    class Point:
        name: str
        value: str

    points = [Point("lift", f"{__name__}:Lift"), Point("arithmetic", f"{__name__}:Lift")]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points if group == "gym_bridge.resource_servers" else [])
    assert load_server("lift") is Lift
    assert load_server("arithmetic").__name__ == "ArithmeticServer"


def test_the_guides_example_makes_tasks_and_verifies(tmp_path: Path):
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    assert found is not None
    path = tmp_path / "reverse.py"
    path.write_text(found.group(1))
    kind = load_server(str(path))
    train, held = (list(kind.tasks(num_tasks=5, seed=1, split=split)) for split in ("train", "heldout"))
    assert not {row["word"] for row in train} & {row["word"] for row in held}
    row = train[0]
    right = {"output": [{"type": "message", "role": "assistant", "content": row["word"][::-1]}]}
    requests = [
        ("/seed_session", row),
        ("/letter", {"place": 0}),
        ("/letter", {"place": 99}),
        ("/verify", {**row, "response": right}),
    ]
    seeded, letter, none, verified = talked(make_server(str(path)), *requests)
    assert (seeded[0], letter[1], none[1]) == (200, {"letter": row["word"][0]}, {"error": "no place 99"})
    assert verified[1]["reward"] == 1.0


def test_several_processes_answer_for_a_server_without_sessions(tmp_path: Path, unused_port: int):
    path = tmp_path / "greeter.yaml"
    path.write_text(f"server: {__name__}:Greeter\nsettings: {{word: hello}}\n")

    async def ask(url: str) -> list[int]:
        statuses = []
        for _ in range(20):
            async with aiohttp.ClientSession() as http, http.get(url + "/") as reply:
                statuses.append(reply.status)
        return statuses

    with ServerProcess(str(path), ["--workers", "2"], port=unused_port) as server:
        assert asyncio.run(ask(server.url)) == [200] * 20
    with pytest.raises(aiohttp.ClientConnectionError):
        asyncio.run(ask(f"http://127.0.0.1:{unused_port}"))


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_workers_are_for_servers_without_sessions_and_on_a_port_that_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from gym_bridge.cli.main import main

    for argv, told in [
        (["serve", "arithmetic", "--workers", "2", "--port", "9"], "arithmetic keeps sessions"),
        (["serve", f"{__name__}:Greeter", "word=hi", "--workers", "2"], "needs a --port"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
