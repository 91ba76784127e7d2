"""Files as AIME, MATH-500, MATH, GSM8K, GPQA, MMLU and MMLU-Pro are published become tasks; the questions here are our own."""

import csv
import json
from pathlib import Path

import polars as pl
import pytest

from gym_bridge.errors import DataError
from gym_bridge.resource_servers.math.app import MathServer
from gym_bridge.resource_servers.multiple_choice.app import MultipleChoiceServer
from gym_bridge.resource_servers.registry import read_tasks

AIME = {"id": 60, "problem": "Find $1+1$.", "solution": "...", "answer": "002", "url": "x", "year": "2024"}
AIME_2025 = {"problem": "Find $1+1$.", "answer": 2, "id": "0"}
AIME_CAPITALS = {"ID": "2024-I-1", "Problem": "Find $1+1$.", "Solution": "...", "Answer": 2}
MATH_500 = {"problem": "Find $1+1$.", "solution": "", "answer": "2", "subject": "Algebra", "level": 5, "unique_id": "test/1.json"}
MATH = {"problem": "Find $1+1$.", "level": "Level 5", "type": "Algebra", "solution": r"So it is $\boxed{\frac{4}{2}}$."}
GSM8K = {"question": "One and one?", "answer": "1 and 1 are <<1+1=2>>2.\n#### 2"}
GPQA = {
    "Question": "Which is a gas?",
    "Correct Answer": "neon",
    "Incorrect Answer 1": "iron",
    "Incorrect Answer 2": "salt",
    "Incorrect Answer 3": " gold\n",
    "High-level domain": "Chemistry",
    "Canary String": "",
}
MMLU = {"question": "Which is a gas?", "subject": "chemistry", "choices": ["iron", "neon", "salt", "gold"], "answer": 1}
MMLU_PRO = {"question_id": 7, "question": "Which?", "options": list("abcdefghij"), "answer": "I", "category": "law"}


def jsonl(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


@pytest.mark.parametrize(
    ("record", "answer", "more"),
    [
        (AIME, "2", {"id": 60}),
        (AIME_2025, "2", {"id": "0"}),
        (AIME_CAPITALS, "2", {"id": "2024-I-1"}),
        (MATH_500, "2", {"category": "Algebra", "level": 5, "unique_id": "test/1.json"}),
        (MATH, r"\frac{4}{2}", {"category": "Algebra", "level": "Level 5", "solution": MATH["solution"]}),
        (GSM8K, "2", {"solution": r"1 and 1 are 2. \boxed{2}"}),
    ],
)
def test_problems_become_tasks_of_math(record, answer, more, tmp_path):
    (row,) = read_tasks("math", [jsonl(tmp_path / "set.jsonl", record)], seed=0)
    question = record.get("problem") or record.get("Problem") or record["question"]
    messages = row.pop("responses_create_params")["input"]
    assert (messages[-1]["role"], messages[-1]["content"]) == ("user", question)
    assert row == {"question": question, "expected_answer": answer, **more}
    MathServer.Task(responses_create_params={}, **row)


@pytest.mark.parametrize(
    ("record", "letter", "answers", "category"),
    [(MMLU, "B", MMLU["choices"], "chemistry"), (MMLU_PRO, "I", MMLU_PRO["options"], "law")],
)
def test_questions_keep_the_order_of_their_options(record, letter, answers, category, tmp_path):
    (row,) = read_tasks("multiple_choice", [jsonl(tmp_path / "set.jsonl", record)], seed=3)
    assert (row["expected_answer"], row["category"]) == (letter, category)
    assert [answer for option in row["options"] for answer in option.values()] == answers
    asked = row["responses_create_params"]["input"][0]["content"]
    assert asked.startswith(f"{record['question']}\nA: {answers[0]}\nB: {answers[1]}\n")
    MultipleChoiceServer.Task(**row)


def test_gpqa_is_shuffled_by_seed_and_question_alone(tmp_path):
    others = [{**GPQA, "Question": f"Which is a gas, {number}?"} for number in range(40)]
    with (tmp_path / "gpqa_diamond.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, GPQA)
        writer.writeheader()
        writer.writerows(others)
    rows = list(read_tasks("multiple_choice", [tmp_path / "gpqa_diamond.csv"], seed=0, grading_mode="lenient_answer_colon"))
    right = [next(option for option in row["options"] if row["expected_answer"] in option) for row in rows]
    assert {one[row["expected_answer"]] for one, row in zip(right, rows, strict=True)} == {"neon"}
    assert {row["expected_answer"] for row in rows} == set("ABCD")
    assert {tuple(sorted(answer for option in row["options"] for answer in option.values())) for row in rows} == {
        ("gold", "iron", "neon", "salt")
    }
    assert rows[0]["grading_mode"] == "lenient_answer_colon"
    assert "Answer:" in rows[0]["responses_create_params"]["input"][0]["content"]
    one = jsonl(tmp_path / "one.jsonl", others[7])
    (again,) = read_tasks("multiple_choice", [one], seed=0, grading_mode="lenient_answer_colon")
    assert again == rows[7]
    other_seed = read_tasks("multiple_choice", [tmp_path / "gpqa_diamond.csv"], seed=1)
    assert [row["expected_answer"] for row in other_seed] != [row["expected_answer"] for row in rows]


def test_mmlus_own_csv_files_have_no_header_and_name_the_subject(tmp_path):
    path = tmp_path / "abstract_algebra_test.csv"
    path.write_text('"Which is, so to say, a gas?",iron,neon,salt,gold,B\nWhich is a metal?,air,neon,salt,gold,D\n')
    rows = list(read_tasks("multiple_choice", [path], seed=0))
    assert [row["expected_answer"] for row in rows] == ["B", "D"]
    assert {row["category"] for row in rows} == {"abstract_algebra"}
    assert rows[0]["responses_create_params"]["input"][0]["content"].startswith("Which is, so to say, a gas?\nA: iron\n")


def test_parquet_and_json_are_read_too(tmp_path):
    pl.DataFrame([MMLU, MMLU]).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.json").write_text(json.dumps([MMLU]))
    rows = list(read_tasks("multiple_choice", [tmp_path / "a.parquet", tmp_path / "b.json"], seed=0))
    assert len(rows) == 3
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.parametrize(
    ("server", "record", "told"),
    [
        ("math", {"prompt": "x"}, "columns prompt: expected problem or question"),
        ("math", {"problem": "x", "answer": " "}, "column 'answer' is ' ', expected a text"),
        ("math", {"problem": "x", "solution": "none"}, r"its solution has no answer in \boxed{}"),
        ("multiple_choice", {"question": "x", "answer": "y"}, "expected those of GPQA"),
        ("multiple_choice", {**MMLU, "answer": 4}, "answer '4' is none of its 4 options"),
        ("multiple_choice", {**MMLU_PRO, "answer": "K"}, "answer 'K' is none of its 10 options"),
        ("multiple_choice", {**MMLU, "choices": ["one"]}, "1 options; expected 2 to 10"),
        ("multiple_choice", {**GPQA, "Incorrect Answer 2": None}, "column 'incorrect answer 2' is None"),
    ],
)
def test_a_record_that_is_not_understood_is_named(server, record, told, tmp_path):
    path = jsonl(tmp_path / "set.jsonl", record)
    with pytest.raises(DataError) as refused:
        list(read_tasks(server, [path], seed=0))
    assert f"{path}:1: " in str(refused.value)
    assert told in str(refused.value)
