import os
from pathlib import Path

import orjson
import pytest
from pydantic import ValidationError

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms import engine
from gym_bridge.transforms.engine import columns_of, transform_files
from gym_bridge.transforms.report import TransformReport
from tests.transforms.stage import FORMATS, line, rollouts, transformed

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures" / "nemo_gym"
EXPECTED = ROOT / "fixtures" / "expected"
QUICKSTART = ROOT / "gym_bridge" / "recipes" / "quickstart"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(path.name for path in EXPECTED.iterdir()))
def test_real_rollouts_make_the_dataset_that_was_checked_by_eye(name: str, workers: int, tmp_path: Path, monkeypatch):
    stem, to = name.removesuffix(".jsonl").split(".")
    monkeypatch.chdir(QUICKSTART if to == "dpo" else FIXTURES)
    monkeypatch.setattr(engine, "WORKERS_FROM_BYTES", 0)
    transform_files([Path(f"{stem}.jsonl")], TransformSettings(to=to, output=tmp_path / "out.jsonl", workers=workers))
    assert (tmp_path / "out.jsonl").read_bytes() == (EXPECTED / name).read_bytes()


@pytest.mark.parametrize(
    ("to", "used", "rows_out", "dropped", "min_reward"),
    [
        ("response", 9, 9, {"low_reward": 2}, 0.9),
        ("sft", 9, 9, {"low_reward": 2}, 0.9),
        ("grpo", 9, 9, {"no_truth": 1, "spare": 1}, None),
        ("dpo", 2, 1, {"no_partner": 9}, None),
        ("preference", 2, 1, {"no_partner": 9}, None),
        ("tasks", 11, 10, {}, None),
    ],
)
def test_the_shipped_rollouts_feed_every_format(to, used, rows_out, dropped, min_reward, tmp_path):
    settings = TransformSettings(to=to, output=tmp_path / "o.jsonl")
    report = transform_files([QUICKSTART / "nemo_gym_rollouts.jsonl"], settings)
    report = report.model_copy(update={"num_joined_prompts": 0, "tasks_from_rollouts": []})
    assert report == TransformReport(rows_in=11, rows_used=used, rows_out=rows_out, dropped=dropped, min_reward=min_reward)
    assert len((tmp_path / "o.jsonl").read_bytes().splitlines()) == rows_out


NO_ROLLOUTS = {"genrm_compare", "jailbreak_detection"}
NO_SFT = NO_ROLLOUTS | {"gymnasium", "ruler"}
NO_TEXT = NO_SFT | {"circle_click", "vlm_eval_kit"}
WITHOUT_A_ROW = {
    "response": NO_TEXT,
    "sft": NO_SFT,
    "grpo": NO_TEXT | {"aviary", "code_fim", "competitive_coding_challenges", "openenv"},
    "dpo": {path.stem for path in FIXTURES.glob("*.jsonl")} - {"user_guide"},
    "preference": {path.stem for path in FIXTURES.glob("*.jsonl")} - {"user_guide"},
    "tasks": NO_ROLLOUTS,
}
"""Files that hold nothing for a format: no rollouts, nothing said or called, cut off, images; neither a reference nor a verified
answer in words; no two rollouts of one task."""


@pytest.mark.parametrize("to", FORMATS)
def test_every_fixture_goes_through_every_format_and_is_accounted_for(to, tmp_path):
    without = set()
    for path in sorted(FIXTURES.glob("*.jsonl")):
        report = tmp_path / "report.json"
        try:
            rows, told = transformed(path, to, output=tmp_path / "out.jsonl", report=report, on_bad_row="skip")
        except ConfigError:
            without.add(path.stem)
            continue
        assert told.rows_in == len(path.read_bytes().splitlines())
        assert told.rows_out == len(rows)
        assert orjson.loads(report.read_bytes()) == told.model_dump(mode="json")
        assert told.statistics is not None
    assert without == WITHOUT_A_ROW[to]


def test_a_reward_at_the_minimum_is_kept_and_one_below_is_counted(tmp_path):
    path = rollouts(tmp_path, line(0.9), line(0.89), line(None), line(-1))
    rows, report = transformed(path, "response", min_reward="0.9", report=tmp_path / "report.json")
    assert [row["gym_bridge"]["source"] for row in rows] == [f"{path}:1"]
    assert (report.rows_in, report.rows_used, report.dropped) == (4, 1, {"low_reward": 2, "no_reward": 1})
    assert orjson.loads((tmp_path / "report.json").read_bytes()) == report.model_dump(mode="json")


