"""What a recipe's report makes of its stages' numbers."""

import shlex
import shutil
from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError, DataError, PolicyError
from gym_bridge.io.jsonl import write_jsonl
from gym_bridge.recipes.catalogue import find_recipe
from gym_bridge.recipes.children import Ended, check_ended
from gym_bridge.recipes.following import next_commands
from gym_bridge.recipes.planning import plan
from gym_bridge.recipes.report import StageReport, TrainingReport, write_report
from gym_bridge.recipes.running import recorded, run_recipe


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
    assert report.notes == ("something was found",)
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
    report = write_report(planned, [(stage, done)], notes=[])
    assert report.notes == ("rlvr: no KL was measured; algorithm.beta above 0 holds a reference to measure it by",)
    training = report.trainings["rlvr"]
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


AT_HTTP = ("server=http://127.0.0.1:9", "train_tasks=a.jsonl", "heldout_tasks=b.jsonl")
RL_PREP_FILES = ("data/train/shard-00000-of-00001.jsonl", "data/validation/shard-00000-of-00001.jsonl")


@pytest.mark.parametrize(
    ("recipe", "config", "overrides", "left", "step", "told"),
    [
        (
            "sft",
            "tiny",
            ("server=math",),
            ("sft", "rollouts.jsonl"),
            "reward_model",
            ["model={}/sft", "rollouts={}/rollouts.jsonl"],
        ),
        ("sft", "tiny", AT_HTTP, ("sft",), "dpo", [AT_HTTP[0], "model={}/sft", "heldout_tasks=b.jsonl", "train_tasks=a.jsonl"]),
        (
            "rl_prep",
            "tiny",
            ("knobs={kind: tool}",),
            RL_PREP_FILES,
            "rlvr",
            [f"train_tasks={{}}/{RL_PREP_FILES[0]}", f"heldout_tasks={{}}/{RL_PREP_FILES[1]}"],
        ),
        (
            "mixed",
            "tiny",
            ("sums.server=math", "sums.knobs.size=4"),
            ("rlvr", "sums.heldout.jsonl"),
            "rlvr",
            ["server=math", 'knobs={{"size": 4}}', "max_tokens=32", "model={}/rlvr", "heldout_tasks={}/sums.heldout.jsonl"],
        ),
        (
            "pipeline",
            "code",
            ("knobs.kind=generate", "max_tokens=99"),
            ("rlvr", "heldout.jsonl"),
            "iterate",
            ["server=code", 'knobs={{"kind": "generate"}}', "max_tokens=99", "model={}/rlvr", "heldout_tasks={}/heldout.jsonl"],
        ),
    ],
)
def test_the_next_command_takes_what_is_in_force_and_what_it_heeds(
    recipe: str, config: str, overrides: tuple[str, ...], left: tuple[str, ...], step: str, told: list[str], tmp_path: Path
):
    planned = plan(find_recipe(recipe), config=config, overrides=[f"output={tmp_path}", *overrides])
    for one in left:
        (tmp_path / one).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / one).touch()
    (words,) = [shlex.split(one.command)[4:] for one in next_commands(planned) if f" run {step} " in one.command]
    assert words == ["-c", "tiny", *(one.format(tmp_path) for one in told)]


def test_the_next_command_has_an_output_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = plan(find_recipe("rlvr"), config="tiny", overrides=["output=mine", "model=smollm2-135m"])
    for name in ("mine/rlvr", "mine/heldout.jsonl", "runs/recipe_iterate/recipe.jsonl", "runs/recipe_iterate_2"):
        Path(name).mkdir(parents=True)
    (one,) = next_commands(planned)
    assert shlex.split(one.command)[-1] == "output=runs/recipe_iterate_3"


def test_long_mathematics_goes_on_with_its_own_server_and_length(tmp_path: Path):
    planned = plan(find_recipe("long_context_math"), config="tiny", overrides=[f"output={tmp_path}"])
    (tmp_path / "long").touch()
    (tmp_path / "heldout.jsonl").touch()
    (one,) = next_commands(planned)
    longest = planned.settings.model_dump()["lengths"]["long"]
    assert "server=math" in shlex.split(one.command)
    assert f"max_tokens={longest}" in shlex.split(one.command)


def test_what_comes_after_a_config_over_default_is_default(tmp_path: Path):
    config = tmp_path / "mine.yaml"
    config.write_text("defaults: default.yaml\nmax_tokens: 512\n")
    planned = plan(find_recipe("sft"), config=str(config), overrides=[f"output={tmp_path}"])
    (tmp_path / "sft").touch()
    (tmp_path / "heldout.jsonl").touch()
    for one in next_commands(planned):
        assert shlex.split(one.command)[4:7] == ["-c", "default", "max_tokens=512"]


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
    assert recorded(tmp_path) == {}
    done = StageReport(stage="train", command="gym-bridge train", seconds=1.0, memory_gib=0.5)
    write_jsonl(tmp_path / "recipe.jsonl", [done.model_dump()])
    assert recorded(tmp_path) == {"train": done}
    write_jsonl(tmp_path / "recipe.jsonl", [{"stage": "train"}])
    with pytest.raises(DataError, match=r"recipe.jsonl:1.*no stage of a recipe: 'command' is required"):
        recorded(tmp_path)


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
    (tmp_path / "no_tasks.jsonl").write_text("no JSON\n")
    with pytest.raises(ConfigError, match="ended with exit code 2, as told above; the same command goes on from there"):
        run_recipe("rl_prep", config="tiny", overrides=[f"blend={tmp_path / 'no_tasks.jsonl'}", f"output={tmp_path / 'run'}"])
    assert [(name, one.done) for name, one in recorded(tmp_path / "run").items()] == [("prep", False)]


def test_a_file_of_somebody_elses_is_not_written_over(tmp_path: Path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}\n")
    with pytest.raises(ConfigError, match="would write over it"):
        run_recipe("rl_prep", config="tiny", overrides=[f"stages.blend.output={mine}", f"output={tmp_path / 'run'}"])
    assert mine.read_text() == "{}\n"


def test_what_no_recipe_left_is_not_written_over(tmp_path: Path):
    mine = tmp_path / "report.md"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"report.md is there, and no recipe has run in"):
        run_recipe("rl_prep", config="tiny", overrides=[f"output={tmp_path}"])
    assert mine.read_text() == "mine"
    assert [one.name for one in tmp_path.iterdir()] == ["report.md"]


def test_a_command_that_a_signal_ended_is_told_as_such():
    with pytest.raises(
        PolicyError, match=r"`gym-bridge collect` was ended by signal 9 \(Killed\), as the kernel does where memory"
    ):
        check_ended(Ended(code=-9, seconds=1.0, memory_gib=1.0), "gym-bridge collect", again="the same command")
    with pytest.raises(PolicyError, match=r"signal 15 \(Terminated\); the same command goes on"):
        check_ended(Ended(code=-15, seconds=1.0, memory_gib=1.0), "gym-bridge collect", again="the same command")
