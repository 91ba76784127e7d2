"""The code server: tasks that tell, programs that are right, and answers that would like to be."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import code
from gym_bridge.resource_servers.code import languages
from gym_bridge.resource_servers.code.app import CodeServer, Settings, last_block
from gym_bridge.resource_servers.registry import load_server
from gym_bridge.schemas.rollouts import Row
from tests.resource_servers.stage import answered, client_of, posted, verified

DOUBLE: Row = {
    "responses_create_params": {"input": "Write double."},
    "tests": [{"function": "double", "args": [value], "expected": 2 * value} for value in (1, 21, -3)],
}
ECHO: Row = {"responses_create_params": {"input": "Echo."}, "tests": [{"stdin": "a\nb\n", "expected": "a\nb"}]}
RIGHT = "def double(x):\n    return 2 * x\n"


def block(source: str, language: str = "python") -> str:
    return f"Here it is:\n```{language}\n{source}```\n"


def rewards(*rows_and_texts: tuple[Row, str], reward: str = "all", wall_s: float = 5.0) -> list[Any]:
    """The replies' rewards, syntax and tests components."""
    replies = verified(CodeServer(Settings(reward=reward, wall_s=wall_s)), list(rows_and_texts))
    return [(one["reward"], one["reward_components"]["syntax"], one["reward_components"]["tests"]) for one in replies]


def right_answer(row: Row) -> str:
    """The right program of a made task, by its kind: found in the table of families."""
    from gym_bridge.resource_servers.code.problems import CONSTANTS, FAMILIES, Problem

    name = row["tests"][0]["function"]
    family = next(one for one in FAMILIES if one.name == name)
    text = row["responses_create_params"]["input"][0]["content"]
    problem = next(
        one for one in (Problem(family=family, constant=c, arguments=()) for c in CONSTANTS) if f"It returns {one.says}." in text
    )
    line = family.lines[family.hole].format(c=problem.constant) + "\n"
    return block(line if row["kind"] == "fill_in" else problem.source())


def lazy_answer(row: Row) -> str:
    """What the task shows, or a program that does nothing."""
    if row["kind"] == "repair":
        return row["responses_create_params"]["input"][0]["content"]
    return block("    pass\n" if row["kind"] == "fill_in" else f"def {row['tests'][0]['function']}(x):\n    return 0\n")


def test_right_programs_score_one_and_wrong_ones_by_how_wrong_they_are():
    half = "def double(x):\n    return 2 * x if x > 0 else 0\n"
    cases = [
        RIGHT,
        half,
        "def double(x) return 2\n",
        "def triple(x):\n    return 3 * x\n",
        "def double(x):\n    raise ValueError\n",
    ]
    told = [(DOUBLE, block(one)) for one in cases]
    assert rewards(*told) == [(1.0, 1.0, 1.0), (0.0, 1.0, 2 / 3), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 0.0)]
    assert [reward for reward, _, _ in rewards(*told[:2], reward="share")] == [1.0, 2 / 3]


def test_only_the_last_code_block_counts():
    assert last_block("no code") is None
    assert last_block("`double` is easy") is None
    assert last_block("```\nopen") is None
    assert last_block(block("a\n") + block("b\n")) == "b\n"
    two = block(RIGHT) + "or\n" + block("def double(x):\n    return 0\n")
    found = rewards((DOUBLE, two), (DOUBLE, RIGHT), (DOUBLE, "42"), (DOUBLE, block(two and RIGHT)))
    assert [reward for reward, _, _ in found] == [0.0, 0.0, 0.0, 1.0]


