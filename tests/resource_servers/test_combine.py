"""Several servers as one: their tools, sessions and rewards together, and what shaping does to a reward."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.cli.main import main
from gym_bridge.config import StrictModel, validate
from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import combine as combine_room
from gym_bridge.resource_servers.base import ResourceServer, Response, Task, Verdict, VerificationFailed
from gym_bridge.resource_servers.combine.app import CombineServer, Settings, combine
from gym_bridge.resource_servers.combine.shaping import (
    FormatBonus,
    LengthPenalty,
    OverlongPenalty,
    Shaping,
    in_form,
    length_penalty,
    shaped,
)
from gym_bridge.resource_servers.registry import load_server, make_server
from gym_bridge.resource_servers.tools import tool
from gym_bridge.schemas.rollouts import FailureType
from tests.resource_servers.stage import answered, bodies, client_of, failed_rollout, posted, rolled_out, task, verified
from tests.rollouts.stage import called, in_order, said, turn

HERE = "tests.resource_servers.test_combine"
SAYS, LENGTH, BOX, BROKEN = (f"{HERE}:{name}" for name in ("Says", "LengthServer", "Box", "Broken"))
life: list[str] = []
"""What the parts below went through."""


class Word(Task):
    """What Says reads."""

    word: str


class SaysSettings(StrictModel):
    """Of Says."""

    reward: float = 1.0
    """For the word."""


class Says(ResourceServer[Word, None]):
    """A reward for the row's word."""

    Task = Word
    Settings = SaysSettings

    async def start(self) -> None:
        life.append("start says")

    async def stop(self) -> None:
        life.append("stop says")

    async def seed(self, task: Word) -> None:
        pass

    async def verify(self, task: Word, response: Response, session: None) -> Verdict:
        right = response.final_text == task.word
        return Verdict(reward=self.settings.reward * right, fields={"right": right})  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: str):
        return iter([])


class LengthServer(Says):
    """A reward of the answer's length."""

    Task = Task

    async def verify(self, task: Any, response: Response, session: None) -> Verdict:
        return Verdict(reward=len(response.final_text))


@dataclass
class Content:
    """A session of Box."""

    things: list[str]


class BoxTask(Task):
    """What Box reads; `word` in a way of its own."""

    word: str | None = None
    wanted: tuple[str, ...] = ()


class Box(ResourceServer[BoxTask, Content]):
    """A tool, a session, and an end that is noted."""

    Task = BoxTask
    reverify_mode = "unsupported"

    @tool
    async def put(self, session: Content, thing: str) -> dict[str, int]:
        """Put a thing into the box."""
        session.things.append(thing)
        return {"count": len(session.things)}

    async def seed(self, task: BoxTask) -> Content:
        return Content([])

    async def verify(self, task: BoxTask, response: Response, session: Content | None) -> Verdict:
        return Verdict(reward=float(session is not None and session.things == [*task.wanted]))

    def end(self, session: Content) -> None:
        life.append(f"end {session.things}")

    @classmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: str):
        return iter([])


class Broken(Says):
    """A verifier that cannot tell."""

    async def verify(self, task: Any, response: Response, session: None) -> Verdict:
        raise VerificationFailed("no idea")


def made(*parts: dict[str, Any], **more: Any) -> CombineServer:
    return CombineServer(validate(Settings, {"parts": list(parts), **more}))


def part(name: str, server: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "server": server, **more}


ROW = task(word="yes", wanted=["a"])


@pytest.mark.parametrize(
    ("rewards", "weights", "how", "expected"),
    [
        ([1.0, 0.5], [1.0, 2.0], "sum", 2.0),
        ([1.0, -1.0], [1.0, 0.25], "sum", 0.75),
        ([2.0, 0.5, 3.0], [1.0, 1.0, 1.0], "product", 3.0),
        ([1.0, 0.0], [1.0, 1.0], "product", 0.0),
        ([1.0, 0.5, 2.0], [9.0, 1.0, 0.25], "gate", 1.0),
        ([0.99, 0.5, 2.0], [9.0, 1.0, 0.25], "gate", 0.0),
    ],
)
def test_rewards_become_one(rewards: list[float], weights: list[float], how: Any, expected: float):
    assert combine(rewards, weights, how=how, gate=1.0) == expected


