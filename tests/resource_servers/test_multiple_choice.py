"""Multiple choice: how replies are read in every mode, NeMo Gym's own rows, and questions made by rule."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.config import validate
from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import multiple_choice
from gym_bridge.resource_servers.multiple_choice.answers import by_mode, by_patterns
from gym_bridge.resource_servers.multiple_choice.app import MultipleChoiceServer, Settings
from gym_bridge.resource_servers.multiple_choice.questions import KINDS, random_question
from tests.resource_servers.stage import Request, Row, answered, bodies, posted, rolled_out, rows
from tests.rollouts.stage import called, in_order, said, turn

ROOT = Path(__file__).parents[2]
OPTIONS = [{"A": "Paris"}, {"B": "London town"}, {"C": "Rome"}, {"D": None}]
ROW: Row = {"responses_create_params": {"input": "Which?"}, "options": OPTIONS, "expected_answer": "B"}
STRICT, BOXED, COLON, COLON_MD = (
    "strict_single_letter_boxed",
    "lenient_boxed",
    "lenient_answer_colon",
    "lenient_answer_colon_md",
)
FULL_WIDTH_B = "\uff22"


def verdicts(*requests: tuple[Row, str], **chosen: Any) -> list[tuple[float, str | None]]:
    """Reward and letter read of each row and reply."""
    server = MultipleChoiceServer(validate(Settings, chosen))
    replies = posted(server, [("/verify", answered(row, text)) for row, text in requests])
    return [(reply["reward"], reply["extracted_answer"]) for _, reply in replies]


@pytest.mark.parametrize(
    ("mode", "text", "letter"),
    [
        (STRICT, r"\boxed{B}", "B"),
        (STRICT, r"so \boxed{ (B). } it is", "B"),
        (STRICT, r"\boxed{B} or \boxed{A}", "B"),
        (STRICT, r"\boxed{} \boxed{B}", "B"),
        (STRICT, "\\boxed{\n**B**\n}", "B"),
        (STRICT, r"\boxed{A}", "A"),
        (STRICT, r"\boxed{b}", None),
        (STRICT, r"\boxed{D}", None),
        (STRICT, r"\boxed{E}", None),
        (STRICT, r"\boxed{AB}", None),
        (STRICT, r"\boxed{A, B, C}", None),
        (STRICT, r"\boxed{\text{B}}", None),
        (STRICT, r"\boxed{London town}", None),
        (STRICT, rf"\boxed{{{FULL_WIDTH_B}}}", None),
        (STRICT, "\\boxed{\u0392}", None),
        (STRICT, r"\boxed{B", None),
        (STRICT, "B", None),
        (STRICT, "Answer: B", None),
        (BOXED, r"\boxed{B}", "B"),
        (BOXED, r"\boxed{ london   TOWN }", "B"),
        (BOXED, r"\boxed{it is London town.}", "B"),
        (BOXED, r"\boxed{\text{London town}}", "B"),
        (BOXED, r"\boxed{Paris, London town, Rome}", None),
        (BOXED, r"London town \boxed{}", None),
        (BOXED, "London town", None),
        (BOXED, r"\boxed{London town", None),
        (COLON, "Answer: B", "B"),
        (COLON, "the ANSWER :  b", "B"),
        (COLON, "Answer:\n\nB", "B"),
        (COLON, r"Answer: \text{ \text{B} }", "B"),
        (COLON, "Answer: london  town", "B"),
        (COLON, "Answer: B.", None),
        (COLON, "Answer: A B C", None),
        (COLON, "Answer: D", None),
        (COLON, "Answer: A\nAnswer: B", "A"),
        (COLON, "Answer:", None),
        (COLON, r"\boxed{B}", None),
        (COLON_MD, "**Answer: B**", "B"),
        (COLON_MD, "__Answer__: _B_", "B"),
        (COLON_MD, "**Answer**: **B**", None),
        (COLON_MD, "answer: b) London", "B"),
        (COLON_MD, "Answer: Because", None),
        (COLON_MD, "Answer: D", None),
        (COLON_MD, f"Answer: {FULL_WIDTH_B}", None),
    ],
)
def test_each_mode_reads_the_letter_that_a_reply_gives_or_none(mode: Any, text: str, letter: str | None):
    assert by_mode(text, OPTIONS, mode) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Which?",
        "A: Paris\nB: London town\nC: Rome",
        r"\boxed{A, B, C, D}",
        r"\boxed{A}\boxed{B}\boxed{C}",
        r"\boxed{ABCD}",
        r"\boxed{not A but B}",
        "\\boxed{\u200bb}",
        "expected_answer: B",
        json.dumps(ROW),
        r"\boxed{" * 1000,
        "-0",
        "9" * 5000,
    ],
)
def test_listing_quoting_and_tricks_with_letters_are_not_rewarded(text: str):
    modes = [{**ROW, "grading_mode": mode} for mode in (STRICT, BOXED)]
    assert [reward for reward, _ in verdicts(*((row, text) for row in modes))] == [0.0, 0.0]


def test_the_right_letter_is_rewarded_and_the_row_kept():
    row = {**ROW, "expected_answer": " b", "uuid": "x"}
    assert verdicts((row, r"\boxed{B}"), (row, r"\boxed{A}"), (row, "B")) == [(1.0, "B"), (0.0, "A"), (0.0, None)]
    reply = posted(MultipleChoiceServer(), [("/verify", answered(row, r"\boxed{B}"))])[0][1]
    assert reply == {**answered(row, r"\boxed{B}"), "expected_answer": "B", "extracted_answer": "B", "reward": 1.0}


def test_a_row_without_an_expected_answer_or_options_rewards_nothing():
    assert verdicts(({**ROW, "expected_answer": None}, r"\boxed{B}"), ({**ROW, "options": None}, r"\boxed{B}")) == [
        (0.0, "B"),
        (0.0, None),
    ]


def test_a_setting_puts_one_mode_over_those_of_the_rows():
    row = {**ROW, "grading_mode": COLON}
    assert verdicts((row, "Answer: B"), grading_mode=STRICT) == [(0.0, None)]
    with pytest.raises(ConfigError, match="grading_mode"):
        validate(Settings, {"grading_mode": "lenient"})


@pytest.mark.parametrize(
    ("patterns", "text", "letter"),
    [
        ([r"ANSWER IS\s*([A-Za-z])"], "answer is a ... ANSWER IS b", "B"),
        ([r"ANSWER IS\s*([A-Za-z])"], "answer is z", "Z"),
        ([r"Answer:\s*(.+)"], "Answer: London  TOWN", "B"),
        ([r"Answer:\s*(.+)"], f"Answer: {FULL_WIDTH_B}", "B"),
        ([r"Answer:\s*(.+)"], "Answer: ب", "B"),
        ([r"no", r"is (.)"], "it is C", "C"),
        ([r"Answer:\s*(.+)"], "Answer: nowhere", None),
        (["("], "B", None),
        (["(A)(B)"], "AB", None),
    ],
)
def test_a_rows_own_patterns_give_the_last_match(patterns: list[str], text: str, letter: str | None):
    assert by_patterns(text, OPTIONS, patterns) == letter


def test_what_no_pattern_gives_the_mode_may():
    row = {**ROW, "template_metadata": {"output_regex": r"IS ([A-Z])", "template_id": "t"}}
    assert verdicts((row, r"\boxed{B}"), (row, r"is c, \boxed{B}")) == [(1.0, "B"), (0.0, "C")]


def test_a_pattern_that_runs_wild_gives_up_after_a_second():
    started = time.perf_counter()
    assert by_patterns("x" * 3000 + "!", OPTIONS, [r"(x+x+)+y"]) is None
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "\\boxed{ ", " ", "\\text{", "answer", "answer:", "answer ", "*", "}", "\\boxed{A", "A"]
)
def test_a_huge_reply_is_read_in_no_time(piece: str):
    for text in (
        piece * 200_000,
        f"Answer: {piece * 200_000}",
        f"\\boxed{{{piece * 200_000}",
        f"Answer: {piece * 9999}{'}' * 9999}",
    ):
        started = time.perf_counter()
        for mode in (STRICT, BOXED, COLON, COLON_MD):
            by_mode(text, OPTIONS, mode)  # type: ignore[arg-type]
        assert time.perf_counter() - started < 1.0


def test_rollouts_that_nemo_gym_scored_score_the_same():
    options = {"options": [{letter: f"option {letter}"} for letter in "ABCDEFGHIJ"]}  # its rollouts do not keep them
    lines = [{**json.loads(line), **options} for line in (ROOT / "fixtures/nemo_gym/mcqa.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in lines] == [0.0, 1.0, 0.0, 1.0, 1.0]
    for row, (status, reply) in zip(lines, posted(MultipleChoiceServer(), [("/verify", row) for row in lines]), strict=True):
        assert status == 200
        found = {name: reply[name] for name in ("reward", "expected_answer", "extracted_answer")}
        assert found == {name: row[name] for name in found}


def test_all_that_the_assistant_said_is_read_also_before_a_tool_call():
    output = [
        said(r"\boxed"),
        called("look", {}),
        {"role": "user", "content": "{A}"},
        said("{B}"),
        {"type": "reasoning", "summary": []},
    ]
    row = {**ROW, "response": {"output": output}}
    assert posted(MultipleChoiceServer(), [("/verify", row)])[0][1]["extracted_answer"] == "B"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_options", [2, 4, 10])
def test_a_question_has_one_right_answer_among_different_ones(kind: Any, num_options: int):
    factors = {"kilometres": 1000, "metres": 100, "hours": 60, "minutes": 60, "days": 24, "weeks": 7, "kilograms": 1000}
    factors |= {"dozens": 12, "feet": 12, "pounds": 16}
    for seed in range(50):
        question = random_question(random.Random(seed), kinds=(kind,), num_options=num_options)
        words = question.text.rstrip("?").split()
        assert len(set(question.answers)) == num_options
        if kind == "order":
            best = max if words[-1] == "largest" else min
            assert int(question.answers[0]) == best(map(int, question.answers))
        elif kind == "count":
            quoted = question.text.split('"')
            assert int(question.answers[0]) == sum(letter == quoted[1] for letter in quoted[3])
        else:
            assert int(question.answers[0]) == int(words[-2]) * factors[words[-1]]


def test_a_row_shows_its_options_and_expects_the_letter_of_the_right_one():
    letters = set()
    for row in rows(MultipleChoiceServer, num_tasks=100, kind="order"):
        content = row["responses_create_params"]["input"][0]["content"]
        options = {letter: text for option in row["options"] for letter, text in option.items()}
        assert list(options) == ["A", "B", "C", "D"]
        assert all(f"\n{letter}: {text}\n" in content for letter, text in options.items())
        best = max if "largest" in content else min
        assert options[row["expected_answer"]] == best(options.values(), key=int)
        letters.add(row["expected_answer"])
    assert letters == {"A", "B", "C", "D"}


def test_a_seed_gives_the_same_tasks_again_and_the_splits_share_none():
    def asked(**arguments: Any) -> list[str]:
        asked_rows = rows(MultipleChoiceServer, num_tasks=500, **arguments)
        return [row["responses_create_params"]["input"][0]["content"].splitlines()[0] for row in asked_rows]

    assert rows(MultipleChoiceServer, seed=3) == rows(MultipleChoiceServer, seed=3)
    assert asked(seed=3) != asked(seed=4)
    assert len({*asked(seed=1), *asked(seed=1, split="heldout")}) == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_tasks_that_it_promises(kind: str):
    assert len(rows(MultipleChoiceServer, num_tasks=10_000, kind=kind, num_options=2)) == 10_000
    with pytest.raises(ConfigError, match="10000 different tasks"):
        rows(MultipleChoiceServer, num_tasks=10_001, kind=kind)


def test_the_examples_are_five_tasks_whose_answer_is_rewarded():
    lines = Path(multiple_choice.__file__).with_name("data").joinpath("example.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    asked = [(row, rf"\boxed{{{row['expected_answer']}}}") for row in examples]
    assert [reward for reward, _ in verdicts(*asked)] == [1.0] * 5


def test_a_whole_rollout_is_played_by_our_collector():
    row = rows(MultipleChoiceServer, num_tasks=1, grading_mode=COLON_MD)[0]
    ended = rolled_out(MultipleChoiceServer(), row, in_order(turn(said(f"**Answer: {row['expected_answer']}**"))))
    assert (ended.row["reward"], ended.row["extracted_answer"]) == (1.0, row["expected_answer"])


@given(st.text(max_size=60) | st.text(alphabet="\\boxed{} answer:*_AB", max_size=60))
def test_what_is_read_is_the_letter_of_an_option(text: str):
    for mode in (STRICT, BOXED, COLON, COLON_MD):
        assert by_mode(text.strip(), OPTIONS, mode) in {"A", "B", "C", None}  # type: ignore[arg-type]


paths = st.sampled_from(["/seed_session", "/verify", "/aggregate_metrics"])
fuzzed = bodies({**ROW, "grading_mode": COLON, "template_metadata": {"output_regex": "(B)"}}, "output_regex", "A")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(paths, fuzzed), min_size=1, max_size=12))
def test_no_body_makes_the_server_fail_or_hang(requests: list[Request]):
    assert {status for status, _ in posted(MultipleChoiceServer(), requests)} <= {200, 400, 422}
