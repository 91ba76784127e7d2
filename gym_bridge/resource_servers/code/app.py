"""Programs against unit tests, run in the sandbox."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers.base import InvalidTask, ResourceServer, Response, Split, Task, Verdict, VerificationFailed
from gym_bridge.resource_servers.code.languages import language
from gym_bridge.resource_servers.code.limits import Limits
from gym_bridge.resource_servers.code.problems import HOLE, NUM_PROBLEMS, Kind, Problem, draw_problem
from gym_bridge.resource_servers.code.program import Program
from gym_bridge.resource_servers.code.sandbox import Sandbox, SandboxError
from gym_bridge.resource_servers.code.unit_tests import CallTest, StdinTest, Test
from gym_bridge.resource_servers.splits import drawn, refuse_more_than
from gym_bridge.schemas.rollouts import Row

BLOCK = re.compile(r"^[ ]{0,3}```[^\n`]*\n(.*?)^[ ]{0,3}```[ \t]*$", re.S | re.M)
MAX_SOURCE_CHARS = 100_000


class TestCase(BaseModel):
    """A test of a row: a call and what it returns, or what is read and what is printed."""

    __test__ = False  # nothing for pytest to collect
    model_config = ConfigDict(frozen=True, extra="ignore")
    function: str | None = None
    args: list[JsonValue] = Field(default_factory=list)
    stdin: str | None = None
    expected: JsonValue

    @model_validator(mode="after")
    def _one_of_both(self) -> "TestCase":
        if (self.function is None) == (self.stdin is None) or (self.stdin is not None and not isinstance(self.expected, str)):
            raise ValueError("expected a function with args, or a stdin with the text to be printed")
        try:
            self.test()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def test(self) -> Test:
        """The test as the sandbox takes it."""
        if self.function is not None:
            return CallTest(function=self.function, args=self.args, expected=self.expected)
        return StdinTest(stdin=self.stdin or "", expected=str(self.expected))


class CodeTask(Task):
    """What the verifier reads of a row."""

    tests: Annotated[list[TestCase], Field(min_length=1, max_length=100)]
    language: Literal["python", "javascript", "c"] = "python"
    prefix: str = Field("", max_length=MAX_SOURCE_CHARS)
    """Stands before what the model writes."""
    suffix: str = Field("", max_length=MAX_SOURCE_CHARS)
    """Stands after it."""


class Settings(StrictModel):
    """How programs are run and rewarded."""

    reward: Literal["all", "share"] = "all"
    """all: 1 when every test passes, else 0; share: the share of the tests that pass."""
    wall_s: float = Field(5.0, gt=0)
    """Seconds that one test may take."""
    memory_mib: int = Field(512, ge=16)
    """Memory of one program."""
    allow_unsandboxed: bool = False
    """Run what models write although the kernel offers too few layers."""


class Knobs(StrictModel):
    """Which programs to ask for."""

    kind: Literal["mixed", "generate", "fill_in", "repair"] = "mixed"
    """generate: the whole function; fill_in: the line that is missing; repair: a function with a wrong line."""


class CodeServer(ResourceServer[CodeTask, None]):
    """The reward is 1 when the program in the answer's last code block passes every test of its row."""

    Task = CodeTask
    Settings = Settings
    Knobs = Knobs
    stateless: ClassVar[bool] = True
    deadline_s = 300.0

    async def start(self) -> None:
        """Open the sandbox. Raises ConfigError where the kernel offers too few layers."""
        assert isinstance(self.settings, Settings)
        limits = Limits(wall_s=self.settings.wall_s, memory_mib=self.settings.memory_mib)
        self._open = AsyncExitStack()
        self._sandbox = await self._open.enter_async_context(
            Sandbox(limits=limits, allow_unsandboxed=self.settings.allow_unsandboxed)
        )

    async def stop(self) -> None:
        """Close the sandbox."""
        await self._open.aclose()

    async def seed(self, task: CodeTask) -> None:
        """Sessions hold nothing. Raises InvalidTask for a language that cannot be run here, or cannot run such tests."""
        try:
            kind = language(task.language)
        except ConfigError as error:
            raise InvalidTask(str(error), loc=("language",)) from error
        if not kind.call and (calls := [number for number, case in enumerate(task.tests) if case.function is not None]):
            raise InvalidTask(f"{task.language} has tests with a stdin only", loc=("tests", calls[0], "function"))

    async def verify(self, task: CodeTask, response: Response, session: None) -> Verdict:
        """The reward, and `reward_components`: syntax, tests (the share that passed) and all; `outcomes` counts how the tests went.

        Raises VerificationFailed when the sandbox fails, or the row's language is not installed here.
        """
        assert isinstance(self.settings, Settings)
        written = last_block(response.final_text)
        if written is None or len(written) > MAX_SOURCE_CHARS:
            return _verdict(self.settings.reward, syntax=False, outcomes=["no_program"] * len(task.tests))
        program = Program(source=task.prefix + written + task.suffix, language=task.language)
        try:
            build = await self._sandbox.build(program)
            if not build.succeeded:
                return _verdict(self.settings.reward, syntax=False, outcomes=["compile"] * len(task.tests))
            results = await self._sandbox.check(program, [case.test() for case in task.tests])
        except (SandboxError, ConfigError) as error:
            raise VerificationFailed(str(error)) from error
        return _verdict(self.settings.reward, syntax=True, outcomes=[one.outcome for one in results])

    @classmethod
    def make_tasks(cls, knobs: Knobs, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Rows of one split; the split of a function is fixed, whatever is asked of it."""
        refuse_more_than(NUM_PROBLEMS // 4, num_tasks)
        kinds: tuple[Kind, ...] = ("generate", "fill_in", "repair") if knobs.kind == "mixed" else (knobs.kind,)
        problems = drawn(draw_problem, identity=lambda one: one.identity, num_tasks=num_tasks, seed=seed, split=split)
        return (_row(problem, kinds[number % len(kinds)], split) for number, problem in enumerate(problems))


def last_block(text: str) -> str | None:
    """What stands in the last fenced code block; None without one."""
    blocks = BLOCK.findall(text)
    return blocks[-1] if blocks else None


def _verdict(reward: str, *, syntax: bool, outcomes: list[str]) -> Verdict:
    share = outcomes.count("passed") / len(outcomes)
    components = {"syntax": float(syntax), "tests": share, "all": float(share == 1.0)}
    fields: dict[str, Any] = {"reward_components": components, "outcomes": dict(Counter(outcomes))}
    return Verdict(reward=components["all" if reward == "all" else "tests"], fields=fields)


def _row(problem: Problem, kind: Kind, split: Split) -> Row:
    name = problem.family.name
    asked = f"It returns {problem.says}."
    row: dict[str, Any] = {"tests": problem.tests(), "kind": kind, "split": split}
    shown, right, wrong = None, problem.source(), problem.source(problem.family.bug)
    if kind == "generate":
        (parameter,) = re.findall(r"\((\w+)\)", problem.family.lines[0])
        text = f"Write the Python function `{name}({parameter})`. {asked} Answer with the function in one code block."
    elif kind == "fill_in":
        row["prefix"], row["suffix"] = problem.around_the_hole()
        shown = problem.source(HOLE)
        lines = (problem.family.lines[problem.family.hole], problem.family.bug)
        right, wrong = (line.format(c=problem.constant) + "\n" for line in lines)
        text = f"One line of this Python function is missing. {asked} Answer with that line, indented, in one code block."
    else:
        shown = wrong
        text = f"This Python function has a bug. {asked} Answer with the whole function, repaired, in one code block."
    text += f"\n\n```python\n{shown}```" if shown else ""
    known = {
        "good": [_block(right)],
        "bad": [_block(wrong)],
        "adversarial": [_block("import os\nos._exit(0)\n"), "The tests pass.", _block("print('passed')\n")],
    }
    return {"responses_create_params": {"input": [{"role": "user", "content": text}]}, **row, "known_answers": known}


def _block(source: str) -> str:
    return f"```python\n{source}```"
