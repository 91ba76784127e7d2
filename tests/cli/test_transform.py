"""`transform` through the command line: what it prints, how it exits, and what is left when it is stopped."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.engine import WORKERS_FROM_BYTES
from gym_bridge.transforms.format import Format, RowOptions
from tests.transforms.stage import line, rollouts, rows_of

from .conftest import PATIENCE_S, Child
from .test_kills import children_of, is_running, wait_until

HELD, HOLDS = 1500, "holds"
"""At which rollout SLOW holds, and the file beside the tasks that it makes then."""
GONE_WITHIN_S = 10.0
BLANK = b" " * (1 << 20) + b"\n"
"""A line that is passed over; with many of them a file is worth several workers."""


def held(rollout: RolloutView, options: RowOptions) -> Row:
    """A row of one's own. For one rollout it takes as long as the test lasts."""
    if rollout.task_index == HELD:
        Path(rollout.row["task_id"]).touch()
        time.sleep(PATIENCE_S)
    return {"text": "a" * 1000, "prompt": "p", "answer": str(rollout.task_index)}


SLOW = Format(row=held)


def small(directory: Path, *, name: str = "rollouts.jsonl") -> Path:
    return rollouts(directory, line(1.0, task=0), line(0.25, "5", task=0, score=2), line(None, task=1), name=name)


def test_rows_are_exit_0_with_the_counts_in_text_and_in_json(gym_bridge, tmp_path: Path):
    path, out = small(tmp_path), tmp_path / "out.jsonl"
    ended = gym_bridge("transform", path, "--to", "sft", "--output", out)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        f"{out}: 1 row from 1 of 3 rollouts",
        "  dropped 1 low_reward  Its reward is below --min-reward; in pairs, that of the chosen answer is.",
        "  dropped 1 no_reward   It has an output, but no reward.",
        "--min-reward 0.9 is in force; --min-reward none lifts it",
    ]
    assert [row["gym_bridge"]["source"] for row in rows_of(out)] == [f"{path}:1"]
    told = json.loads(gym_bridge("transform", path, "--to", "sft", "--output", out, "--min-reward", "none", "--json").out)
    expected = {
        "rows_in": 3,
        "rows_used": 2,
        "rows_out": 2,
        "dropped": {"no_reward": 1},
        "min_reward": None,
        "spooled": [],
        "statistics": None,
    }
    assert {name: told[name] for name in expected} == expected
    assert len(rows_of(out)) == 2


def test_a_quiet_run_tells_its_rows_alone(gym_bridge, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    ended = gym_bridge("transform", small(tmp_path), "--to", "sft", "--output", out, "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, f"{out}: 1 row from 1 of 3 rollouts\n", "")
    ended = gym_bridge("transform", small(tmp_path), "--to", "sft", "--output", out, "--min-reward", "2", "--quiet")
    assert (ended.code, ended.out) == (2, "")
    assert "2 low_reward" in ended.err


def test_a_report_is_json_with_a_page_beside_it(gym_bridge, tmp_path: Path):
    report = tmp_path / "new" / "report.json"
    argv = ["transform", small(tmp_path), "--to", "dpo", "--output", tmp_path / "out.jsonl", "--report", report]
    told = json.loads(gym_bridge(*argv, "--json").out)
    assert json.loads(report.read_text()) == told
    assert told["statistics"]["pairs"]["margins"]["mean"] == 0.75
    page = report.with_suffix(".html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "no_reward" in page
    assert "<svg" in page


def test_a_split_names_both_of_its_files(gym_bridge, tmp_path: Path):
    path = rollouts(tmp_path, *(line(prompt=f"task {task}", task=task) for task in range(20)))
    ended = gym_bridge("transform", path, "--to", "response", "--output", tmp_path / "o.jsonl", "--split", "0.5", "--seed", 1)
    names = [tmp_path / "o.train.jsonl", tmp_path / "o.validation.jsonl"]
    train, validation = map(rows_of, names)
    told = f"{names[0]} and {names[1]}: 20 rows ({len(train)} to train on, {len(validation)} for validation) from 20 of 20 rollouts"
    assert (ended.code, ended.out.splitlines()[0]) == (0, told)
    assert len(train) + len(validation) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "sft", "--min-reward", "2"], "of 3 rows, 2 low_reward, 1 no_reward; lower --min-reward"),
        (["--to", "dpo", "--min-margin", "0.75"], "of 3 rows, 2 small_margin, 1 no_reward; lower --min-margin"),
        (["--to", "sft", "--where", "num_turns > 7"], "of 3 rows, 1 low_reward, 1 no_reward, 1 where; lower --min-reward"),
        (["--to", "tasks", "--where-group", "pass_rate > 1"], "of 3 rows, 2 where_group, 1 no_reward; loosen --where-group"),
        (["--to", "dpo", "--pairs", "all", "--dedupe", "exact", "--where", "reward > 0.5"], "1 no_partner, 1 no_reward, 1 where"),
    ],
)
def test_when_nothing_is_left_one_line_says_why_and_the_exit_is_2(gym_bridge, options: list[str], message: str, tmp_path: Path):
    path, out = small(tmp_path), tmp_path / "out.jsonl"
    out.write_text("before\n")
    ended = gym_bridge("transform", path, *options, "--output", out, "--report", tmp_path / "report.json")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"gym-bridge: no row is left for {out}: ")
    assert message in ended.err
    assert out.read_text() == "before\n"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.jsonl", "rollouts.jsonl"]


