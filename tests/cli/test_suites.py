"""Suites: an endpoint that adds and a model of random weights in this process, on sums."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gym_bridge.schemas.suite_settings import SuiteSettings


@pytest.fixture
def suite(tmp_path: Path, tasks: Path, chat_model, tiny_llama: Path) -> Callable[..., Path]:
    """Writes a suite of two sets and two policies; `changed` are keys of its own."""
    adder = {"model": "adder", "model_url": [chat_model().url], "model_api": "chat"}

    def write(**changed) -> Path:
        values = {
            "output": str(tmp_path / "suite"),
            "play": {"server": "arithmetic", "max_output_tokens": 4},
            "sets": {"sums": {"input": str(tasks)}, "twice": {"input": str(tasks), "num_repeats": 2, "limit": 3}},
            "policies": {"adder": adder, "random": {"model": str(tiny_llama)}},
        }
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(values | changed))
        return path

    return write


def test_policies_stand_side_by_side_and_a_loss_is_exit_3(gym_bridge, suite, tmp_path: Path):
    ended = gym_bridge("eval", "--config", suite(baseline="adder"), "--max-regression", 0.5, "--quiet")
    assert ended.code == 3, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "SUMS"
    assert lines[1].split() == ["adder", "random"]
    assert "random against adder, difference: -1.000 (95 % -1.000 to -1.000), p < 0.001" in lines
    assert "random against adder, tasks: 0 won, 3 lost, 0 tied" in lines
    assert lines[-2:] == [
        "sums: random may have lost 1.000 against adder, more than max_regression=0.5",
        "twice: random may have lost 1.000 against adder, more than max_regression=0.5",
    ]
    rows = [len((tmp_path / "suite" / policy / f"{name}.jsonl").read_text().splitlines()) for policy, name in PLAYED]
    assert rows == [6, 6, 6, 6]
    told = json.loads((tmp_path / "suite" / "report.json").read_text())
    assert told["sets"]["twice"]["policies"]["adder"]["num_rollouts"] == 6
    assert told["sets"]["twice"]["against_baseline"]["random"]["tasks_lost"] == 3


PLAYED = [("adder", "sums"), ("adder", "twice"), ("random", "sums"), ("random", "twice")]


def test_a_stored_baseline_is_an_earlier_suites_directory_and_nothing_is_played_twice(gym_bridge, suite, tmp_path: Path):
    assert gym_bridge("eval", "--config", suite(), "--quiet").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "suite").rglob("*.jsonl")}
    stored = tmp_path / "suite" / "random"
    ended = gym_bridge("eval", "suite", f"baseline={stored}", "--config", suite(), "max_regression=0", "--markdown", "--quiet")
    assert ended.code == 0, ended.err
    assert f"|  | {stored} | adder | random |" in ended.out
    assert f"- adder against {stored}, difference: +1.000 (95 % +1.000 to +1.000), p < 0.001" in ended.out.splitlines()
    assert (tmp_path / "suite" / "report.md").read_text() == ended.out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "suite").rglob("*.jsonl")} == before


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"baseline": "other"},
            "baseline=other: none of the policies (adder, random), and as a directory without other/sums.jsonl",
        ),
        ({"max_regression": 0.1}, "max_regression needs a baseline, and a policy besides it"),
        ({"measure_kl": True}, "measure_kl needs a baseline among the policies, and a policy besides it"),
        ({"measure_kl": True, "baseline": "elsewhere"}, "measure_kl needs a baseline among the policies"),
        ({"sets": {}}, "sets"),
        ({"sets": {"a/b": {"input": "x"}}}, "'a/b' names files"),
        ({"sets": {"sums": {"input": "x", "output": "y"}}}, "sets.sums.output: a suite writes to its own output"),
        ({"sets": {"sums": {"input": "x", "num_repeat": 2}}}, "sets.sums with policies.adder: unknown key 'num_repeat'"),
        ({"policies": {"one": {"model": "a", "tokenizer": "b"}}}, "sets.sums with policies.one: --tokenizer: without effect"),
        ({"policy": {}}, "unknown key 'policy'; did you mean 'policies'"),
    ],
)
def test_a_wrong_suite_is_one_line_and_nothing_is_written(gym_bridge, suite, changed, told, tmp_path: Path):
    ended = gym_bridge("eval", "--config", suite(**changed))
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert told in ended.err
    assert not (tmp_path / "suite").exists()


def test_tables_come_in_markdown_too(gym_bridge, suite, tmp_path: Path):
    assert gym_bridge("eval", "--config", suite(), "--quiet").code == 0
    files = [tmp_path / "suite" / policy / "sums.jsonl" for policy in ("random", "adder")]
    report = gym_bridge("eval", "report", files[1], "--markdown")
    assert report.out.splitlines()[:3] == ["|  | value |", "| --- | --- |", "| mean reward | 1.000 (95 % 1.000 to 1.000) |"]
    compared = gym_bridge("eval", "compare", *files, "--markdown")
    assert compared.out.splitlines()[0] == "|  | before | after |"
    assert "- tasks: 6 won, 0 lost, 0 tied" in compared.out.splitlines()


def test_the_suite_of_the_guide_is_one():
    guide = (Path(__file__).parents[2] / "docs" / "eval.md").read_text()
    (suite,) = [one.partition("```")[0] for one in guide.split("```yaml")[1:]]
    planned = SuiteSettings.model_validate(yaml.safe_load(suite)).evaluations()
    assert len(planned) == 6
    assert planned["served", "aime"].model_api == "chat"
    assert planned["trained", "aime"].num_repeats == 16


def test_a_suite_tells_how_far_policies_have_gone_from_the_baseline(
    gym_bridge, suite, tiny_llama: Path, tiny_qwen3: Path, tmp_path: Path
):
    here = {name: {"model": str(model)} for name, model in (("random", tiny_llama), ("other", tiny_qwen3))}
    policies = {**here, "cooler": {"model": str(tiny_qwen3), "temperature": 0.5}, "known": {"model": "known-answers"}}
    ended = gym_bridge("eval", "--config", suite(baseline="random", measure_kl=True, policies=policies), "--quiet")
    assert ended.code == 0, ended.err
    told = json.loads((tmp_path / "suite" / "report.json").read_text())["sets"]["sums"]["drift"]
    assert told["other"]["kl"]["low"] > 0
    assert told["known"] == {"kl": None, "unmeasured": "both must be models of this process"}
    assert told["cooler"]["kl"] is None
    assert "sampled with temperature=0.5" in told["cooler"]["unmeasured"]
    assert f"other against random, KL: {told['other']['kl']['mean']:.4f} (95 % " in ended.out
    assert "known against random, KL not measured: both must be models of this process" in ended.out
    assert "- other against random, KL: " in (tmp_path / "suite" / "report.md").read_text()