@pytest.mark.parametrize(
    ("num_tokens", "penalty"), [(0, 0.0), (60, 0.0), (61, -0.025), (70, -0.25), (80, -0.5), (100, -1.0), (101, -1.0), (10**6, -1.0)]
)
def test_the_overlong_penalty_is_dapos(num_tokens: int, penalty: float):
    assert OverlongPenalty(max_tokens=100, cache_tokens=40).of(num_tokens) == pytest.approx(penalty)
    assert OverlongPenalty(max_tokens=100, cache_tokens=40, factor=2.0).of(num_tokens) == pytest.approx(2 * penalty)


@pytest.mark.parametrize(("num_tokens", "penalty"), [(0, 0.0), (10, 0.0), (11, -0.5), (14, -2.0)])
def test_the_length_penalty_grows_with_every_token_beyond_the_free_ones(num_tokens: int, penalty: float):
    assert length_penalty(num_tokens, LengthPenalty(per_token=0.5, free_tokens=10)) == penalty


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a>x</a>", True),
        ("so <a></a>.", True),
        ("</a><a>", False),
        ("<a>", False),
        ("<a><a>x</a>", False),
        ("<a>x</a></a>", False),
        ("", False),
    ],
)
def test_a_format_is_each_marker_once_and_in_order(text: str, expected: bool):
    assert in_form(text, ["<a>", "</a>"]) is expected


def response(text: str, num_tokens: Any = None) -> Response:
    return Response(output=[said(text)], usage={"output_tokens": num_tokens})


def test_shaping_adds_its_terms_then_clips_and_tells_each():
    shaping = Shaping(
        scale=2.0,
        format=FormatBonus(markers=["!"], bonus=0.25),
        length=LengthPenalty(per_token=0.5),
        overlong=OverlongPenalty(max_tokens=4, cache_tokens=4),
        clip=(-1.0, 1.0),
    )
    assert shaped(1.0, response("yes!", 2), shaping) == (
        0.75,
        {"scaled": 2.0, "format_bonus": 0.25, "length_penalty": -1.0, "overlong_penalty": -0.5, "clipped": False},
    )
    assert shaped(3.0, response("yes", 0), shaping)[0] == 1.0
    assert shaped(0.0, response("yes", 4), shaping) == (
        -1.0,
        {"scaled": 0.0, "format_bonus": 0.0, "length_penalty": -2.0, "overlong_penalty": -1.0, "clipped": True},
    )
    assert shaped(0.5, response("yes"), Shaping()) == (0.5, {"scaled": 0.5, "clipped": False})


@pytest.mark.parametrize("count", [None, "12", -1, True, 1.5])
def test_a_length_that_is_not_told_is_a_failure_and_no_reward(count: Any):
    with pytest.raises(VerificationFailed, match="output_tokens"):
        shaped(1.0, response("yes", count), Shaping(length=LengthPenalty(per_token=0.1)))


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(1, 10**5))
def test_the_overlong_penalty_never_rises_with_length(num_tokens: int, cache_tokens: int, more: int):
    penalty = OverlongPenalty(max_tokens=cache_tokens + more, cache_tokens=cache_tokens)
    assert -1.0 <= penalty.of(num_tokens + 1) <= penalty.of(num_tokens) <= 0.0


def test_every_component_stands_in_the_row():
    server = made(
        part("right", SAYS, settings={"reward": 2.0}), part("long", LENGTH, weight=0.5), shaping={"scale": 10.0, "clip": [0, 30]}
    )
    right, wrong = verified(server, [(ROW, "yes"), (ROW, "no")])
    assert right["reward"] == 30.0
    assert right["reward_components"] == {"right": 2.0, "long": 3.0}
    assert right["reward_shaping"] == {"combined": 3.5, "scaled": 35.0, "clipped": True}
    assert right["verdicts"] == {"right": {"right": True}, "long": {}}
    assert (wrong["reward"], wrong["reward_components"]) == (10.0, {"right": 0.0, "long": 2.0})


def test_a_closed_gate_gives_nothing_for_the_rest_and_still_shows_it():
    server = made(part("right", SAYS), part("long", LENGTH), how="gate")
    opened, closed = verified(server, [(ROW, "yes"), (ROW, "a very long answer that says nothing")])
    assert (opened["reward"], closed["reward"]) == (3.0, 0.0)
    assert closed["reward_components"] == {"right": 0.0, "long": 36.0}


