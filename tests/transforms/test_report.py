import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import orjson
import polars as pl
import pytest
from pydantic import BaseModel, ValidationError

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms import report as report_module
from gym_bridge.transforms.index import SCHEMA
from gym_bridge.transforms.plan import make_plan
from gym_bridge.transforms.reasons import REASONS, meaning_of
from gym_bridge.transforms.report import Evidence, TransformReport, make_report, write_report
from tests.transforms.stage import line, rollouts, transformed

ROLLOUT = {"counts": True, "truncated": False, "num_turns": 1, "num_tool_calls": 0, "prompt_chars": 10, "answer_chars": 5}


def evidence_of(*rollouts, **more):
    """What a run has seen of these rollouts, each given by task, reward, reason and more."""
    lines = [
        ROLLOUT | {"task": task, "content": task, "reward": reward, "reason": reason} | rest
        for task, reward, reason, rest in rollouts
    ]
    index = pl.DataFrame([{name: line.get(name) for name in SCHEMA} for line in lines], schema=SCHEMA)
    dropped = Counter(line["reason"] for line in lines if line["reason"])
    used = len(lines) - dropped.total()
    return Evidence(**{"rows_in": len(lines), "rows_used": used, "dropped": dropped, "num_rows": [used], "index": index} | more)


def report_on(evidence, *, to="sft", spooled=(), **settings):
    plan = make_plan([Path("runs/<b>.jsonl")], TransformSettings(to=to, output=Path("o.jsonl"), report=Path("r.json"), **settings))
    return make_report(evidence, plan, spooled=list(spooled))


def example():
    return evidence_of(
        (1, 1.0, None, {"answer": 1}),
        (1, 1.0, None, {"answer": 1}),
        (1, 0.0, "low_reward", {"answer_chars": None}),
        (2, 0.0, "low_reward", {}),
        tools=Counter({"search": 3, "<mail>": 1}),
    )


def page_of(report, directory):
    write_report(report, directory / "report.json")
    return ET.fromstring((directory / "report.html").read_text(encoding="utf-8"))


def rows_of(page, title):
    (table,) = [one for one in page.iter("table") if one.find("caption").text.startswith(title)]
    return [["".join(cell.itertext()) for cell in row] for row in table.find("tbody")]


