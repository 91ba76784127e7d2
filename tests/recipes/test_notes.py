"""What a plan is told with, and files of the user's that are not there."""

import shutil
from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.recipes.catalogue import find_recipe, recipes
from gym_bridge.recipes.notes import check_brought, missing_files, notes_of
from gym_bridge.recipes.planning import plan
from gym_bridge.recipes.running import run_plan
from gym_bridge.recipes.telling import commands

ALL = {one.manifest.step.id: one for one in recipes()}


@pytest.mark.parametrize("name", ["dpo", "rlvr", "rlhf", "long_context_math"])
def test_a_policy_that_is_trained_further_is_told_from_a_cold_one(name: str):
    scorer = ["reward_model=rm"] if name == "rlhf" else []
    (note,) = notes_of(plan(ALL[name], config="tiny", overrides=scorer))
    assert note.startswith("no model= was given: this starts from smollm2-135m, as it was published")
    assert notes_of(plan(ALL[name], config="tiny", overrides=[*scorer, "model=runs/sft"])) == ()
    assert notes_of(plan(ALL["sft"], config="tiny", overrides=[])) == ()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sft", ["rollouts=r.jsonl"]),
        ("pipeline", ["train_tasks=r.jsonl"]),
        ("dpo", ["pairs=r.jsonl", "heldout_pairs=h.jsonl", "model=m"]),
    ],
)
def test_what_a_user_brings_is_not_quietly_evaluated_on_tasks_of_another_kind(name: str, overrides: list[str]):
    (note,) = notes_of(plan(ALL[name], config="tiny", overrides=overrides))
    assert note.startswith(f"{overrides[0].partition('=')[0]} is yours, and the held-out tasks are made and verified by arithmetic")
    assert notes_of(plan(ALL[name], config="tiny", overrides=[*overrides, "server=calculator"])) == ()
    assert notes_of(plan(ALL[name], config="tiny", overrides=[*overrides, "heldout_tasks=t.jsonl"])) == ()


def test_a_file_that_is_not_there_is_told_before_anything_runs(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.jsonl").touch()
    planned = plan(ALL["sft"], config="tiny", overrides=["rollouts=r.jsonl", "heldout_tasks=hedlout.jsonl", "output=run"])
    assert "# note: heldout_tasks=hedlout.jsonl: no such file or model" in commands(planned).splitlines()
    with pytest.raises(ConfigError, match=r"^heldout_tasks=hedlout.jsonl: no such file or model"):
        run_plan(planned, lambda text: None)
    assert [one.name for one in tmp_path.iterdir()] == ["r.jsonl"]
    check_brought(plan(ALL["sft"], config="tiny", overrides=["rollouts=s3://bucket/r.jsonl", "heldout_tasks=r.jsonl"]))


@pytest.mark.parametrize(
    ("name", "override", "told"),
    [
        ("sft", "model=runs/frist/sft", "model=runs/frist/sft"),
        ("sft", "teacher=frist", "teacher=frist"),
        ("rlhf", "reward_model=runs/reward/mdoel", "reward_model=runs/reward/mdoel"),
        ("mixed", "game.server=nope.yaml", "stages.game_train_tasks reads nope.yaml"),
        ("rlvr", "play.server=mine/nope.yml", "stages.evaluate reads mine/nope.yml"),
        ("pipeline", "stages.evaluate.sets.other={input: typo.jsonl, num_repeats: 2}", "stages.evaluate reads typo.jsonl"),
        ("iterate", "model=runs/frist/sft", "model=runs/frist/sft"),
    ],
)
def test_models_and_servers_that_are_not_there_are_told_before_anything_runs(name: str, override: str, told: str):
    assert missing_files(plan(ALL[name], config="tiny", overrides=[override])) == (f"{told}: no such file or model",)


@pytest.mark.parametrize(
    "given",
    [
        ["model=somebody/model"],
        ["model=smollm2-135m"],
        ["teacher=known-answers"],
        ["teacher=gpt", "stages.collect.model_url=['http://127.0.0.1:9/v1']"],
    ],
)
def test_names_that_are_no_paths_may_mean_something(given: list[str]):
    assert missing_files(plan(ALL["sft"], config="tiny", overrides=given)) == ()


def test_a_file_that_a_recipe_of_ones_own_makes_where_it_is_told_need_not_be_there(tmp_path: Path):
    folder = shutil.copytree(ALL["sft"].folder, tmp_path / "mine")
    stages = (folder / "stages.yaml").read_text()
    (folder / "stages.yaml").write_text(stages.replace("    skip_when_given: [train_tasks, rollouts]\n", ""))
    given = [f"train_tasks={tmp_path / 'made.jsonl'}", f"output={tmp_path / 'run'}", "server=arithmetic"]
    check_brought(plan(find_recipe(str(folder)), config="tiny", overrides=given))
    with pytest.raises(ConfigError, match=r"train_tasks=.*made\.jsonl: no such file"):
        check_brought(plan(ALL["sft"], config="tiny", overrides=given))