def test_the_default_reward_is_told_and_none_keeps_all(tmp_path):
    path = rollouts(tmp_path, line(1.0), line(0.5))
    report = transform_files([path], TransformSettings(to="sft", output=tmp_path / "o.jsonl"))
    assert (report.min_reward, report.dropped) == (0.9, {"low_reward": 1})
    assert "--min-reward 0.9 is in force" in report.describe()
    rows, report = transformed(path, "sft", min_reward="none")
    assert (len(rows), report.min_reward) == (2, None)


def test_a_report_changes_no_row(tmp_path):
    odd = line(tools=[{"type": "function", "name": "f"}], task=2**63, gym_bridge={"num_turns": -1, "num_tool_calls": 2**40})
    path = rollouts(tmp_path, odd, line(0.0, "5", reward_components={"a": 1.0, "b": True}))
    for to in FORMATS:
        if to in ("dpo", "preference"):
            continue
        plain, told = transformed(path, to)
        again, in_full = transformed(path, to, report=tmp_path / "report.json")
        assert again == plain
        assert in_full.model_copy(update={"statistics": None}) == told
        assert in_full.statistics is not None
        assert in_full.statistics.reward_kind.components == {"a": 1}


def test_a_report_that_cannot_be_written_leaves_no_dataset(tmp_path):
    path = rollouts(tmp_path, line())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot write"):
        transformed(path, "sft", report=tmp_path / "file" / "report.json")
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_in_a_missing_directory_makes_it(tmp_path):
    rows, _ = transformed(rollouts(tmp_path, line()), "sft", output=tmp_path / "a" / "b" / "out.jsonl")
    assert len(rows) == 1


def test_when_no_row_is_left_the_reasons_are_told_and_nothing_is_written(tmp_path):
    path = rollouts(tmp_path, line(0.1), line(0.2), line(None))
    with pytest.raises(ConfigError, match=r"of 3 rows, 2 low_reward, 1 no_reward; lower --min-reward"):
        transformed(path, "response", min_reward="0.9", report=tmp_path / "report.json")
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]


def test_an_output_from_before_survives_a_run_that_fails(tmp_path):
    (tmp_path / "out.jsonl").write_bytes(b"before\n")
    with pytest.raises(ConfigError):
        transformed(rollouts(tmp_path, line(0.0)), "sft", min_reward="0.9")
    assert (tmp_path / "out.jsonl").read_bytes() == b"before\n"


def test_no_file_is_both_read_and_written(tmp_path):
    path, inputs = rollouts(tmp_path, line()), rollouts(tmp_path, line(), name="rollouts_materialized_inputs.jsonl")
    link, out = tmp_path / "link.jsonl", tmp_path / "out.jsonl"
    link.symlink_to(path)
    with pytest.raises(ConfigError, match="the output is the input"):
        transformed(path, "sft", output=link)
    with pytest.raises(ConfigError, match="the output is the input"):
        transformed(path, "sft", output=inputs)
    with pytest.raises(ConfigError, match="the report is an input or the output"):
        transformed(path, "sft", report=out, output=out)
    with pytest.raises(ConfigError, match="named twice"):
        transformed([path, link], "sft")
    with pytest.raises(ConfigError, match="no input file"):
        transform_files([], TransformSettings(to="sft", output=out))
    train = rollouts(tmp_path, line(), name="a.train.jsonl")
    with pytest.raises(ConfigError, match=r"a\.train\.jsonl: the output is the input"):
        transformed(train, "sft", output=tmp_path / "a.jsonl", split=0.5)
    assert path.read_bytes() == inputs.read_bytes() == line()


