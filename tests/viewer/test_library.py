"""What lies at the paths that a user names."""

import json
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.viewer.library import Library
from tests.viewer.stage import append, failure, row, write


def names(*paths: Path) -> tuple[list[str], list[str]]:
    """Names of runs and of files."""
    with Library(paths) as library:
        return [run.name for run in library.runs], [file.name for file in library.files]


def stage(directory: Path) -> Path:
    """A quickstart's directory in small: runs, rollouts, and files that are neither."""
    whole = directory / "whole"
    for name in ("sft", "grpo"):
        (whole / name / "checkpoints" / "step_00000001" / "model").mkdir(parents=True)
        (whole / name / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
        (whole / name / "config.yaml").write_text("trainer: {alarms: {max_gap: 2.0}}\n")
    write(whole / "grpo" / "rollouts.jsonl", row())
    write(whole / "grpo" / "rollouts_failures.jsonl", failure(0, 1))
    write(whole / "eval.jsonl", row(), row(1))
    write(whole / "eval_materialized_inputs.jsonl", {"responses_create_params": {"input": "x"}, "_ng_task_index": 0})
    write(whole / "tasks.jsonl", {"responses_create_params": {"input": "x"}, "expected_answer": "4"})
    write(whole / "sft.jsonl", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})
    write(whole / "dpo.jsonl", {"prompt": "x", "chosen": "y", "rejected": "z"})
    write(whole / "sft" / "checkpoints" / "odd.jsonl", row())
    write(whole / "failed" / "only_failures.jsonl", failure(0, 0))
    (whole / "empty.jsonl").touch()
    return whole


def test_a_directory_shows_its_runs_and_rollouts_and_nothing_else(tmp_path: Path):
    runs, files = names(stage(tmp_path))
    assert sorted(runs) == ["whole/grpo", "whole/sft"]
    assert sorted(files) == ["whole/eval.jsonl", "whole/failed/only.jsonl", "whole/grpo/rollouts.jsonl"]


def test_metrics_are_read_but_for_a_torn_line_and_settings_where_they_can_be(tmp_path: Path):
    whole = stage(tmp_path)
    with Library([whole / "grpo"]) as library:
        (run,) = library.runs
        assert run.name == "grpo"
        assert run.metrics() == [{"step": 1, "loss": 0.5}]
        assert run.settings()["trainer"] == {"alarms": {"max_gap": 2.0}}
        (whole / "grpo" / "config.yaml").write_text("a: [1")
        assert run.settings() == {}
        assert library.files_of(run) == [0]
        assert library.run_of(library.files[0]) == run


def test_files_are_shown_under_what_tells_them_apart(tmp_path: Path):
    first, second = write(tmp_path / "a" / "R.jsonl", row()), write(tmp_path / "b" / "R.jsonl", row())
    assert names(first, second)[1] == ["a/R.jsonl", "b/R.jsonl"]
    assert names(first)[1] == ["R.jsonl"]


def test_siblings_that_a_pattern_of_the_shell_names_belong_to_their_file(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row())
    others = [write(tmp_path / f"R_{name}.jsonl", failure()) for name in ("failures", "materialized_inputs")]
    assert names(path, *others)[1] == ["R.jsonl"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"messages": [{"role": "user", "content": "x"}]}], "holds no rollouts"),
        ([{"responses_create_params": {"input": "x"}}], "holds no rollouts"),
        ([b"# A page\n", b"of text\n"], r"holds no rollouts \(.*R.jsonl:1: no JSON"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, rows: list[Any], told: str):
    path = write(tmp_path / "R.jsonl", *rows)
    with pytest.raises(ConfigError, match=told):
        names(path)


def test_what_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file or directory"):
        names(tmp_path / "gone.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no run of a training and no rollouts file"):
        names(tmp_path / "empty")


def test_a_path_that_is_named_twice_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "R.jsonl", row())
    assert len(names(Path(), path, Path("R.jsonl"))[1]) == 1


def test_a_failures_file_means_its_rollouts(tmp_path: Path):
    path = write(tmp_path / "R_failures.jsonl", failure())
    with Library([path]) as library:
        assert library.files[0].look().frame["outcome"].to_list() == ["failed"]


def test_a_damaged_first_line_hides_no_file_of_a_directory(tmp_path: Path):
    write(tmp_path / "d" / "R.jsonl", b"{torn\n", row())
    assert names(tmp_path / "d")[1] == ["d/R.jsonl"]


def test_a_file_that_becomes_one_of_rollouts_shows_up(tmp_path: Path):
    write(tmp_path / "d" / "A.jsonl", row())
    later = write(tmp_path / "d" / "B.jsonl", b"")
    with Library([tmp_path / "d"]) as library:
        append(later, row())
        library.look()
        assert [file.name for file in library.files] == ["d/A.jsonl", "d/B.jsonl"]


def test_a_file_with_an_unreadable_first_line_is_shown_with_its_problem(tmp_path: Path):
    with Library([write(tmp_path / "R.jsonl", b"{torn\n", row())]) as library:
        assert library.files[0].look().frame["outcome"].to_list() == ["unreadable", "completed"]


def test_a_manifest_alone_is_no_run(tmp_path: Path):
    write(tmp_path / "d" / "R.jsonl", row())
    (tmp_path / "d" / "R_manifest.json").write_text(json.dumps({"identity": {}}))
    assert names(tmp_path / "d") == ([], ["d/R.jsonl"])
