"""What a recipe's report makes of its stages' numbers."""

import shlex
import shutil
from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import write_jsonl
from gym_bridge.recipes.catalogue import find_recipe
from gym_bridge.recipes.following import next_commands
from gym_bridge.recipes.planning import plan
from gym_bridge.recipes.report import StageReport, TrainingReport, write_report
from gym_bridge.recipes.running import read_done, run_recipe


def test_a_training_is_told_by_the_metrics_that_matter_and_the_parts_of_its_reward_in_one_chart(tmp_path: Path):
    metrics = tmp_path / "rlvr" / "metrics.jsonl"
    metrics.parent.mkdir()
    rows = [
        {"step": 1, "reward": 0.25, "kl": 0.0, "reward_component/right": 0.5, "reward_component/short": 0.1, "tokens_per_s": 9.0},
        {"step": 2, "reward": 0.75, "kl": 0.01, "reward_component/right": 0.6, "reward_component/short": 0.2, "tokens_per_s": 9.0},
    ]
    write_jsonl(metrics, rows)
    planned = plan(find_recipe("rlvr"), config="tiny", overrides=[f"output={tmp_path}"])
    stage = next(one for one in planned.stages if one.name == "train")
    done = StageReport(stage="train", command="gym-bridge train grpo", seconds=60.0, memory_gib=1.5)
    report = write_report(planned, [(stage, done)], notes=["something was found"])
    training = report.trainings["train"]
    assert training.steps == 2
    assert training.metrics == {
        "reward": ((1, 0.25), (2, 0.75)),
        "kl": ((1, 0.0), (2, 0.01)),
        "reward_component/right": ((1, 0.5), (2, 0.6)),
        "reward_component/short": ((1, 0.1), (2, 0.2)),
    }
    assert [one.title for one in training.curves("t")] == ["t: reward", "t: kl", "t: parts of the reward"]
    assert [line.name for line in training.curves("t")[-1].lines] == ["right", "short"]
    assert {path.name for path in tmp_path.glob("report.*")} == {"report.json", "report.md", "report.html"}
    assert "something was found" in report.to_text()
    assert "| train | 60 | 1.50 | 0 |" in report.to_markdown()


def test_environments_and_their_held_out_sets_are_told_apart(tmp_path: Path):
    metrics = tmp_path / "rlvr" / "metrics.jsonl"
    metrics.parent.mkdir()
    held_out = {"validation/game/reward": 0.5, "validation/sums/reward": 0.1, "validation/sums/truncated": 0.0}
    write_jsonl(metrics, [{"step": 1, "reward": 0.25, "reward/sums": 0.5, "reward/game": 0.0, **held_out}])
    planned = plan(find_recipe("mixed"), config="tiny", overrides=[f"output={tmp_path}"])
    stage = next(one for one in planned.stages if one.name == "rlvr")
    done = StageReport(stage="rlvr", command="gym-bridge train grpo", seconds=60.0, memory_gib=1.5)
    training = write_report(planned, [(stage, done)], notes=[]).trainings["rlvr"]
    told = ["rlvr: reward", "rlvr: validation/game/reward", "rlvr: validation/sums/reward", "rlvr: reward by environment"]
    assert [one.title for one in training.curves("rlvr")] == told
    assert [line.name for line in training.curves("rlvr")[-1].lines] == ["game", "sums"]


def test_what_comes_next_is_told_as_commands_for_what_is_there(tmp_path: Path):
    output, mine = tmp_path / "run", tmp_path / "mine.jsonl"
    given = [f"output={output}", "server=calculator", "knobs={depth: 2}", f"heldout_tasks={mine}"]
    planned = plan(find_recipe("sft"), config="tiny", overrides=given)
    assert next_commands(planned) == ()
    (output / "sft").mkdir(parents=True)
    told = {shlex.split(one.command)[3]: shlex.split(one.command)[4:] for one in next_commands(planned)}
    again = ["server=calculator", 'knobs={"depth": 2}', f"model={output / 'sft'}"]
    assert told["dpo"] == ["-c", "tiny", *again, f"heldout_tasks={mine}"]
    assert "reward_model" not in told  # it takes rollouts, which are not there
    for name, words in told.items():
        plan(find_recipe(name), config="tiny", overrides=words[2:])
    report = write_report(planned, [], notes=[])
    page, text, terminal = ((output / "report.html").read_text(), (output / "report.md").read_text(), report.to_text())
    assert all(one.command in text and one.command in terminal and one.when in page for one in report.next)


