"""The quickstart without its minutes of training: its commands, its verdict, how it goes on after an interruption."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from gym_bridge.cli.main import cli
from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import write_jsonl
from gym_bridge.recipes.quickstart.job import Progress, Quickstart, Stage, _run, open_quickstart, stages
from gym_bridge.recipes.quickstart.report import tree, verdict

URL, SHUFFLED = "http://127.0.0.1:9000", "http://127.0.0.1:9001"


def all_stages(seed: int = 0, training_url: str = URL) -> list[Stage]:
    return stages(Path("runs/q"), seed=seed, url=URL, training_url=training_url)


def command_of(stage: Stage) -> tuple[click.Command, list[str]]:
    """The click command of a stage's verb, and the arguments left for it."""
    context, command, arguments = click.Context(cli), cli, list(stage.argv)
    while isinstance(command, click.Group):
        _, found, arguments = command.resolve_command(context, command_arguments(command, arguments))
        assert found is not None
        command = found
    return command, arguments


def command_arguments(group: click.Group, arguments: list[str]) -> list[str]:
    return ["run", *arguments] if group.name == "eval" and arguments[0].startswith("-") else arguments


def test_every_command_line_is_one_that_the_cli_takes():
    for stage in all_stages():
        command, arguments = command_of(stage)
        command.make_context(stage.name, arguments)  # raises UsageError for an unknown option or a missing one


def test_stages_have_names_of_their_own():
    names = [stage.name for stage in all_stages()]
    assert len(set(names)) == len(names)


def test_the_seed_reaches_every_command_that_draws_something():
    changed = [a.name for a, b in zip(all_stages(seed=1), all_stages(seed=2), strict=True) if a.argv != b.argv]
    assert changed == [
        stage.name for stage in all_stages() if stage.argv[0] in ("tasks", "collect", "train") or stage.name.startswith("eval ")
    ]


def test_evaluations_use_the_same_tasks_and_settings_for_every_policy():
    evaluations = [list(stage.argv) for stage in all_stages() if stage.name.startswith("eval ")]
    assert len(evaluations) == 3
    for argv in evaluations:
        for flag in ("--model", "--output"):
            del argv[argv.index(flag) + 1]
    assert evaluations[0] == evaluations[1] == evaluations[2]


def test_a_control_trains_on_shuffled_rewards_and_is_measured_on_true_ones():
    shuffled = {stage.name for stage in all_stages(training_url=SHUFFLED) if SHUFFLED in " ".join(stage.argv)}
    assert shuffled == {"collect", "train grpo"}


def evaluation_rows(rewards: list[float]) -> list[dict]:
    return [
        {
            "_ng_task_index": task,
            "_ng_rollout_index": 0,
            "responses_create_params": {"input": f"task {task}"},
            "response": {"output": []},
            "reward": reward,
            "extracted_answer": "1" if reward or task % 2 else None,
            "gym_bridge": {"truncated": False},
        }
        for task, reward in enumerate(rewards)
    ]


def write_evaluations(run: Path, before: list[float], after_sft: list[float], after_grpo: list[float]) -> None:
    for name, rewards in (("before", before), ("after_sft", after_sft), ("after_grpo", after_grpo)):
        write_jsonl(run / f"eval_{name}.jsonl", evaluation_rows(rewards))


LOW, MIDDLE, HIGH = [0.0] * 18 + [1.0] * 2, [0.0] * 10 + [1.0] * 10, [0.0] * 5 + [1.0] * 15


@pytest.mark.parametrize(
    ("before", "after_sft", "after_grpo", "improved"),
    [
        (LOW, MIDDLE, HIGH, True),
        (LOW, HIGH, MIDDLE, False),  # GRPO took back what SFT had won
        (HIGH, MIDDLE, LOW, False),
        (MIDDLE, MIDDLE, MIDDLE, False),
        ([0.0] * 19 + [1.0], [0.0] * 19 + [1.0], [0.0] * 18 + [1.0] * 2, False),  # one task won may be chance
    ],
)
def test_only_a_change_beyond_chance_with_a_part_of_grpos_own_counts(before, after_sft, after_grpo, improved: bool, tmp_path: Path):
    write_evaluations(tmp_path, before, after_sft, after_grpo)
    assert verdict(tmp_path, control=False).improved is improved
    assert verdict(tmp_path, control=False).as_expected is improved
    assert verdict(tmp_path, control=True).as_expected is not improved


def test_the_verdict_tells_answers_from_format_and_names_the_control(tmp_path: Path):
    write_evaluations(tmp_path, LOW, MIDDLE, HIGH)
    outcome = verdict(tmp_path, control=True)
    assert (outcome.before.readable, outcome.before.right) == (11 / 20, 2 / 11)
    assert outcome.sentences()[-1].startswith("This was the control")


def test_an_unfinished_run_of_the_same_seed_goes_on_and_a_finished_one_is_followed_by_a_new_one(tmp_path: Path):
    first = open_quickstart(tmp_path, seed=3, control=False)
    first.progress.seconds["tasks train"] = 1.5
    first.finish()
    again = open_quickstart(tmp_path, seed=3, control=False)
    assert again.directory == first.directory
    assert again.progress.seconds == {"tasks train": 1.5}
    assert open_quickstart(tmp_path, seed=4, control=False).directory.name == "quickstart-002"
    assert open_quickstart(tmp_path, seed=3, control=True).directory.name == "quickstart-003"
    again.progress.finished = True
    again.finish()
    assert open_quickstart(tmp_path, seed=3, control=False).directory.name == "quickstart-004"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make .*quickstart-001"):
        open_quickstart(tmp_path / "file", seed=0, control=False)


def test_a_command_that_fails_ends_the_quickstart_with_its_exit_code(tmp_path: Path):
    said: list[str] = []
    with pytest.raises(ConfigError, match="exit code 2"):
        _run(Stage(name="tasks", argv=("tasks", "arithmetik", "--output", str(tmp_path / "tasks.jsonl"))), said.append)
    assert said == [f"\n$ gym-bridge tasks arithmetik --output {tmp_path}/tasks.jsonl"]


def test_stages_that_are_done_are_not_run_again(tmp_path: Path):
    names = [stage.name for stage in all_stages()]
    done = Progress(seed=0, control=False, seconds=dict.fromkeys(names, 1.0))
    said: list[str] = []
    Quickstart(directory=tmp_path, progress=done).run(said.append)
    assert [line.split()[2] for line in said] == ["serve"]
    assert done.finished
    assert json.loads((tmp_path / "quickstart.json").read_text())["ports"].keys() == {"true"}


def test_ctrl_c_ends_the_quickstart_with_130_and_leaves_no_process_behind(tmp_path: Path):
    command = [sys.executable, "-m", "gym_bridge", "quickstart", "--output", str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    while "tasks arithmetic" not in child.stdout.readline():
        assert child.poll() is None
    time.sleep(0.2)  # by now the command runs
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("gym-bridge: interrupted")
    left = subprocess.run(["ps", "-o", "stat=,args=", "-g", str(child.pid)], capture_output=True, text=True).stdout.splitlines()
    assert [line for line in left if not line.startswith("Z")] == []


def test_the_tree_names_files_and_keeps_token_stores_closed(tmp_path: Path):
    (tmp_path / "run.tokens").mkdir()
    (tmp_path / "run.tokens" / "chunk-000000.npz").write_bytes(b"")
    (tmp_path / "run.jsonl").write_bytes(b"")
    assert tree(tmp_path) == [f"{tmp_path}/", "  run.jsonl", "  run.tokens/"]