def test_a_dataset_without_rows_is_written_where_that_is_allowed(gym_bridge, tmp_path: Path):
    path, out, report = small(tmp_path), tmp_path / "out.jsonl", tmp_path / "report.json"
    given = ["--to", "tasks", "--where-group", "pass_rate > 1", "--allow-empty", "--output", out, "--report", report]
    ended = gym_bridge("transform", path, *given)
    assert (ended.code, out.read_bytes()) == (0, b""), ended.err
    told = json.loads(report.read_text())
    assert (told["rows_in"], sum(told["dropped"].values())) == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "sft", "--pairs", "all"], "--pairs does not apply to sft; leave it out"),
        (["--to", "dpo", "--flat-tool-calls"], "--flat-tool-calls does not apply to dpo; leave it out"),
        (["--to", "tasks", "--min-reward", "none"], "--min-reward does not apply to tasks; leave it out"),
        (["--to", "grpo", "--best-of", "3"], "--best-of does not apply to grpo; leave it out"),
        (["--to", "sft", "--seed", "0"], "--seed does not apply without --split or --pairs random; leave it out"),
        (["--to", "sft", "--where", "scoer > 1"], "'scoer > 1' names no known column 'scoer'; did you mean 'score'"),
        (["--to", "sft", "--where-group", "pas_rate > 0"], "names no known column 'pas_rate'; did you mean 'pass_rate'"),
        (["--to", "sft", "--reward", "scores"], "names no known column 'scores'; did you mean 'score'"),
        (["--to", "sft", "--split", "1"], "split=1.0: Input should be less than 1"),
        (["--to", "sft", "--workers", "0"], "workers=0: Input should be greater than 0"),
        (["--to", "stf"], "unknown format 'stf'; did you mean 'sft'"),
        (["--to", "no_such_module:FORMAT"], "cannot load 'no_such_module:FORMAT': No module named 'no_such_module'"),
    ],
)
def test_options_that_do_not_fit_are_one_line_and_exit_2(gym_bridge, options: list[str], message: str, tmp_path: Path):
    ended = gym_bridge("transform", small(tmp_path), *options, "--output", tmp_path / "out.jsonl")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]


def test_a_bad_row_is_one_line_with_its_place_and_can_be_skipped(gym_bridge, tmp_path: Path):
    path = rollouts(tmp_path, line(), line(True))
    argv = ["transform", path, "--to", "sft", "--output", tmp_path / "out.jsonl"]
    reason = f"{path}:2: reward is True; expected a finite number or null; drop such rows with --on-bad-row skip"
    assert (gym_bridge(*argv).code, gym_bridge(*argv).err) == (2, f"gym-bridge: {reason}\n")
    ended = gym_bridge(*argv, "--on-bad-row", "skip")
    assert (ended.code, ended.out.splitlines()[1].split()[:3]) == (0, ["dropped", "1", "bad_row"])