def test_a_recipe_of_ones_own_may_name_another_of_ones_own(tmp_path: Path):
    folder = tmp_path / "mine"
    shutil.copytree(find_recipe("sft").folder, folder)
    manifest = (folder / "step.toml").read_text()
    (folder / "step.toml").write_text(manifest.replace('step = "dpo"', 'step = "my_dpo"'))
    planned = plan(find_recipe(str(folder)), config="tiny", overrides=[f"output={tmp_path / 'run'}", "server=calculator"])
    (planned.output / "sft").mkdir(parents=True)
    (planned.output / "heldout.jsonl").touch()
    told = [one.command for one in next_commands(planned) if "my_dpo" in one.command]
    assert told == [
        f"gym-bridge recipe run my_dpo -c tiny model={planned.output / 'sft'} heldout_tasks={planned.output / 'heldout.jsonl'}"
    ]


def test_a_recipe_with_rounds_hands_on_what_the_last_gain_left(tmp_path: Path):
    planned = plan(find_recipe("iterate"), config="tiny", overrides=[f"output={tmp_path}"])
    for name in ("round_1/sft", "round_2/sft", "heldout.jsonl"):
        (tmp_path / name).mkdir(parents=True)
    assert next_commands(planned, last_gain=0) == ()
    (one,) = next_commands(planned, last_gain=2)
    assert f"model={tmp_path / 'round_2' / 'sft'}" in one.command


def test_a_training_without_steps_has_no_curves():
    assert TrainingReport(verb="sft", steps=0, metrics={}).curves("t") == []


def test_stages_that_are_done_are_read_again(tmp_path: Path):
    assert read_done(tmp_path) == []
    done = StageReport(stage="train", command="gym-bridge train", seconds=1.0, memory_gib=0.5)
    write_jsonl(tmp_path / "recipe.jsonl", [done.model_dump()])
    assert read_done(tmp_path) == [done]
    write_jsonl(tmp_path / "recipe.jsonl", [{"stage": "train"}])
    with pytest.raises(DataError, match=r"recipe.jsonl:1.*no stage of a recipe: 'command' is required"):
        read_done(tmp_path)


def test_a_run_is_recorded_goes_on_and_refuses_other_settings(tmp_path: Path):
    given = ["num_tasks=8", f"output={tmp_path / 'run'}"]
    first = run_recipe("rl_prep", config="tiny", overrides=given)
    assert [(one.stage, one.code) for one in first.stages] == [("blend", 0), ("prep", 0)]
    assert run_recipe("rl_prep", config="tiny", overrides=given).stages == first.stages
    (tmp_path / "run" / "blend.jsonl").unlink()
    assert run_recipe("rl_prep", config="tiny", overrides=given).stages[0] != first.stages[0]
    with pytest.raises(ConfigError, match="holds another run of the recipe: blend was `gym-bridge tasks arithmetic --num-tasks 8"):
        run_recipe("rl_prep", config="tiny", overrides=["num_tasks=9", f"output={tmp_path / 'run'}"])


def test_a_command_that_meets_a_users_mistake_ends_the_run_as_one(tmp_path: Path):
    with pytest.raises(ConfigError, match="ended with exit code 2, as told above; the same command goes on from there"):
        run_recipe("rl_prep", config="tiny", overrides=[f"blend={tmp_path / 'absent.jsonl'}", f"output={tmp_path / 'run'}"])
    assert read_done(tmp_path / "run") == []


def test_a_file_of_somebody_elses_is_not_written_over(tmp_path: Path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}\n")
    with pytest.raises(ConfigError, match="would write over it"):
        run_recipe("rl_prep", config="tiny", overrides=[f"stages.blend.output={mine}", f"output={tmp_path / 'run'}"])
    assert mine.read_text() == "{}\n"
