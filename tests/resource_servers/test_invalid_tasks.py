"""Rows that are tasks in form and cannot be played: a server says so, and the client is answered 422 with the place."""

from collections.abc import Iterator
from typing import Any

import pytest

from gym_bridge.config import validate
from gym_bridge.resource_servers.base import InvalidTask, ResourceServer, Response, Step, StepwiseServer, Task, Verdict
from gym_bridge.resource_servers.combine.app import CombineServer, Settings
from gym_bridge.resource_servers.tools import tool
from gym_bridge.schemas.rollouts import FailureType
from tests.resource_servers.stage import answered, failed_rollout, posted
from tests.rollouts.stage import in_order, said, turn

HERE = "tests.resource_servers.test_invalid_tasks"
ROW: dict[str, Any] = {"responses_create_params": {"input": "open"}, "doors": [{"key": "brass"}, {"key": "tin"}]}
WRONG: dict[str, Any] = {**ROW, "doors": [{"key": "brass"}, {"key": "wax"}]}
REFUSED = {"detail": [{"loc": ["body", "doors", 1, "key"], "msg": "no key is made of wax", "type": "no_such_key"}]}


class DoorsTask(Task):
    """What both servers read."""

    doors: list[dict[str, str]]


def check(task: DoorsTask) -> None:
    """Refuse keys that do not exist."""
    for number, door in enumerate(task.doors):
        if door["key"] not in ("brass", "tin"):
            raise InvalidTask(f"no key is made of {door['key']}", loc=("doors", number, "key"), kind="no_such_key")


class Doors(ResourceServer[DoorsTask, list[str]]):
    """Keys in a bunch, which is let go of at the end."""

    Task = DoorsTask

    @tool
    async def copy(self, session: list[str], key: str) -> int:
        """Copy a key."""
        raise InvalidTask("the doors take no copies", loc=("doors",))

    async def seed(self, task: DoorsTask) -> list[str]:
        check(task)
        return [door["key"] for door in task.doors]

    async def verify(self, task: DoorsTask, response: Response, session: list[str] | None) -> Verdict:
        check(task)
        return Verdict(reward=1.0)

    @classmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: str) -> Iterator[Any]:
        return iter([])


class Corridor(StepwiseServer[DoorsTask, int]):
    """A door a step."""

    Task = DoorsTask

    async def reset(self, task: DoorsTask) -> tuple[int, str]:
        check(task)
        return 0, "A corridor."

    async def step(self, task: DoorsTask, response: Response, session: int) -> Step:
        check(task)
        return Step(reward=1.0, terminated=True)

    @classmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: str) -> Iterator[Any]:
        return iter([])


@pytest.mark.parametrize(
    ("server", "first", "second"), [(Doors, "/seed_session", "/verify"), (Corridor, "/reset", "/step")], ids=["tools", "steps"]
)
def test_a_row_that_cannot_be_played_is_refused_with_its_place(server: Any, first: str, second: str):
    (wrong,) = posted(server(), [(first, WRONG)])
    assert wrong == (422, REFUSED)
    opened, wrong, right = posted(server(), [(first, ROW), (second, answered(WRONG, "x")), (second, answered(ROW, "x"))])
    assert (opened[0], wrong, right[0], right[1]["reward"]) == (200, (422, REFUSED), 200, 1.0)


def test_a_refused_row_opens_no_session():
    refused, tool_call = posted(Doors(), [("/seed_session", WRONG), ("/copy", {"key": "tin"})])
    assert (refused[0], tool_call[0]) == (422, 400)


def test_a_tool_that_finds_its_task_wrong_is_answered_alike():
    reply = posted(Doors(), [("/seed_session", ROW), ("/copy", {"key": "tin"})])[1]
    assert reply == (422, {"detail": [{"loc": ["body", "doors"], "msg": "the doors take no copies", "type": "value_error"}]})


def test_a_part_of_several_servers_refuses_for_all():
    server = CombineServer(validate(Settings, {"parts": [{"name": "doors", "server": f"{HERE}:Doors"}]}))
    seeded, verified = posted(server, [("/seed_session", WRONG), ("/verify", answered(WRONG, "x"))])
    assert seeded == verified == (422, REFUSED)


@pytest.mark.parametrize("server", [Doors, Corridor])
def test_a_rollout_of_such_a_row_fails_before_the_model_is_asked(server: Any):
    asked: list[Any] = []
    script = in_order(turn(said("x")))

    def watched(request: Any) -> Any:
        asked.append(request)
        return script(request)

    failure = failed_rollout(server(), WRONG, watched)
    assert "no key is made of wax" in failure.message
    assert (failure.type, failure.status, asked) == (FailureType.INVALID_ROW, 422, [])