def test_the_json_is_the_report_and_reads_back(tmp_path):
    report = report_on(example())
    write_report(report, tmp_path / "report.json")
    written = (tmp_path / "report.json").read_bytes()
    assert TransformReport.model_validate_json(written) == report
    told = orjson.loads(written)
    assert (told["rows_in"], told["rows_used"], told["rows_out"], told["dropped"]) == (4, 2, 2, {"low_reward": 2})
    assert told["statistics"]["rewards"]["scored"]["mean"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_the_page_tells_where_every_rollout_went(tmp_path):
    page = page_of(report_on(example()), tmp_path)
    assert (page.find(".//h1").text, page.find(".//header/p").text) == ("Rollouts to sft", "runs/<b>.jsonl")
    assert rows_of(page, "Where the rollouts went") == [
        ["used", "2", "50.0 %", "It is in the output."],
        ["dropped: low_reward", "2", "50.0 %", REASONS["low_reward"]],
    ]


def test_the_page_tells_what_can_be_trained_and_why_not(tmp_path):
    assert [row[:3] for row in rows_of(page_of(report_on(example()), tmp_path), "What these rollouts can feed")] == [
        ["SFT", "2", "Complete rollouts in which the model answers or calls a tool, with a reward of 0.9 or more."],
        ["SFT", "2", "Complete rollouts that end with an answer and have a reward of 0.9 or more."],
        ["DPO", "0", "The answers of every task all have the same reward."],
        ["reward model", "1", "Pairs of the best and the worst complete rollout of a task, one a task."],
        ["GRPO, tasks with signal", "1", "Tasks whose rollouts differ in reward."],
        ["online training, all tasks", "2", "Tasks, with and without signal."],
    ]


def test_the_page_says_what_is_worth_knowing(tmp_path):
    report = report_on(example(), spooled=["-"])
    assert [one.text for one in page_of(report, tmp_path).iter("li")] == [
        "--min-reward 0.9 is in force; --min-reward none lifts it.",
        "Copied to a temporary file first: -.",
        "The reward looks binary: 0 or 1.",
        "1 of 2 tasks have no signal: all their rollouts have one reward, 1 of them tried only once.",
        "1 of 2 rollouts repeat an earlier one; of those in the output, 1 do.",
    ]


def test_the_page_has_a_picture_of_every_measure_and_its_numbers(tmp_path):
    page = page_of(report_on(example()), tmp_path)
    titles = ["Rewards", "Turns", "Tool calls", "Prompt length", "Answer length", "Mean reward of a task"]
    assert [one.text for one in page.iterfind(".//figure/h2")] == titles
    assert len(page.findall(".//figure/svg")) == 6
    assert rows_of(page, "In numbers")[:2] == [
        ["reward", "with a reward", "4", "0.5", "0", "0", "0.5", "1", "1"],
        ["reward", "in the output", "2", "1", "1", "1", "1", "1", "1"],
    ]
    assert rows_of(page, "Tools") == [["search", "3", "75.0 %"], ["<mail>", "1", "25.0 %"]]
    assert rows_of(page, "Tasks")[1] == ["sometimes solved", "1", "50.0 %", "Some do."]


def test_pairs_have_their_margins_and_the_length_of_their_answers_told(tmp_path):
    sides = [(task, reward, None, {"answer_chars": 90 if reward else 30}) for task in range(10) for reward in (1.0, 0.0)]
    pairs = pl.DataFrame({"task": range(10), "first": range(0, 20, 2), "second": range(1, 20, 2)})
    report = report_on(evidence_of(*sides, pairs=pairs, num_rows=[10]), to="dpo")
    page = page_of(report, tmp_path)
    assert [one.text for one in page.iter("li")] == [
        "The reward looks binary: 0 or 1.",
        "The chosen answer is the longer one in 100 % of the pairs whose lengths differ (95 % interval 72 % to 100 %): "
        "a model may learn that longer is better.",
    ]
    assert "Margins of pairs" in [one.text for one in page.iterfind(".//figure/h2")]
    assert rows_of(page, "In numbers")[-2] == ["margin", "of pairs", "10", "1", "1", "1", "1", "1", "1"]


def test_the_overlap_of_train_and_validation_is_measured(tmp_path):
    rollouts = [(task, 1.0, None, {"validation": task == 3, "prompt": task}) for task in (1, 2, 3)]
    report = report_on(evidence_of(*rollouts, num_rows=[2, 1]), split=0.3)
    told = [one.text for one in page_of(report, tmp_path).iter("li")]
    assert told[-1] == "Train has 2 tasks and validation 1; 0 tasks and 0 prompts stand in both."
    assert (report.rows_out, report.num_validation_rows) == (3, 1)


def test_a_report_without_statistics_still_makes_a_page(tmp_path):
    page = page_of(TransformReport(rows_in=8, rows_used=1, rows_out=1, dropped={"failure": 2, "tie": 5}), tmp_path)
    assert [row[:3] for row in rows_of(page, "Where")] == [
        ["used", "1", "12.5 %"],
        ["dropped: tie", "5", "62.5 %"],
        ["dropped: failure", "2", "25.0 %"],
    ]


def test_a_report_on_nothing_makes_a_page(tmp_path):
    report = report_on(Evidence(index=pl.DataFrame(schema=SCHEMA), num_rows=[0]))
    assert [row[0] for row in rows_of(page_of(report, tmp_path), "Where")] == ["used"]


def test_statistics_are_left_out_when_nobody_asked_for_a_report():
    plan = make_plan([Path("a.jsonl")], TransformSettings(to="dpo", output=Path("o.jsonl")))
    assert make_report(example(), plan, spooled=[]).statistics is None


def test_a_report_that_does_not_close_is_refused():
    with pytest.raises(ValidationError, match="does not close"):
        TransformReport(rows_in=3, rows_used=1, rows_out=1, dropped={"tie": 1})


def test_a_report_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_report(TransformReport(rows_in=0, rows_used=0, rows_out=0, dropped={}), tmp_path / "file" / "report.json")


def test_a_terminal_is_told_the_rows_the_drops_and_the_minimum():
    report = TransformReport(
        rows_in=12_000,
        rows_used=10_800,
        rows_out=10_800,
        dropped={"failure": 200, "low_reward": 1_000},
        num_validation_rows=800,
        min_reward=0.9,
        spooled=["-"],
    )
    assert report.describe().splitlines() == [
        "10,800 rows (10,000 to train on, 800 for validation) from 10,800 of 12,000 rollouts",
        f"  dropped 1,000 low_reward  {REASONS['low_reward']}",
        f"  dropped   200 failure     {REASONS['failure']}",
        "--min-reward 0.9 is in force; --min-reward none lifts it",
        "copied to a temporary file first: -",
    ]
    assert TransformReport(rows_in=2, rows_used=2, rows_out=1, dropped={}).describe() == "1 row from 2 of 2 rollouts"


def test_inputs_whose_tasks_had_to_be_taken_from_rollouts_are_told(tmp_path):
    paths = [rollouts(tmp_path, line(verdict="A"), name=f"{name}.jsonl") for name in ("a", "b")]
    rollouts(tmp_path, line(), name="b_materialized_inputs.jsonl")
    _, report = transformed(paths, "tasks")
    assert report.tasks_from_rollouts == [str(paths[0])]
    assert report.describe().endswith(f"and fields that a verifier added stay: {paths[0]}")
    assert transformed(paths, "sft")[1].tasks_from_rollouts == []


def test_every_reason_is_one_sentence_and_a_format_may_have_its_own():
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in REASONS.values())
    assert meaning_of("too_cheerful") == "The format takes no such rollout."


def test_every_field_of_the_report_has_a_sentence():
    fields = [field for model in (TransformReport, *models_in(TransformReport)) for field in model.model_fields.values()]
    assert len(fields) > 50
    assert all(field.description and field.description.endswith(".") for field in fields)


def models_in(model):
    """The models of the fields of `model`, theirs too."""
    found = {definition["title"] for definition in model.model_json_schema()["$defs"].values()}
    known = {one.__name__: one for one in all_models(BaseModel)}
    return [known[name] for name in sorted(found)]


def all_models(base):
    for one in base.__subclasses__():
        if one.__module__.startswith(report_module.__package__):
            yield one
        yield from all_models(one)