CHEATS = {
    "exits before it is asked": "import os\nos._exit(0)\n",
    "an object that equals everything": "class A(int):\n    def __eq__(self, o): return True\ndef double(x): return A(0)\n",
    "prints the record": "print('{\"value\": 2}')\ndef double(x): return 0\n",
    "writes the record itself": "import os\ndef double(x):\n    os.write(3, b'{\"value\": 42}')\n    return 42\n",
    "looks for the expected value": (
        "import gc\ndef double(x):\n"
        "    found = [o for o in gc.get_objects() if isinstance(o, dict) and 'expected' in o]\n"
        "    return found[0]['expected'] if found else 0\n"
    ),
    "reads the server's files": "def double(x):\n    return open('/proc/1/environ').read()\n",
    "goes on for ever": "def double(x):\n    while True: pass\n",
    "is true and one": "def double(x):\n    return True if x == 1 else 2.0 * x\n",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_score_zero(name: str):
    (reply,) = verified(CodeServer(Settings(wall_s=1.0)), [(DOUBLE, block(CHEATS[name]))])
    assert (reply["reward"], reply["reward_components"]["all"]) == (0.0, 0.0)


def test_a_program_is_tested_by_what_it_prints():
    assert rewards((ECHO, block("import sys\nprint(sys.stdin.read())\n")), (ECHO, block("print('a')\n"))) == [
        (1.0, 1.0, 1.0),
        (0.0, 1.0, 0.0),
    ]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_javascript_runs_where_node_is():
    row = {**DOUBLE, "language": "javascript"}
    assert rewards((row, block("function double(x) { return 2 * x }\n", "js")))[0][0] == 1.0


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_c_runs_where_gcc_is():
    source = "#include <stdio.h>\nint main(void) { int c; while ((c = getchar()) != EOF) putchar(c); return 0; }\n"
    assert rewards(({**ECHO, "language": "c"}, block(source, "c")))[0][0] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generate", "fill_in", "repair"])
def test_made_tasks_are_solved_by_the_right_program_and_not_by_what_they_show(kind: str):
    rows = list(CodeServer.tasks(num_tasks=5, seed=5, split="train", kind=kind))
    assert [reward for reward, _, _ in rewards(*[(row, right_answer(row)) for row in rows])] == [1.0] * 5
    assert [reward for reward, _, _ in rewards(*[(row, lazy_answer(row)) for row in rows], wall_s=0.5)] == [0.0] * 5


def test_the_examples_are_five_tasks_of_all_kinds_that_the_right_program_solves():
    lines = Path(code.__file__).parent.joinpath("data", "example.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    assert [row["kind"] for row in examples] == ["generate", "fill_in", "repair", "generate", "fill_in"]
    assert [reward for reward, _, _ in rewards(*[(row, right_answer(row)) for row in examples])] == [1.0] * 5


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_row_that_calls_c_functions_is_refused_before_the_model_is_asked():
    ((status, reply),) = posted(CodeServer(), [("/seed_session", {**DOUBLE, "language": "c"})])
    assert (status, reply["detail"][0]["loc"]) == (422, ["body", "tests", 0, "function"])


def test_a_row_in_a_language_without_its_tools_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    languages._find.cache_clear()
    try:
        ((status, reply),) = posted(CodeServer(), [("/seed_session", {**ECHO, "language": "c"})])
    finally:
        languages._find.cache_clear()
    assert (status, reply["detail"][0]["loc"]) == (422, ["body", "language"])
    assert "tools are not on PATH" in reply["detail"][0]["msg"]


def test_tasks_are_the_same_for_a_seed_and_the_splits_share_no_function():
    def identities(**options: Any) -> Iterator[str]:
        for row in CodeServer.tasks(num_tasks=200, **options):
            text = row["responses_create_params"]["input"][0]["content"]
            yield text[text.index("It returns") : text.index(" Answer with")] + row["tests"][0]["function"]

    train = set(identities(seed=1, split="train"))
    assert train == set(identities(seed=1, split="train"))
    assert len(train) == 200
    assert not train & set(identities(seed=2, split="heldout"))
    with pytest.raises(ConfigError, match="a split is sure of"):
        CodeServer.tasks(num_tasks=100_000, seed=1, split="train")
    assert load_server("code") is CodeServer


TESTS = st.one_of(
    st.fixed_dictionaries({"function": st.text(max_size=5), "args": st.lists(st.integers()), "expected": st.integers()}),
    st.fixed_dictionaries({"stdin": st.text(max_size=5), "expected": st.one_of(st.integers(), st.text(max_size=5))}),
)


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies=st.lists(st.tuples(st.text(max_size=200), st.lists(TESTS, max_size=3)), min_size=20, max_size=20))
def test_odd_rows_and_answers_are_answered(bodies: list[tuple[str, list[dict[str, Any]]]]):
    async def run() -> set[int]:
        async with client_of(CodeServer()) as client:
            rows = [answered({"responses_create_params": {}, "tests": tests}, text) for text, tests in bodies]
            return {(await client.post("/verify", row))[0] for row in rows}

    assert asyncio.run(run()) <= {200, 422}
