"""Metrics, progress and the run directory."""

import contextlib
import io
import os
import pty
import shutil
from pathlib import Path

import orjson
import pytest
from pydantic import BaseModel

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.io.metrics import JsonlMetrics
from gym_bridge.io.progress import Progress
from gym_bridge.io.run_directory import RunDirectory, model_directory_of


def steps(path: Path) -> list[int]:
    return [row["step"] for _, row in read_jsonl(path)]


def test_metrics_go_on_after_the_resumed_step_and_forget_what_came_later(tmp_path: Path):
    path = tmp_path / "runs" / "metrics.jsonl"
    writer = JsonlMetrics(path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step / 2})
    JsonlMetrics(path, resume_step=2).write(3, {"loss": 9.0})
    assert [row for _, row in read_jsonl(path)] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


def test_a_torn_last_line_and_an_empty_file_do_not_stop_a_resumed_run(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2}\n{"ste')
    JsonlMetrics(path, resume_step=2).write(3, {})
    assert steps(path) == [1, 2, 3]
    path.write_bytes(b"")
    JsonlMetrics(path, resume_step=2).write(3, {})
    assert steps(path) == [3]


@pytest.mark.parametrize("line", [b"{}", b'{"step":"2"}', b"oops"])
def test_a_line_without_a_step_is_named(tmp_path: Path, line: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: "):
        JsonlMetrics(path, resume_step=2)
    assert path.read_bytes().startswith(b'{"step":1}\n' + line)


def test_what_is_written_again_of_the_resumed_step_stands_there_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":2,"loss":1.0}\n{"step":2,"validation/a/loss":3.0}\n')
    writer = JsonlMetrics(path, resume_step=2)
    for step, metrics in ((2, {"validation/a/loss": 3.0}), (2, {"validation/b/loss": 4.0}), (3, {"loss": 0.5}), (3, {"loss": 0.5})):
        writer.write(step, metrics)
    assert [{**row} for _, row in read_jsonl(path)] == [
        {"step": 2, "loss": 1.0},
        {"step": 2, "validation/a/loss": 3.0},
        {"step": 2, "validation/b/loss": 4.0},
        {"step": 3, "loss": 0.5},
        {"step": 3, "loss": 0.5},
    ]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    JsonlMetrics(path).write(1, {"loss": float("nan")})
    assert orjson.loads(path.read_bytes()) == {"step": 1, "loss": None}


def test_progress_says_what_was_done_in_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with Progress("collect", total=4, quiet=False, done=1, stream=stream) as progress:
        progress.advance({"reward": 0.25})
        progress.advance({"reward": 0.123456, "failed": 1}, count=2)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("collect: 4/4 in 0 s (")
    assert line.endswith("reward 0.1235 failed 1")
    assert " left" not in line


def test_unfinished_progress_tells_the_time_left():
    stream = io.StringIO()
    with Progress("collect", total=10**9, quiet=False, stream=stream) as progress:
        progress.advance({})
    assert stream.getvalue().startswith("collect: 1/1000000000 in 0 s (")
    assert stream.getvalue().endswith(" s left)\n")


def test_numbers_can_be_shown_without_anything_done():
    stream = io.StringIO()
    with Progress("train", total=2, quiet=False, stream=stream) as progress:
        progress.advance({"loss": 2.0})
        progress.show({"validation": 1.5})
    assert stream.getvalue().startswith("train: 1/2 in ")
    assert stream.getvalue().endswith(" validation 1.5\n")


def test_progress_without_a_total_and_quiet_progress():
    stream = io.StringIO()
    with Progress("train", total=None, quiet=False, stream=stream) as progress:
        progress.advance({})
    assert stream.getvalue().startswith("train: 1 in 0 s (")
    with Progress("train", total=2, quiet=True, stream=(silent := io.StringIO())) as progress:
        progress.advance({})
    assert (silent.getvalue(), progress.done) == ("", 1)


def read_to_the_end(reader: int) -> str:
    """What a closed terminal had been told; its end reads as an error."""
    told = b""
    with contextlib.suppress(OSError):
        while part := os.read(reader, 100_000):
            told += part
    os.close(reader)
    return told.decode()


def test_a_terminal_shows_a_bar_and_gets_its_cursor_back():
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal, Progress("collect", total=2, quiet=False, stream=terminal) as progress:
        progress.advance({"reward": 0.5}, count=2)
    shown = read_to_the_end(reader)
    assert "collect" in shown
    assert "2/2" in shown
    assert "reward 0.5" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


class Trainer(BaseModel):
    """A stand-in for the settings' own section."""

    output: str = "runs/a"
    max_steps: int | None = 2
    max_time_s: float | None = None
    keep_best: bool = False
    patience: int | None = None
    watch: str | None = None
    seed: int = 0


class Settings(BaseModel):
    """Settings of a run."""

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    prompt: str = "a: ${b}"
    trainer: Trainer = Trainer()


def test_a_run_writes_its_settings_versions_and_digests(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    run.begin(Settings(), digests={"model": "abc"})
    assert "lr: 1.0e-05" in (run.path / "config.yaml").read_text()
    manifest = orjson.loads((run.path / "manifest.json").read_bytes())
    assert manifest["digests"] == {"model": "abc"}
    assert {"python", "numpy"} <= set(manifest["versions"])


def test_the_same_run_goes_on_also_for_more_steps_and_another_is_refused_with_what_differs(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    run.begin(Settings(lr=7.0), digests={"model": "abc"})  # no step was taken: this start binds nobody
    run.begin(Settings(), digests={"model": "abc"})
    run.metrics.write_bytes(b'{"step":1}\n')
    run.begin(Settings(), digests={"model": "abc"})
    run.begin(Settings(trainer=Trainer(max_steps=9, output="elsewhere")), digests={"model": "abc"})
    with pytest.raises(ConfigError, match=r"settings\.lr: 1e-05 then, 0\.5 now; settings\.trainer\.seed: 0 then, 3 now"):
        run.begin(Settings(lr=0.5, trainer=Trainer(seed=3)), digests={"model": "abc"})
    with pytest.raises(ConfigError, match=r"digests\.model: 'abc' then, 'xyz' now"):
        run.begin(Settings(), digests={"model": "xyz"})
    run.begin(Settings(), digests={"model": "abc"})


def test_a_held_run_is_refused_to_others_and_one_that_stays_empty_is_removed(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), run.held():
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), run.held():
        shutil.rmtree(run.path)  # what went wrong is told, and not that the directory is gone
        raise ZeroDivisionError
    with run.held():
        with pytest.raises(ConfigError, match=r"run is being written by (this|another) process; wait for its end"), run.held():
            pass
        run.begin(Settings(), digests={})
    with run.held():
        assert (run.path / "config.yaml").exists()


def test_a_run_in_place_of_a_file_is_refused(tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match=r"cannot write .*run: File exists"), RunDirectory(tmp_path / "run").held():
        pass


class Scheduled(BaseModel):
    """A stand-in for the policy's section."""

    schedule: str = "cosine"
    schedule_steps: int | None = None
    schedule_options: dict[str, int] = {}


class ScheduledSettings(Settings):
    """Settings of a run whose learning rate falls."""

    policy: Scheduled = Scheduled()


def begun(tmp_path: Path, settings: BaseModel) -> RunDirectory:
    """A run that took a step with these settings."""
    run = RunDirectory(tmp_path / "run")
    run.begin(settings, digests={})
    run.metrics.write_bytes(b'{"step":1}\n')
    return run


def test_what_ends_a_run_or_keeps_checkpoints_may_change_and_what_is_watched_may_not(tmp_path: Path):
    run = begun(tmp_path, Settings())
    run.begin(Settings(trainer=Trainer(max_time_s=60.0, keep_best=True, patience=3)), digests={})
    with pytest.raises(ConfigError, match=r"settings\.trainer\.watch: None then, 'a/loss' now"):
        run.begin(Settings(trainer=Trainer(watch="a/loss")), digests={})


@pytest.mark.parametrize(
    "policy",
    [
        Scheduled(schedule="constant_with_warmup"),
        Scheduled(schedule="inverse_sqrt"),
        Scheduled(schedule_steps=100),
        Scheduled(schedule="warmup_stable_decay", schedule_options={"num_stable_steps": 5}),
    ],
)
def test_more_steps_are_the_same_run_where_the_learning_rates_stay(tmp_path: Path, policy: Scheduled):
    run = begun(tmp_path, ScheduledSettings(policy=policy))
    run.begin(ScheduledSettings(policy=policy, trainer=Trainer(max_steps=9)), digests={})


def test_more_steps_are_another_run_where_the_learning_rate_falls_to_the_last_of_them(tmp_path: Path):
    run = begun(tmp_path, ScheduledSettings())
    message = r"max_steps: 2 then, 9 now\); policy.schedule falls over trainer.max_steps unless policy.schedule_steps is set"
    with pytest.raises(ConfigError, match=message):
        run.begin(ScheduledSettings(trainer=Trainer(max_steps=9)), digests={})


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"settings": 1, "digests": {}}'])
def test_a_manifest_of_something_else_is_refused_and_kept(tmp_path: Path, content: bytes):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ConfigError):
        RunDirectory(tmp_path).begin(Settings(), digests={})
    assert (tmp_path / "manifest.json").read_bytes() == content


def test_a_directory_that_cannot_be_made_is_a_config_error(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot write"):
        RunDirectory(tmp_path / "file" / "run").begin(Settings(), digests={})


def make_checkpoint(run: RunDirectory, step: int) -> Path:
    directory = run.checkpoint(step)
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "config.json").write_text("{}")
    return directory


def test_the_newest_checkpoints_are_kept_and_found(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    assert run.last_checkpoint() is None
    for step in (9, 10, 100):
        make_checkpoint(run, step)
    (run.checkpoints / ".step_00000200.saving").mkdir()
    assert run.last_checkpoint() == run.checkpoint(100)
    run.keep_last(2)
    assert sorted(one.name for one in run.checkpoints.glob("step_*")) == ["step_00000010", "step_00000100"]


def test_the_best_checkpoint_is_kept_wherever_the_run_is_moved(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    for step in (1, 2, 3):
        make_checkpoint(run, step)
    for best in (2, 1, 1):
        run.mark_best(best)
    run.keep_last(1)
    assert sorted(one.name for one in run.checkpoints.iterdir()) == ["best", "step_00000001", "step_00000003"]
    moved = run.path.rename(tmp_path / "moved")
    assert model_directory_of(moved / "checkpoints" / "best") == moved / "checkpoints" / "step_00000001" / "model"


def test_a_model_is_a_run_a_checkpoint_or_a_directory(tmp_path: Path):
    run = RunDirectory(tmp_path / "run-1")
    checkpoint = make_checkpoint(run, 3)
    for path in (run.path, checkpoint, checkpoint / "model"):
        assert model_directory_of(path) == checkpoint / "model"
    with pytest.raises(ConfigError, match="did you mean 'run-1'"):
        model_directory_of(tmp_path / "run-2")