def test_no_directory_device_or_pipe_is_replaced(tmp_path):
    path, pipe = rollouts(tmp_path, line()), tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="is a directory; name a file"):
        transformed(path, "sft", output=tmp_path)
    with pytest.raises(ConfigError, match="is a device or a pipe; name a file"):
        transformed(path, "sft", output=pipe)
    with pytest.raises(ConfigError, match="is a device or a pipe; name a file"):
        transformed(path, "sft", report=pipe)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("to", "settings", "message"),
    [
        ("sft", {"min_margin": 0.5}, "--min-margin does not apply to sft"),
        ("sft", {"min_margin": 0.0}, "--min-margin does not apply to sft"),
        ("response", {"pairs": "all"}, "--pairs does not apply to response"),
        ("grpo", {"max_pairs_per_task": 2}, "--max-pairs-per-task does not apply to grpo"),
        ("dpo", {"best_of": 2}, "--best-of does not apply to dpo"),
        ("tasks", {"best_of": 2}, "--best-of does not apply to tasks"),
        ("tasks", {"min_reward": "0.5"}, "--min-reward does not apply to tasks"),
        ("tasks", {"dedupe": "exact"}, "--dedupe does not apply to tasks"),
        ("grpo", {"dedupe": "near"}, "--dedupe does not apply to grpo"),
        ("sft", {"flatten": "final"}, "--flatten does not apply to sft"),
        ("preference", {"flatten": "final"}, "--flatten does not apply to preference"),
        ("response", {"arguments": "string"}, "--arguments does not apply to response"),
        ("dpo", {"flat_tool_calls": True}, "--flat-tool-calls does not apply to dpo"),
        ("sft", {"prompt": "text"}, "--prompt does not apply to sft"),
        ("dpo", {"output_field": "x"}, "--output-field does not apply to dpo"),
        ("sft", {"seed": 0}, "--seed does not apply without --split or --pairs random"),
        ("dpo", {"seed": 0, "pairs": "all"}, "--seed does not apply without --split or --pairs random"),
        ("sft", {"min_reward": "nan"}, "--min-reward 'nan': expected a number or 'none'"),
        ("sft", {"min_reward": "high"}, "--min-reward 'high': expected a number or 'none'"),
        ("sftt", {}, "unknown format 'sftt'; did you mean 'sft'"),
        ("gym_bridge.transforms.sft:sft_row", {}, r"expected a gym_bridge\.transforms\.format\.Format"),
        ("gym_bridge.transforms.sft:SFTT", {}, r"cannot load 'gym_bridge\.transforms\.sft:SFTT'"),
        ("sft", {"where": "rewrd > 1"}, "names no known column 'rewrd'; did you mean 'reward'"),
        ("sft", {"reward": "accuracy"}, "names no known column 'accuracy'"),
        ("sft", {"where_group": "pass_rat > 0"}, "names no known column 'pass_rat'; did you mean 'pass_rate'"),
        ("sft", {"where_group": "reward > 0"}, "names no known column 'reward'"),
        ("sft", {"where": "__import__('os')"}, "can be called"),
        ("sft", {"where": "reward >"}, "expression 'reward >'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(to, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        transformed(rollouts(tmp_path, line()), to, **settings)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "wrong", [{"min_margin": -1.0}, {"min_margin": float("nan")}, {"split": 1.0}, {"workers": 0}, {"best_of": 0}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TransformSettings(to="dpo", output=Path("o"), **wrong)


def test_columns_are_ours_those_of_the_rows_and_of_their_tasks(tmp_path):
    path = rollouts(tmp_path, b"{torn\n", line(accuracy=0.5, info={"depth": 3}), line(late=True))
    rollouts(tmp_path, b'{"_ng_task_index":0,"difficulty":7}\n', name="rollouts_materialized_inputs.jsonl")
    names = [one.name for one in columns_of([path])]
    assert {"num_turns", "truncated", "accuracy", "info.depth", "late", "difficulty", "pass_rate"} <= set(names)
    assert names.index("reward") < names.index("accuracy") < names.index("pass_rate")


def test_two_runs_in_one_process_read_what_the_files_hold_now(tmp_path):
    inputs = "rollouts_materialized_inputs.jsonl"
    path = rollouts(tmp_path, line(1.0, "a", task=0), line(0.0, "b", task=0))
    rollouts(tmp_path, b'{"_ng_task_index":0,"expected_answer":"old"}\n', name=inputs)
    assert transformed(path, "dpo")[0][0]["chosen"] == "a"
    assert transformed(path, "grpo")[0][0]["output"] == "old"
    for one in tmp_path.iterdir():
        one.unlink()
    rollouts(tmp_path, line(1.0, "c", task=0), line(0.0, "d", task=0))
    rollouts(tmp_path, b'{"_ng_task_index":0,"expected_answer":"new"}\n', name=inputs)
    assert transformed(path, "dpo")[0][0]["chosen"] == "c"
    assert transformed(path, "grpo")[0][0]["output"] == "new"
