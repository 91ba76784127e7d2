"""Tests of a program: a call or a stdin, and the value that is expected of it, which never leaves this process."""

import json
import keyword
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers.code.program import Finished

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-9

Outcome = Literal["passed", "wrong", "error", "no_result", "signal", "wall_time", "cpu_time", "memory", "disk", "output", "compile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """How one test went."""

    __test__ = False  # nothing for pytest to collect

    outcome: Outcome
    """`passed`; `wrong`: another value; `error`: it raised, or exited with another code than 0; `no_result`: it exited with 0 and
    did not leave exactly one record; else what ended the run."""
    finished: Finished
    got: Any = field(default=None, repr=False)
    """The value returned, or the text printed."""

    @property
    def passed(self) -> bool:
        """Whether the outcome is `passed`."""
        return self.outcome == "passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTest:
    """A function of the program, called with JSON values, must return `expected`, a JSON value. Raises ConfigError for others.

    What it returns crosses as JSON: tuples arrive as lists, the keys of a dict as strings. `same_value` compares.
    """

    function: str
    args: Sequence[Any] = ()
    expected: Any = None

    def __post_init__(self):
        if not self.function.isidentifier() or keyword.iskeyword(self.function):
            raise ConfigError(f"test of function {self.function!r}: expected a plain name")
        try:
            json.dumps([list(self.args), self.expected])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"test of {self.function}: arguments and expected value must be JSON values: {error}") from None

    def input(self) -> bytes:
        """What the driver reads: the function and its arguments, and nothing else of the test."""
        return json.dumps({"function": self.function, "args": list(self.args)}).encode()

    def judge(self, finished: Finished) -> TestResult:
        """The result of the test, from a run of the driver.

        The record that it reads may be forged, by the very code under test. It counts if it is the only one, JSON, and of a run
        that ended by itself and well; and then it is worth what a returned value is worth, because nobody there knew more.
        """
        if not finished.succeeded:
            return TestResult(outcome=_failure(finished), finished=finished)
        try:
            record = json.loads(finished.result)
        except (ValueError, RecursionError):
            return TestResult(outcome="no_result", finished=finished)
        if not isinstance(record, dict) or record.keys() != {"value"}:
            return TestResult(outcome="no_result", finished=finished)
        right = same_value(record["value"], self.expected)
        return TestResult(outcome="passed" if right else "wrong", finished=finished, got=record["value"])


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinTest:
    """The program, given `stdin`, must exit with 0 and print `expected`; space at the ends of lines and of the text is free."""

    stdin: str = ""
    expected: str = ""

    def input(self) -> bytes:
        """What the program reads."""
        return self.stdin.encode(errors="replace")

    def judge(self, finished: Finished) -> TestResult:
        """The result of the test, from a run of the program."""
        if not finished.succeeded:
            return TestResult(outcome=_failure(finished), finished=finished)
        text = finished.stdout.decode(errors="replace")
        right = _lines(text) == _lines(self.expected)
        return TestResult(outcome="passed" if right else "wrong", finished=finished, got=text)


Test = CallTest | StdinTest


def same_value(got: Any, expected: Any) -> bool:
    """Whether two JSON values are the same, types included.

    A whole number is met by that whole number alone; a fraction by any number within 1e-6 of it, relative, or 1e-9; NaN by NaN.
    True is not 1, null is nothing else, and lists and objects have to agree in length, order and keys.
    """
    if isinstance(expected, float):
        if type(got) not in (int, float):
            return False
        return _close(got, expected)
    if type(got) is not type(expected):
        return False
    if isinstance(expected, list):
        return len(got) == len(expected) and all(map(same_value, got, expected))
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(same_value(got[name], expected[name]) for name in expected)
    return got == expected


def _close(got: float, expected: float) -> bool:
    if math.isnan(expected):
        return got != got
    try:
        return math.isclose(got, expected, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    except OverflowError:  # a whole number beyond any float
        return False


def _failure(finished: Finished) -> Outcome:
    return "error" if finished.ended_by == "exit" else finished.ended_by


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