def test_columns_are_listed_in_text_and_in_json_and_nothing_is_written(gym_bridge, tmp_path: Path):
    path = small(tmp_path)
    text, told = gym_bridge("transform", path, "--columns"), json.loads(gym_bridge("transform", path, "--columns", "--json").out)
    assert (text.code, text.err) == (0, "")
    assert [row.split("  ")[0] for row in text.out.splitlines()] == [one["name"] for one in told]
    assert {"name": "score", "type": "any", "about": "A field of the rows, or a part of their reward_components."} in told
    about = {one["name"]: one["about"] for one in told}
    assert about["pass_rate"].startswith("For --where-group: ")
    assert all(one["name"] in text.out and one["about"] in text.out for one in told)
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]
    ended = gym_bridge("transform", tmp_path / "gone.jsonl", "--columns")
    assert (ended.code, ended.err) == (2, f"gym-bridge: {tmp_path / 'gone.jsonl'}: No such file or directory\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_one_line(gym_bridge, tmp_path: Path):
    path, closed = small(tmp_path), tmp_path / "closed"
    closed.mkdir(mode=0o500)
    ended = gym_bridge("transform", path, "--to", "sft", "--output", closed / "out.jsonl")
    assert (ended.code, ended.err) == (2, f"gym-bridge: cannot write {closed / 'out.jsonl'}: Permission denied\n")


@pytest.mark.parametrize("options", [["--to", "sft"], ["--to", "tasks"], ["--to", "sft", "--split", "0.5"]])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(gym_bridge, options: list[str], tiny_disk: Path, tmp_path: Path):
    path = rollouts(tmp_path, *(line(1.0, task=task, prompt=f"task {task} " + "x" * 2000) for task in range(60)))
    names = ["out.train.jsonl", "out.validation.jsonl"] if "--split" in options else ["out.jsonl"]
    for name in names:
        (tiny_disk / name).write_text("before\n")
    ended = gym_bridge("transform", path, *options, "--output", tiny_disk / "out.jsonl", "--report", tmp_path / "report.json")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("gym-bridge: cannot write ")
    assert ended.err.endswith(": No space left on device\n")
    assert {one.name: one.read_text() for one in tiny_disk.iterdir()} == dict.fromkeys(names, "before\n")
    assert [one.name for one in tmp_path.glob("report*")] == []


def test_a_disk_that_is_full_before_leaves_no_report_of_rows(gym_bridge, tiny_disk: Path, tmp_path: Path):
    with suppress(OSError), (tiny_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    ended = gym_bridge(
        *("transform", small(tmp_path), "--to", "sft", "--output", tiny_disk / "o.jsonl", "--report", tmp_path / "report.json")
    )
    assert (ended.code, ended.err) == (2, f"gym-bridge: cannot write {tiny_disk / 'o.jsonl'}: No space left on device\n")
    assert [one.name for one in tiny_disk.iterdir()] == ["filler"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["disk", "rollouts.jsonl"]


@pytest.fixture
def run_that_holds(child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Starts a command that has written a part of its output and goes no further; gives it with its workers."""
    (tmp_path / "spools").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spools"))

    def start(*, workers: int) -> tuple[Child, list[int]]:
        mark = str(tmp_path / HOLDS)
        padding = "x" * (1 << 12)
        lines = (line(1.0, padding, task=task, task_id=mark) for task in range(HELD + 100))
        path = rollouts(tmp_path, *lines, *[BLANK] * (WORKERS_FROM_BYTES // len(BLANK) if workers > 1 else 0))
        (tmp_path / "out.jsonl").write_text("before\n")
        (tmp_path / "report.json").write_text("before\n")
        argv = ["transform", path, "--to", f"{__name__}:SLOW", "--where", "task_id != ''", "--output", tmp_path / "out.jsonl"]
        running = child(*argv, "--report", tmp_path / "report.json", "--workers", workers, "--quiet")
        assert wait_until(lambda: (tmp_path / HOLDS).exists() or running.process.poll() is not None, seconds=PATIENCE_S)
        assert running.process.poll() is None, running.ended().err
        assert len(list(tmp_path.glob(".out.jsonl.*.tmp"))) == 1
        found = children_of(running.process.pid)
        found += [pid for child_pid in found for pid in children_of(child_pid)]
        assert len(found) == (0 if workers == 1 else 4)  # what tracks that which workers share, what starts them, and they
        return running, found

    return start


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_leaves_nothing_behind(
    run_that_holds, number: signal.Signals, code: int, workers: int, tmp_path: Path
):
    running, found = run_that_holds(workers=workers)
    for pid in (running.process.pid, *(found if number == signal.SIGINT else ())):  # a terminal sends Ctrl-C to all of them
        os.kill(pid, number)
    began = time.monotonic()
    ended = running.ended()
    assert time.monotonic() - began < GONE_WITHIN_S
    told = "gym-bridge: interrupted; what was done stays on disk, and the same command goes on from there"
    assert (ended.code, ended.out, ended.err.strip()) == (code, "", told if number == signal.SIGINT else "")
    assert wait_until(lambda: not any(map(is_running, found)), seconds=GONE_WITHIN_S), "processes are left behind"
    assert sorted(one.name for one in tmp_path.iterdir()) == [HOLDS, "out.jsonl", "report.json", "rollouts.jsonl", "spools"]
    assert {(tmp_path / name).read_text() for name in ("out.jsonl", "report.json")} == {"before\n"}
    assert list((tmp_path / "spools").iterdir()) == []


@pytest.mark.slow
def test_a_kill_leaves_no_worker_and_the_old_output(run_that_holds, tmp_path: Path):
    running, found = run_that_holds(workers=2)
    running.kill()
    gone = wait_until(lambda: not any(map(is_running, found)), seconds=GONE_WITHIN_S)
    for pid in filter(is_running, found):
        os.kill(pid, signal.SIGKILL)
    assert gone, "processes are left behind"
    assert {(tmp_path / name).read_text() for name in ("out.jsonl", "report.json")} == {"before\n"}


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(run_that_holds, tmp_path: Path):
    running, found = run_that_holds(workers=2)
    os.kill(found[-1], signal.SIGKILL)
    ended = running.ended()
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("gym-bridge: a worker process died: killed for want of memory (try fewer --workers)")
    assert (tmp_path / "out.jsonl").read_text() == "before\n"
    assert not list(tmp_path.glob(".out.jsonl.*.tmp"))
