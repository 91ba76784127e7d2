"""Tests of programs: values are compared here, strictly, and no cheat passes."""

import asyncio
import secrets

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers.code.languages import languages
from gym_bridge.resource_servers.code.limits import Limits
from gym_bridge.resource_servers.code.program import Program
from gym_bridge.resource_servers.code.sandbox import Sandbox
from gym_bridge.resource_servers.code.unit_tests import CallTest, StdinTest, TestResult, same_value
from tests.resource_servers.hostile import reward_cheats
from tests.resource_servers.hostile.program import Hostile

pytestmark = pytest.mark.slow  # processes by the dozen

LIMITS = Limits(cpu_s=2, wall_s=8.0, memory_mib=256, output_kib=256)


def check(source: str, *tests, language: str = "python") -> list[TestResult]:
    async def main():
        async with Sandbox(limits=LIMITS) as sandbox:
            return await sandbox.check(Program(source=source, language=language), tests)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        *((1, 1), ("a", "a"), (True, True), (None, None), ([], []), ({}, {}), (10**30, 10**30)),
        *((0.1 + 0.2, 0.3), (2, 2.0), (1e-10, 0.0), (float("nan"), float("nan")), (float("inf"), float("inf"))),
        ([1, [2, {"a": 0.30000000000000004}]], [1, [2, {"a": 0.3}]]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ],
)
def test_the_same_values(got, expected):
    assert same_value(got, expected)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        *((True, 1), (1, True), (1.0, 1), ("1", 1), (1, "1"), (0, False), (False, None), (None, False), (0, None), ("", None)),
        *(([], None), ([], {}), ({}, []), ([1], [1, 2]), ([1, 2], [1]), ([2, 1], [1, 2]), ("ab", ["a", "b"])),
        *(
            (0.301, 0.3),
            (float("nan"), 1.0),
            (1.0, float("nan")),
            (float("inf"), 1e308),
            (10**400, 1e308),
            (True, 1.0),
            ("1.0", 1.0),
        ),
        *(({"a": 1}, {"a": 1, "b": None}), ({"a": 1, "b": None}, {"a": 1}), ({"a": True}, {"a": 1})),
    ],
)
def test_other_values_and_other_types_are_not_the_same(got, expected):
    assert not same_value(got, expected)


def test_a_call_gets_its_arguments_and_gives_its_value():
    source = """
from dataclasses import dataclass
@dataclass
class P:
    x: 'int'
def f(a, b=[]):
    print("noise")
    return P(a).x, {1: b}
"""
    tests = [
        CallTest(function="f", args=[1, ["ü"]], expected=[1, {"1": ["ü"]}]),
        CallTest(function="f", args=[1], expected=[1, {"1": [0]}]),
        CallTest(function="f", expected=None),
        CallTest(function="absent", expected=None),
    ]
    found = check(source, *tests)
    assert [one.outcome for one in found] == ["passed", "wrong", "error", "error"]
    assert found[1].got == [1, {"1": []}]
    assert found[0].finished.stdout == b"noise\n"
    assert b"TypeError: f() missing 1 required positional argument" in found[2].finished.stderr


def test_a_value_that_is_no_json_fails_with_the_reason():
    found = check("def f(n): return {n}", CallTest(function="f", args=[1], expected=[1]))[0]
    assert found.outcome == "error"
    assert b"Object of type set is not JSON serializable" in found.finished.stderr


def test_calls_of_javascript_functions():
    if "javascript" not in languages():
        pytest.skip("node is not on PATH")
    test = CallTest(function="f", args=[[3, 1, 2]], expected={"sorted": [1, 2, 3], "mean": 2.0})
    body = "({ sorted: [...xs].sort(), mean: xs.reduce((a, b) => a + b) / xs.length })"
    for source in (
        f"const f = (xs) => {body};",
        f"async function f(xs) {{ return {body} }}",
        f"module.exports.f = (xs) => {body};",
    ):
        assert [one.outcome for one in check(source, test, language="javascript")] == ["passed"], source


def test_compiled_programs_are_checked_on_stdin_and_compiled_once():
    if "c" not in languages():
        pytest.skip("no C compiler on PATH")
    source = '#include <stdio.h>\nint main() { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); return 0; }'
    tests = [StdinTest(stdin=f"{n} 1", expected=str(n + 1)) for n in range(3)]
    found = check(source, *tests, StdinTest(stdin="1 1", expected="3"), language="c")
    assert [one.outcome for one in found] == ["passed", "passed", "passed", "wrong"]
    assert [one.outcome for one in check("int main({", *tests, language="c")] == ["compile"] * 3
    with pytest.raises(ConfigError, match="language 'c' runs programs on stdin only"):
        check(source, CallTest(function="main"), language="c")


def test_a_test_that_cannot_cross_as_json_is_refused():
    with pytest.raises(ConfigError, match="must be JSON values"):
        CallTest(function="f", args=[{1, 2}])
    for name in ("f()", "__import__('os')", "class", "a.b", ""):
        with pytest.raises(ConfigError, match="expected a plain name"):
            CallTest(function=name)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[TestResult]]:
    """Every cheat, against two tests whose expected values are each other's arguments."""

    async def main():
        async with Sandbox(limits=LIMITS) as sandbox:

            async def judge(cheat: Hostile):
                one, other = (f"secret-{secrets.token_hex(16)}" for _ in range(2))
                tests = [
                    CallTest(function="answer", args=[one], expected=other),
                    CallTest(function="answer", args=[other], expected=one),
                ]
                return cheat.name, await sandbox.check(Program(source=cheat.source, language=cheat.language), tests)

            known = [cheat for cheat in reward_cheats.PROGRAMS if cheat.language in languages()]
            return dict(await asyncio.gather(*map(judge, known)))

    return asyncio.run(main())


@pytest.mark.parametrize("name", [cheat.name for cheat in reward_cheats.PROGRAMS])
def test_no_cheat_passes(name: str, verdicts: dict[str, list[TestResult]]):
    if name not in verdicts:
        pytest.skip("the tools of its language are not on this machine")
    assert len(verdicts[name]) == 2
    for result in verdicts[name]:
        assert not result.passed
        assert result.outcome in ("wrong", "error", "no_result", "output", "signal")
        assert result.finished.wall_s < LIMITS.wall_s


def test_what_a_cheat_lacks_is_the_expected_value_and_nothing_else():
    tests = [CallTest(function="answer", args=["secret"], expected="secret")]
    assert [one.outcome for one in check("def answer(n): return n", *tests)] == ["passed"]
    forged = 'import os; os.write(3, b\'{"value": "secret"}\'); os._exit(0)'
    assert [one.outcome for one in check(forged, *tests)] == ["passed"]
