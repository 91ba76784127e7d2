"""The mathematics server: answers in boxes, right ones, cheating ones and ones that hang the verifier."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import math as math_server
from gym_bridge.resource_servers.registry import load_server
from gym_bridge.resource_servers.scorer_pool import ScorerPool, ScoringCrashed, ScoringTimeout
from gym_bridge.resource_servers.scoring_server import ScoringSettings
from gym_bridge.schemas.rollouts import FailureType
from tests.resource_servers.stage import answered, bodies, client_of, failed_rollout, posted, rolled_out, task, verified

pytest.importorskip("math_verify", reason="needs the servers extra: pip install -e '.[servers]'")

from gym_bridge.resource_servers.math.app import MathServer
from gym_bridge.resource_servers.math.boxes import last_box, refusal
from gym_bridge.resource_servers.math.problems import KINDS

HANGS = "9^{9^{9^{9}}}"
RIGHT = [
    ("32", r"\boxed{32}"),
    ("32", r"First \boxed{31}, no: that forgets one. The answer is \boxed{32}."),
    ("-5", r"\boxed{−5}"),
    ("5", r"\boxed{x = 5}"),
    ("5", r"$$\boxed{5\text{ cm}}$$"),
    ("5", r"\boxed{\$5}"),
    ("1234", r"\boxed{1{,}234}"),
    ("1500", r"\boxed{1.5 \times 10^{3}}"),
    ("3/4", r"\boxed{\frac{3}{4}}"),
    ("3/4", r"\boxed{.75}"),
    (r"\frac{3}{2}", r"\boxed{1\frac{1}{2}}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    ("3,5", r"\boxed{5, 3}"),
    ("(3,4)", r"\boxed{\left(3, 4\right)}"),
    ("x^2+1", r"\boxed{1 + x^{2}}"),
    (r"\text{Yes}", r"\boxed{Yes}"),
    ("4 or 5", r"\boxed{4 \text{ or } 5}"),
]
WRONG = [
    ("32", "32", "no_box"),
    ("32", r"\boxed{}", "no_box"),
    ("32", r"\boxed{32", "no_box"),
    ("32", r"\boxed{32}, or rather \boxed{33}", None),
    ("32", r"\boxed{31} \boxed{32}", "several"),
    ("32", r"$\boxed{31}$ or $\boxed{32}$", "several"),
    ("32", r"\boxed{31 \text{ or } 32}", "several"),
    ("32", r"\boxed{32?}", "several"),
    ("32", r"\boxed{maybe 32}", "several"),
    ("32", r"\boxed{31, 32}", "unfinished"),
    ("32", r"\boxed{\{31, 32\}}", "unfinished"),
    ("32", r"\boxed{2^5}", "unfinished"),
    ("5", r"\boxed{(20-5)/3}", "unfinished"),
    ("5", r"\boxed{3=5}", "unfinished"),
    ("5", r"\boxed{\pm 5}", "unfinished"),
    ("5", r"\boxed{5\text{ (7)}}", "unfinished"),
    ("5", r"\boxed{\frac{10}{\frac{4}{2}}}", "unfinished"),
    ("5", r"\boxed{5x}", None),
    ("5", r"\boxed{4.9999}", None),
    ("5", r"\boxed{" + "0" * 1001 + "5}", "too_long"),
    ("5", r"\boxed{\boxed{4}5}", "several"),
    ("3,5", r"\boxed{3,5,7}", None),
    ("3,5", r"\boxed{1,2,3,4,5,6,7}", None),
    ("(3,4)", r"\boxed{(4,3)}", None),
    ("(3,4)", r"\boxed{4,3}", None),
    ("x^2", r"\boxed{y^2}", None),
    ("x^2", r"\boxed{__import__('os').system('touch /tmp/cheated')}", None),
]


def rows(**arguments: Any) -> list[dict[str, Any]]:
    return list(MathServer.tasks(**{"num_tasks": 100, "seed": 0, "split": "train", **arguments}))


def test_right_answers_score_one_and_cheating_ones_zero_with_the_reason():
    asked = [*((expected, text, None) for expected, text in RIGHT), *WRONG]
    replies = verified(MathServer(), [(task(expected_answer=expected), text) for expected, text, _ in asked])
    rewarded = [(text, reply["reward"]) for (_, text, _), reply in zip(asked, replies, strict=True)]
    assert rewarded == [(text, 1.0) for _, text in RIGHT] + [(text, 0.0) for _, text, _ in WRONG]
    assert [reply["answer_problem"] for reply in replies[len(RIGHT) :]] == [problem for _, _, problem in WRONG]


def test_an_answer_that_hangs_the_verifier_scores_zero_in_time_and_the_next_one_is_scored_again():
    row, number = task(expected_answer="x^2"), task(expected_answer="7")
    started = time.perf_counter()
    texts = [(row, rf"\boxed{{{HANGS}}}"), (number, r"\boxed{7}")]
    hung, fine = verified(MathServer(ScoringSettings(deadline_s=0.7, num_workers=1)), texts)
    assert time.perf_counter() - started < 10
    assert (hung["reward"], hung["verification_timed_out"], hung["answer_problem"]) == (0.0, True, "unreadable")
    assert (fine["reward"], fine["verification_timed_out"], fine["extracted_answer"]) == (1.0, False, "7")


def test_an_expected_answer_that_cannot_be_read_is_a_failure_and_no_reward():
    failed = failed_rollout(MathServer(), task(expected_answer="$"), r"\boxed{5}")
    assert failed.type is FailureType.JUDGE
    assert "the task's own answer cannot be scored: ValueError: math-verify reads nothing" in failed.message


def test_a_rollout_reaches_its_reward_through_the_collector():
    row = rows(num_tasks=1)[0]
    played = rolled_out(MathServer(), row, f"It is \\boxed{{{row['expected_answer']}}}.")
    assert played.row["reward"] == 1.0
    assert played.row["extracted_answer"] == row["expected_answer"]
    assert played.row["question"] == row["question"]


def test_a_row_of_nemo_gym_scores():
    row = task(question="Determine how many ...", expected_answer="32", agent_ref={"name": "math_with_judge"})
    assert [one["reward"] for one in verified(MathServer(), [(row, r"\boxed{32}"), (row, r"\boxed{33}")])] == [1.0, 0.0]


def test_the_splits_share_no_question_whatever_their_seeds_and_a_seed_gives_the_same_tasks():
    assert rows(seed=3) == rows(seed=3) != rows(seed=4)
    train, heldout = (
        {row["question"] for row in rows(num_tasks=2000, seed=seed, split=split)} for seed, split in ((1, "train"), (2, "heldout"))
    )
    assert len(train) == len(heldout) == 2000
    assert not train & heldout


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_of_a_task_scores_and_another_does_not(kind: str):
    tasks = rows(num_tasks=4, kind=kind)
    asked = [(row, f"\\boxed{{{row['expected_answer']}}}") for row in tasks]
    wrong = [(row, f"\\boxed{{{row['expected_answer']}1}}") for row in tasks]
    assert [reply["reward"] for reply in verified(MathServer(), asked + wrong)] == [1.0] * 4 + [0.0] * 4


@pytest.mark.parametrize("size", [None, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_a_solution_is_true_and_it_ends_in_the_answers_box(kind: str, size: int | None):
    for row in rows(num_tasks=50, kind=kind, size=size):
        assert row["solution"].endswith(rf" \boxed{{{row['expected_answer']}}}")
        known = {"x": int(row["expected_answer"])} if kind == "linear_equation" else {}
        known |= {name: int(value) for name, value in re.findall(r"\$([xy]) = (-?\d+)\$", row["solution"])}
        steps = re.findall(r"\$([^$]+)\$", row["solution"])
        assert steps
        for step in steps:
            sides = {round(evaluated(side, known), 6) for side in step.split(" = ")}
            assert len(sides) == 1, step


def evaluated(latex: str, known: dict[str, int]) -> float:
    python = re.sub(r"\\frac\{(.*?)\}\{(.*?)\}", r"((\1)/(\2))", latex)
    python = re.sub(r"\\(cdot|times)", "*", python)
    return eval(re.sub(r"(\d)([xy])", r"\1*\2", python), {}, known)


@pytest.mark.parametrize(("kind", "largest"), [("linear_equation", 7), ("system", 7), ("fraction", 20), ("percentage", 700)])
def test_a_size_bounds_the_numbers_that_are_drawn(kind: str, largest: int):
    pattern = {"linear_equation": r"(\d+)x", "fraction": r"\}\{(\d+)\}", "percentage": r"(\d+) dollars", "system": r"(\d+)[xy]"}[
        kind
    ]
    size = 20 if kind == "fraction" else 7
    assert (
        max(int(one) for row in rows(num_tasks=400, kind=kind, size=size) for one in re.findall(pattern, row["question"]))
        == largest
    )


@pytest.mark.parametrize(("kind", "size"), [("linear_equation", 2), ("fraction", 6), ("percentage", 2), ("system", 2)])
def test_as_many_tasks_as_a_size_promises_are_found(kind: str, size: int):
    promised = KINDS[kind].count(size) // 8
    for split in ("train", "heldout"):
        assert len({row["question"] for row in rows(num_tasks=promised, kind=kind, size=size, split=split)}) == promised
    with pytest.raises(ConfigError, match=f"a split is sure of {promised} different tasks"):
        rows(num_tasks=promised + 1, kind=kind, size=size)


def test_questions_are_written_as_people_write_them():
    by_kind = {kind: rows(num_tasks=1, kind=kind)[0] for kind in ("linear_equation", "fraction", "percentage", "system")}
    for row in by_kind.values():
        assert "--" not in row["question"]
        assert "+ -" not in row["question"]
        assert row["responses_create_params"]["input"][1] == {"role": "user", "content": row["question"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kind": "algebra"}, "kind='algebra'"), ({"kinds": "mixed"}, "did you mean 'kind'"), ({"num_tasks": 50_001}, "50000")],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        rows(**arguments)


def test_a_finished_number_is_told_from_work_left_over():
    for answer in (
        "7",
        "-7",
        "7.0",
        ".5",
        "1,234",
        "3/4",
        r"\tfrac{3}{4}",
        r"2\frac34",
        r"25\%",
        "n=7",
        r"90^\circ",
        r"7\,\text{kg}",
    ):
        assert refusal(rf"\boxed{{{answer}}}", expected="7") is None, answer
    for answer in ("7+0", "7*1", "7!", "7^1", r"\sqrt{49}", "14/2/1", "--7", "1,23", "7 7 -", r"\frac{7}{1}{1}", "7e0x+1", "(7)"):
        assert refusal(rf"\boxed{{{answer}}}", expected="7") == "unfinished", answer


@given(st.text(max_size=300) | st.text(alphabet="\\boxed{} fr0123,/", max_size=300))
def test_any_text_has_its_last_box_or_none(text: str):
    box = last_box(text + r"\boxed{a{b}\}c}")
    assert box == r"a{b}\}c" or text.endswith("\\")
    refusal(text, expected="7")


def test_reading_a_huge_reply_takes_no_time():
    started = time.perf_counter()
    for text in (
        r"\boxed{" * 100_000,
        r"\boxed{1}" * 100_000,
        r"\boxed{1} " + " " * 500_000 + r"\boxed{2}",
        "{" * 500_000,
        r"\boxed{" + "1," * 499 + "}",
    ):
        refusal(text, expected="7")
    assert time.perf_counter() - started < 1.0


def test_the_example_tasks_are_tasks_that_the_server_takes():
    lines = (Path(math_server.__file__).parent / "data" / "example.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    assert examples == rows(num_tasks=5)
    assert [
        one["reward"]
        for one in verified(load_server("math")(), [(row, rf"\boxed{{{row['expected_answer']}}}") for row in examples])
    ] == [1.0] * 5  # pyright: ignore[reportArgumentType]


def test_no_body_makes_the_server_fail():
    sent: list[tuple[str, Any]] = []

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(["/seed_session", "/verify", "/aggregate_metrics"]), bodies(task(expected_answer="5"), "question"))
    def collect(path: str, body: Any) -> None:
        sent.append((path, body))

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.text(max_size=40) | st.text(alphabet="\\{}frac123^_+-*/=()[],.sqrt xy", max_size=12))
    def answer(text: str) -> None:
        sent.append(("/verify", answered(task(expected_answer="x^2"), f"\\boxed{{{text}}}")))

    collect()
    answer()
    statuses = {status for status, _ in posted(MathServer(ScoringSettings(deadline_s=0.5)), sent)}
    assert statuses <= {200, 400, 422}
    assert 422 in statuses


def test_a_pool_gives_results_tells_what_broke_and_replaces_what_hangs():
    async def run() -> list[Any]:
        pool = ScorerPool("tests.resource_servers.scorer_functions:act", num_workers=2, deadline_s=0.5)
        await pool.start()
        found: list[Any] = []
        try:
            for how in ("add", "print", "raise", "exit", "sleep", "write", "fork", "connect", "add"):
                try:
                    found.append(await pool.call({"how": how}))
                except (ScoringTimeout, ScoringCrashed) as error:
                    found.append(f"{type(error).__name__}: {error}")
            return found
        finally:
            await pool.stop()

    assert asyncio.run(run()) == [
        3,
        "printed",
        "ScoringCrashed: ValueError: nonsense",
        "ScoringCrashed: the process died",
        "ScoringTimeout: not done after 0.5 s",
        "ScoringCrashed: PermissionError: a scorer may not open",
        "ScoringCrashed: PermissionError: a scorer may not os.fork",
        "ScoringCrashed: PermissionError: a scorer may not socket.__new__",
        3,
    ]


def test_answers_are_compared_side_by_side():
    async def run() -> list[float]:
        async with client_of(MathServer(ScoringSettings(num_workers=2))) as client:
            rows_and_texts = [(task(expected_answer=str(number)), f"\\boxed{{{number % 3}}}") for number in range(12)]
            replies = await asyncio.gather(*(client.verify(row, text) for row, text in rows_and_texts))
            return [reply["reward"] for reply in replies]

    assert asyncio.run(run()) == [1.0, 1.0, 1.0] + [0.0] * 9