def test_tools_of_a_part_act_on_its_own_session_and_a_rollout_reaches_its_reward_through_the_collector():
    life.clear()
    row = {**ROW, "responses_create_params": {"input": "go", "tools": Box.tools()}}
    server = made(part("right", SAYS), part("box", BOX), how="product")
    played = rolled_out(server, row, in_order(turn(called("put", {"thing": "a"})), turn(said("yes"))))
    assert played.row["reward"] == 1.0
    assert played.row["reward_components"] == {"right": 1.0, "box": 1.0}
    assert [item.get("output") for item in played.row["response"]["output"]][1] == '{"count":1}'
    assert life == ["start says", "end ['a']", "stop says"]


def test_sessions_keep_their_boxes_apart():
    async def run() -> list[float]:
        async with client_of(made(part("box", BOX))) as one, client_of(made(part("box", BOX))) as other:
            for client in (one, other):
                await client.post("/seed_session", ROW)
            await one.post("/put", {"thing": "a"})
            return [(await client.verify(ROW, ""))["reward"] for client in (one, other)]

    assert asyncio.run(run()) == [1.0, 0.0]


def test_a_part_that_cannot_tell_leaves_no_reward():
    failed = failed_rollout(made(part("right", SAYS), part("broken", BROKEN)), ROW, "yes")
    assert failed.type is FailureType.JUDGE


def test_a_row_must_be_a_task_of_every_part_and_the_refusal_says_where():
    server = made(part("long", LENGTH), part("right", SAYS), part("box", BOX))
    status, reply = posted(server, [("/verify", answered(task(), "yes"))])[0]
    assert status == 422
    assert reply["detail"][0]["loc"] == ["body", "word"]
    assert server.reverify_mode == "unsupported"
    assert made(part("right", SAYS)).reverify_mode == "stateless"


def test_the_document_tells_what_all_parts_read_and_their_tools():
    async def run() -> Any:
        async with (
            client_of(made(part("right", SAYS), part("box", BOX))) as client,
            client.http.get(client.url + "/openapi.json") as reply,
        ):
            return await reply.json()

    paths = asyncio.run(run())["paths"]
    assert "/put" in paths
    schema = paths["/verify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"responses_create_params", "word", "wanted", "response"}
    assert set(schema["required"]) == {"responses_create_params", "word", "response"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": []}, "at least 1 item"),
        ({"parts": [part("a", SAYS), part("a", SAYS)]}, "two parts are called 'a'"),
        ({"parts": [part("a", BOX), part("b", BOX)]}, "parts 'a' and 'b' both have a tool 'put'"),
        ({"parts": [part("a", "arithmetics")]}, "part 'a': unknown resource server 'arithmetics'; did you mean 'arithmetic'"),
        ({"parts": [part("a", SAYS, settings={"rewards": 1})]}, "part 'a': unknown key 'rewards'; did you mean 'reward'"),
        ({"parts": [part("a", SAYS)], "how": "gate"}, "how=gate needs two parts"),
        ({"parts": [part("a", SAYS, weight=2)], "how": "product"}, "how=product knows no weights"),
        ({"parts": [part("a", SAYS)], "how": "mean"}, "how='mean'"),
        ({"parts": [part("a", "number_game")]}, "step-wise"),
        ({"parts": [part("a b", SAYS)]}, "parts.0.name"),
        ({"parts": [part("right", SAYS)], "tasks_from": "rigth"}, "tasks_from='rigth' is no part; did you mean 'right'"),
        ({"parts": [part("a", SAYS)], "shaping": {"clip": [1, 0]}}, "the first bound is above the second"),
        ({"parts": [part("a", SAYS)], "shaping": {"overlong": {"max_tokens": 1, "cache_tokens": 2}}}, "cache_tokens=2 is more"),
        ({"parts": [part("a", SAYS)], "shaping": {"lenght": {}}}, "did you mean 'length'"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str, tmp_path: Path):
    file = tmp_path / "combine.yaml"
    file.write_text(yaml.safe_dump({"server": "combine", "settings": given}))
    with pytest.raises(ConfigError, match=message):
        make_server(str(file))


def test_the_example_is_a_server_that_takes_the_example_rows(tmp_path: Path):
    pytest.importorskip("math_verify", reason="its first part needs the servers extra: pip install -e '.[servers]'")
    data = Path(combine_room.__file__).parent / "data"
    server = make_server(str(data / "example.yaml"))
    assert isinstance(server, CombineServer)
    rows = [json.loads(line) for line in (data / "example.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    asked = [("/verify", answered(row, f"\\boxed{{{row['expected_answer']}}}", usage={"output_tokens": 5})) for row in rows]
    replies = [reply for _, reply in posted(server, asked)]
    assert [reply["reward"] for reply in replies] == pytest.approx([1.6] * 5)
    assert replies[0]["reward_components"] == {"right": 1.0, "sum": 1.0}
    assert written(data / "example.yaml", tmp_path, "--num-tasks", "3") == rows_of("arithmetic", num_tasks=3)
    with pytest.raises(ConfigError, match="write its path instead"):
        load_server("combine").tasks(num_tasks=1, seed=0, split="train")


def rows_of(name: str, **knobs: Any) -> list[Any]:
    """Task rows of a server, as they stand in a file."""
    return json.loads(json.dumps(list(load_server(name).tasks(**{"seed": 0, "split": "train", **knobs}))))


def written(file: Path, folder: Path, *arguments: str) -> list[Any]:
    """The rows that `gym-bridge tasks` writes."""
    with pytest.raises(SystemExit) as ended:
        main(["tasks", str(file), "--output", str(folder / "tasks.jsonl"), *arguments])
    assert not ended.value.code
    return [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]


def combined_file(folder: Path, *parts: dict[str, Any], **more: Any) -> Path:
    """A YAML file of several servers."""
    file = folder / "combined.yaml"
    file.write_text(yaml.safe_dump({"server": "combine", "settings": {"parts": list(parts), **more}}))
    return file


def test_the_command_line_makes_the_tasks_of_the_first_part_with_its_knobs(tmp_path: Path):
    file = combined_file(tmp_path, part("chain", "calculator"), part("long", LENGTH))
    rows = written(file, tmp_path, "--num-tasks", "4", "--seed", "7", "--split", "heldout", "depth=2")
    assert rows == rows_of("calculator", num_tasks=4, seed=7, split="heldout", depth=2)
    assert [len(row["steps"]) for row in rows] == [2] * 4


def test_tasks_come_from_the_part_that_is_named_and_from_files_and_settings_of_its_own(tmp_path: Path):
    inner = combined_file(tmp_path, part("sum", "arithmetic")).rename(tmp_path / "inner.yaml")
    by_file = combined_file(tmp_path, part("long", LENGTH), part("inner", str(inner)), tasks_from="inner")
    assert written(by_file, tmp_path, "--num-tasks", "2") == rows_of("arithmetic", num_tasks=2)
    choice = part("choice", "multiple_choice", settings={"grading_mode": "lenient_boxed"})
    by_settings = combined_file(tmp_path, part("long", LENGTH), choice, tasks_from="choice")
    assert written(by_settings, tmp_path, "--num-tasks", "2") == rows_of("multiple_choice", num_tasks=2)


@pytest.mark.parametrize(
    ("parts", "knobs", "message"),
    [
        (["multiple_choice", "calculator"], [], "the tasks of part 'a' are none of part 'b': start: Field required; name another"),
        (["arithmetic", LENGTH], ["depth=2"], "unknown key 'depth'"),
        (["number_game", LENGTH], [], "part 'a': number_game is a step-wise environment"),
    ],
)
def test_tasks_that_not_all_parts_can_read_are_refused(
    parts: list[str], knobs: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = combined_file(tmp_path, *(part(name, server) for name, server in zip("ab", parts, strict=True)))
    with pytest.raises(SystemExit) as ended:
        main(["tasks", str(file), "--num-tasks", "2", "--output", str(tmp_path / "tasks.jsonl"), *knobs])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "tasks.jsonl").exists()


def test_bounds_are_those_of_the_parts():
    server = made(part("office", "office"), part("right", SAYS))
    assert server.max_sessions == 10_000
    assert server.session_ttl_s == 3600.0
    assert server.deadline_s > 60.0 + 60.0


def test_no_body_makes_the_server_fail():
    sent: list[tuple[str, Any]] = []

    @settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(["/seed_session", "/verify", "/put", "/aggregate_metrics"]),
        bodies(ROW, "word", "wanted") | st.fixed_dictionaries({"thing": st.text() | st.integers()}),
    )
    def collect(path: str, body: Any) -> None:
        sent.append((path, body))

    collect()
    server = made(part("right", SAYS), part("box", BOX), shaping={"length": {"per_token": 0.1}})
    statuses = {status for status, _ in posted(server, [*sent, ("/verify", answered(ROW, "yes", usage=[]))])}
    assert statuses <= {200, 400, 422}
    assert 422 in statuses
