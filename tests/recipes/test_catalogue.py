"""The recipes' folders: whole, true to themselves, and fitting each other."""

import re
from pathlib import Path

import pytest
import yaml

from gym_bridge.config import read_settings
from gym_bridge.errors import ConfigError
from gym_bridge.recipes.catalogue import STAGES, data_types, find_recipe, recipes
from gym_bridge.recipes.planning import first_model, plan
from gym_bridge.schemas.recipe_manifest import fits
from gym_bridge.schemas.recipe_settings import RecipeSettings

ALL = {one.manifest.step.id: one for one in recipes()}
NEEDED = {"rlhf": ["reward_model=runs/rm"]}
CONFIGS = [(name, config) for name, one in ALL.items() for config in one.configs]
ASKED_FOR = {"sft", "dpo", "reward_model", "rlvr", "rlhf", "pipeline", "iterate", "long_context_math"}


def test_the_recipes_are_there_in_the_order_of_a_users_way():
    assert set(ALL) >= ASKED_FOR
    assert [one for one in ALL if one in ("rl_prep", "sft", "dpo", "rlvr", "pipeline")] == [
        "rl_prep",
        "sft",
        "dpo",
        "rlvr",
        "pipeline",
    ]


@pytest.mark.parametrize("name", ALL)
def test_a_folder_has_a_manifest_stages_a_readme_and_configs_for_laptops_and_gpus(name: str):
    recipe = ALL[name]
    assert recipe.folder.name == name
    assert {"tiny", "default"} <= set(recipe.configs)
    readme = (recipe.folder / "README.md").read_text()
    assert readme.startswith(f"# {recipe.manifest.step.name}\n")
    assert f"gym-bridge recipe run {name} -c tiny" in readme


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("rl/nemo_rl/dpo", "dpo"),
        ("rl/nemo_rl/rlvr", "rlvr"),
        ("rl/nemo_rl/rlhf", "rlhf"),
        ("data_prep/rl_prep", "rl_prep"),
    ],
)
def test_nemotrons_names_mean_ours(alias: str, name: str):
    assert find_recipe(alias).manifest.step.id == name


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_every_config_sets_every_parameter_and_nothing_else_and_its_stages_are_right(name: str, config: str):
    recipe = ALL[name]
    values = read_settings(recipe.config(config))
    assert set(values) - {"stages", "rounds"} == {one.name for one in recipe.manifest.parameters}
    planned = plan(recipe, config=config, overrides=[] if config == "judge" else NEEDED.get(name, []))
    assert planned.stages


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_every_config_says_at_its_head_what_it_is_for(name: str, config: str):
    assert ALL[name].about(config).endswith(".")


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_is_used_by_a_stage_or_another_parameter(name: str):
    recipe = ALL[name]
    text = (recipe.folder / STAGES).read_text() + (recipe.folder / "tiny.yaml").read_text()
    used = set(re.findall(r"\$\{([a-z_]+)", text)) | {"output", *(["model"] if recipe.repeats else [])}
    assert {one.name for one in recipe.manifest.parameters} <= used


@pytest.mark.parametrize("name", ALL)
def test_consumed_and_produced_things_are_of_known_types_and_parameters(name: str):
    manifest, types = ALL[name].manifest, data_types()
    assert {one.type for one in (*manifest.consumes, *manifest.produces)} <= set(types)
    assert {one.parameter for one in manifest.consumes} <= {one.name for one in manifest.parameters}
    assert manifest.step.warm in {None, *(one.parameter for one in manifest.consumes)}


@pytest.mark.parametrize("name", ALL)
def test_what_a_recipe_hands_on_fits_what_the_next_takes(name: str):
    manifest, types = ALL[name].manifest, data_types()
    gives = {one.path: one.type for one in manifest.produces}
    for following in manifest.next:
        takes = {one.parameter: one.type for one in ALL[following.step].manifest.consumes}
        for parameter, path in following.hands.items():
            assert fits(gives[path], takes[parameter], types), f"{name} hands {path} to {following.step} as {parameter}"


@pytest.mark.parametrize("name", ALL)
def test_what_a_stage_leaves_is_what_the_manifest_promises(name: str):
    planned = plan(ALL[name], config="tiny", overrides=NEEDED.get(name, []))
    stages = list(planned.stages)
    if planned.settings.rounds is not None:
        stages += planned.round(1, model=first_model(planned.settings))[1]
    left = {str(leaf.relative_to(planned.output)) for one in stages for leaf in one.command.leaves}
    left |= {"report.html", *(one.removesuffix("/checkpoints") for one in left)}
    if name == "rl_prep":
        left |= {one.path for one in ALL[name].manifest.produces if one.path.startswith("data/") and "data/manifest.json" in left}
    assert {one.path for one in ALL[name].manifest.produces} <= left


def test_a_type_fits_itself_and_what_it_is_a_kind_of():
    types = data_types()
    assert fits("sft_jsonl", "sft_jsonl", types)
    assert fits("sft_jsonl", "training_jsonl", types)
    assert not fits("training_jsonl", "sft_jsonl", types)
    assert not fits("reward_model_hf", "checkpoint_hf", types)


def test_a_folder_of_ones_own_is_a_recipe(tmp_path: Path):
    for file in ALL["sft"].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert find_recipe(str(tmp_path)).manifest.step.id == "sft"


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown recipe 'dpoo', and no folder with a step.toml; did you mean 'dpo'"):
        find_recipe("dpoo")


def test_an_unknown_config_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="recipe sft has no config 'tinny'; did you mean 'tiny'"):
        plan(ALL["sft"], config="tinny", overrides=[])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("modle=x", "unknown key 'modle'; did you mean 'model'"),
        ("stages.trian.policy.lr=1", "stages.trian has no verb, and the recipe has no such stage; did you mean 'train'"),
        ("stages.train.policy.lrr=1", "stages.train: unknown key 'policy.lrr'"),
        ("stages.collect.num_repeat=1", "stages.collect: unknown key 'num_repeat'; did you mean 'num_repeats'"),
        ("stages.evaluate.sets.heldout.inputt=1", "stages.evaluate: .*inputt"),
        ("stages.collect.verb=colect", "stages.collect: unknown verb 'colect'; did you mean 'collect'"),
        ("server=arithmetik", "stages.train_tasks: unknown resource server 'arithmetik'; did you mean 'arithmetic'"),
        ("server=http://127.0.0.1:1", "stages.train_tasks: server .* makes no tasks over HTTP; give train_tasks and heldout_tasks"),
        ("knobs={kidn: tool}", "stages.train_tasks: unknown key 'kidn'; did you mean 'kind'"),
        ("training=null", "stages.train: config"),
        ("stages.train.processes=two", "stages.train: processes"),
        ("stages.collect.header=['X-Key: s']", "stages.collect: header: a recipe writes its commands down"),
        ("stages.collect.model_url=['http://me:secret@h/v1']", "stages.collect: model_url holds a user and a password"),
        ("stages.train.logger.mlflow.uri=http://me:secret@h", "stages.train: logger.mlflow.uri holds a user and a password"),
        ("stages.evaluate.policies.other={model: m, header: [a]}", "stages.evaluate: policies.other.header: a recipe writes"),
        ("train_tasks=[a.jsonl, b.jsonl]", r"train_tasks=\['a.jsonl', 'b.jsonl'\]: expected one path"),
        ("rollouts=null", "rollouts=null: leave it out, and the run makes its own"),
        ("attempts=none", "stages.collect: num_repeats='none'"),
        ("round.number=3", "round is given by the run"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(override: str, told: str):
    with pytest.raises(ConfigError, match=told):
        plan(ALL["sft"], config="tiny", overrides=[override])


def test_what_a_user_brings_is_not_made():
    def names(*overrides: str) -> list[str]:
        return [one.name for one in plan(ALL["sft"], config="tiny", overrides=overrides).stages]

    assert names() == ["train_tasks", "heldout_tasks", "collect", "demonstrations", "train", "evaluate"]
    assert names("train_tasks=x.jsonl") == ["heldout_tasks", "collect", "demonstrations", "train", "evaluate"]
    assert names("rollouts=x.jsonl", "heldout_tasks=y.jsonl") == ["demonstrations", "train", "evaluate"]
    assert names("stages.evaluate.skip=true")[-1] == "train"


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("sft", ["stages.collect.skip=true"], "stages.demonstrations reads runs/recipe_sft/rollouts.jsonl, which no stage"),
        ("sft", ["validation_share=null"], "stages.train reads runs/recipe_sft/sft.train.jsonl, which no stage"),
        (
            "dpo",
            ["pairs=people.jsonl"],
            r"reads runs/recipe_dpo/pairs.validation.jsonl, which no stage of this run leaves; set heldout_pairs=",
        ),
        ("pipeline", ["stages.dpo.skip=true"], "stages.check_reward reads runs/recipe_pipeline/dpo, which no stage"),
        ("iterate", ["rounds.stages.train.skip=true"], "stages.round_1/evaluate reads runs/recipe_iterate/round_1/sft"),
        ("mixed", ["safety.wieght=5"], "unknown key 'safety.wieght'; did you mean 'safety.weight'"),
        ("mixed", ["game={server: code, knob: {}}"], "unknown key 'game.knob'; did you mean 'game.knobs'"),
        ("mixed", ["safety=refusal"], "safety=refusal: it holds safety.knobs, .*safety.weight; set those"),
        ("long_context_math", ["steps.shrt=5"], "unknown key 'steps.shrt'; did you mean 'steps.short'"),
        ("rlhf", ["reward_model=x", "scorer.setings.model=y"], "unknown key 'scorer.setings.*did you mean 'scorer.settings'"),
        ("sft", ["train_tasks=t.jsonl", "heldout_tasks=./t.jsonl"], "train_tasks and heldout_tasks are both"),
        (
            "sft",
            ["rollouts=r.jsonl", "attempts=9"],
            "attempts would have no effect: with these settings no stage that runs reads it",
        ),
        ("sft", ["stages.evaluate.skip=true", "eval_attempts=4"], "eval_attempts would have no effect"),
        ("sft", ["play.num_repeats=16"], "play.num_repeats would have no effect"),
        ("pipeline", ["play={seed: 5}"], "play.seed would have no effect"),
        ("mixed", ["play.server=office"], "play.server would have no effect"),
        ("iterate", ["play.model=gpt"], "play.model would have no effect"),
        ("sft", ["output=./runs/x", "stages.collect.skip=true"], "stages.demonstrations reads runs/x/rollouts.jsonl"),
        ("sft", ["stages.collect.output=${train_tasks}"], "stages.train_tasks and stages.collect both leave|would write over"),
        ("rlvr", ["play.server=arithmetc"], "stages.evaluate: unknown resource server 'arithmetc'"),
        ("rlvr", ["env.server=arithmetc"], "stages.train: unknown resource server 'arithmetc'"),
        (
            "rlvr",
            ["env.server=office"],
            "stages.train trains on the reward of office, and stages.check_reward tries that of arithm",
        ),
        (
            "rlhf",
            ["reward_model=x", "env.server=arithmetic"],
            "trains on the reward of arithmetic, and stages.check_reward tries that of runs/recipe_rlhf/reward.yaml",
        ),
        ("rlvr", ["reward=arithmetc"], "stages.check_reward: unknown resource server 'arithmetc'"),
        ("sft", ["server=arithmetc", "train_tasks=a.jsonl", "heldout_tasks=b.jsonl"], "stages.collect: unknown resource server"),
        ("mixed", ["sums.server=nowhere"], "unknown resource server 'nowhere'"),
        ("rlhf", ["scorer={server: jugde, settings: {model: m}}"], "stages.reward: .*unknown resource server 'jugde'"),
        ("rlhf", ["scorer={server: judge, settings: {modee: m}}"], "stages.reward: .*unknown key 'modee'"),
        ("rlhf", ["reward_model=x", "shaping.clpi=[0,1]"], "stages.reward: .*clpi"),
        ("rlvr", ["combine={how: summ, parts: [{name: a, server: arithmetic}]}", "reward=x.yaml"], "stages.reward: .*how='summ'"),
    ],
)
def test_what_stages_alone_do_not_show_is_told_too(name: str, overrides: list[str], told: str):
    with pytest.raises(ConfigError, match=told):
        plan(ALL[name], config="tiny", overrides=overrides)


def test_another_reward_than_the_tried_one_trains_where_the_trial_is_left_out():
    given = ["env.server=office", "stages.check_reward.skip=true"]
    assert "check_reward" not in [one.name for one in plan(ALL["rlvr"], config="tiny", overrides=given).stages]


@pytest.mark.parametrize("name", ["sft", "dpo", "reward_model", "pipeline", "mixed"])
def test_the_seed_decides_what_is_held_out(name: str):
    splitting = [
        one.command.argv for one in plan(ALL[name], config="tiny", overrides=["seed=7"]).stages if "--split" in one.command.argv
    ]
    assert splitting
    assert all(argv[argv.index("--seed") + 1] == "7" for argv in splitting)


def test_a_yaml_file_of_ones_own_lies_over_a_config_of_the_recipe_and_says_what_it_lacks(tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: tiny.yaml\noutput: runs/mine\nnum_train_tasks: 5\n")
    planned = plan(ALL["sft"], config=str(mine), overrides=[])
    assert planned.brought == {"output", "num_train_tasks"}
    assert planned.settings.output == "runs/mine"
    mine.write_text("num_train_tasks: 5\n")
    with pytest.raises(ConfigError, match=r"mine.yaml says nothing of output, model, .*begin it with `defaults: tiny.yaml`"):
        plan(ALL["sft"], config=str(mine), overrides=[])


def test_what_an_earlier_run_left_may_be_read(tmp_path: Path):
    (tmp_path / "rollouts.jsonl").write_text("{}\n")
    assert plan(ALL["sft"], config="tiny", overrides=[f"output={tmp_path}", "stages.collect.skip=true"]).stages


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_a_broken_reward_stops_every_recipe_that_tries_one_unless_it_is_told_to_go_on(name: str, config: str):
    if "ignore_broken_reward" not in {one.name for one in ALL[name].manifest.parameters}:
        assert name not in ("rlvr", "rlhf", "pipeline", "mixed", "long_context_math")
        return
    needed = NEEDED.get(name, []) if config != "judge" else []
    for told in (False, True):
        given = [*needed, f"ignore_broken_reward={told}"]
        tried = [one for one in plan(ALL[name], config=config, overrides=given).stages if one.command.argv[:1] == ("check-reward",)]
        assert {one.ignore_verdict for one in tried} == {told}
    plain = plan(ALL[name], config=config, overrides=needed)
    assert getattr(plain.settings, "ignore_broken_reward") is ((name, config) == ("long_context_math", "tiny"))  # noqa: B009


def test_rlhf_wants_a_reward_model_or_another_scorer():
    with pytest.raises(ConfigError, match="'reward_model' is required"):
        plan(ALL["rlhf"], config="tiny", overrides=[])
    judge = "scorer={server: judge, settings: {model_url: 'http://x/v1', model: m, mode: rubric, rubric: good}}"
    planned = plan(ALL["rlhf"], config="tiny", overrides=[judge])
    text = next(one.command.text for one in planned.stages if one.name == "reward")
    assert yaml.safe_load(text or "")["settings"]["parts"][0]["server"] == "judge"


def test_a_config_of_ours_brings_what_it_sets_as_a_users_does():
    planned = plan(ALL["rlhf"], config="judge", overrides=[])
    text = next(one.command.text for one in planned.stages if one.name == "reward")
    assert yaml.safe_load(text or "")["settings"]["parts"][0]["settings"]["mode"] == "reference"
    with pytest.raises(ConfigError, match="reward_model would have no effect"):
        plan(ALL["rlhf"], config="judge", overrides=["reward_model=runs/rm"])
    assert plan(ALL["pipeline"], config="calculator", overrides=[]).cold is None
    assert plan(ALL["rlvr"], config="shaped", overrides=[]).cold == "model"


def test_a_round_begins_with_the_policy_that_the_round_before_left():
    planned = plan(ALL["iterate"], config="tiny", overrides=["output=out"])
    first, stages = planned.round(1, model="start")
    assert first.newest == "out/round_1/sft"
    assert "--model start" in " ".join(stages[0].command.argv)
    second, stages = planned.round(2, model=first.newest)
    assert second.newest == "out/round_2/sft"
    assert stages[0].name == "round_2/collect"
    assert "--model out/round_1/sft" in " ".join(stages[0].command.argv)


def test_parameters_cover_the_settings_of_the_run():
    assert set(RecipeSettings.model_fields) == {"output", "stages", "rounds", "round"}


def test_a_yaml_file_of_ones_own_brings_what_it_says_differently_and_nothing_else(tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    values = yaml.safe_load((ALL["dpo"].folder / "tiny.yaml").read_text())
    mine.write_text(yaml.safe_dump(values))
    assert plan(ALL["dpo"], config=str(mine), overrides=[]).brought == frozenset()
    mine.write_text(yaml.safe_dump({**values, "train_tasks": "my_tasks.jsonl", "model": "runs/sft"}))
    planned = plan(ALL["dpo"], config=str(mine), overrides=[])
    assert planned.cold is None
    assert [one.name for one in planned.stages][:2] == ["heldout_tasks", "collect"]


def test_another_scorer_is_named_by_its_server_not_by_a_setting_of_ours():
    with pytest.raises(ConfigError, match="'reward_model' is required"):
        plan(ALL["rlhf"], config="tiny", overrides=["scorer.settings.device=cpu"])


def argv_of(name: str, stage: str, *overrides: str) -> str:
    stages = plan(ALL[name], config="tiny", overrides=overrides).stages
    return " ".join(next(one.command.argv for one in stages if one.name == stage))


def test_an_endpoint_that_plays_gets_nothing_that_it_does_not_heed():
    assert "--compute-dtype" in argv_of("sft", "collect")
    told = argv_of("sft", "collect", "teacher=big", "stages.collect.model_url=['http://h:1/v1']")
    assert "--model big" in told
    assert not any(flag in told for flag in ("--compute-dtype", "--seed", "--device"))


def test_settings_are_written_as_their_commands_read_them():
    assert "kind=sum" in argv_of("sft", "train_tasks", "knobs.kind=sum")
    assert "--num-repeats a=4,_default=1" in argv_of("sft", "collect", "attempts={a: 4, _default: 1}")
    assert "--no-cohort" in argv_of("sft", "collect", "stages.collect.cohort=false")
    extra = argv_of("sft", "collect", "stages.collect.chat_template_kwargs={enable_thinking: false}")
    assert '--chat-template-kwargs {"enable_thinking": false}' in extra
    elsewhere = argv_of("sft", "train", "stages.train.trainer.output='1e5'", "stages.evaluate.skip=true")
    assert "trainer.output=1e5" not in elsewhere
    assert 'trainer.output="1e5"' in elsewhere


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("step.toml", 'id = "sft"', 'id = "sft"\nwarm = "nope"', "step.toml: it names 'nope', which is none of its parameters"),
        (
            STAGES,
            "skip_when_given: [rollouts]",
            "skip_when_given: [rolouts]",
            "stages.collect: 'rolouts' is no parameter .*'rollouts'",
        ),
        (STAGES, "skip_when_given: [rollouts]", "needs: [nope]", "stages.collect: 'nope' is no parameter"),
    ],
)
def test_a_folder_that_names_what_it_lacks_is_refused(file: str, old: str, new: str, told: str, tmp_path: Path):
    for one in ALL["sft"].folder.iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=told):
        plan(find_recipe(str(tmp_path)), config="tiny", overrides=[])


def test_a_policy_of_a_suite_may_be_left_out():
    skipped = [f"stages.{one}.skip=true" for one in ("collect_pairs", "pairs", "dpo")]
    instead = [
        "stages.check_reward.model=${output}/sft",
        "stages.rlvr.policy.model=${output}/sft",
        "stages.evaluate.policies.dpo=null",
    ]
    stages = plan(ALL["pipeline"], config="tiny", overrides=[*skipped, *instead]).stages
    assert [one.name for one in stages][-3:] == ["check_reward", "rlvr", "evaluate"]
    assert "policies.dpo" not in " ".join(stages[-1].command.argv)


@pytest.mark.parametrize("text", ["", "rounds: [", "- a list"])
def test_a_folder_whose_stages_cannot_be_read_is_a_users_mistake(text: str, tmp_path: Path):
    for file in ALL["sft"].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / STAGES).write_text(text)
    with pytest.raises(ConfigError):
        plan(find_recipe(str(tmp_path)), config="tiny", overrides=[])


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("sft", ["rollouts=r.jsonl", "train_tasks=t.jsonl"], "train_tasks would have no effect"),
        ("dpo", ["pairs=p.jsonl", "heldout_pairs=h.jsonl", "rollouts=r.jsonl"], "rollouts would have no effect"),
        (
            "sft",
            ["rollouts=r.jsonl", "stages.collect.num_repeats=9"],
            "stages.collect.num_repeats would .* stages.collect does not run",
        ),
    ],
)
def test_what_is_brought_for_nobody_is_refused(name: str, overrides: list[str], told: str):
    with pytest.raises(ConfigError, match=told):
        plan(ALL[name], config="tiny", overrides=overrides)


@pytest.mark.parametrize(
    ("name", "config", "override", "told"),
    [
        ("rlhf", "judge", "scorer.settings.model_url=http://me:secret@h/v1", "settings.model_url holds a user and a password"),
        ("rlvr", "shaped", "server=number_game", "part 'right': number_game is a step-wise environment"),
        ("rlvr", "shaped", "combine.tasks_from=nobody", "tasks_from='nobody' is no part"),
        ("rlhf", "judge", "scorer.settings.lowest=11", "lowest"),
    ],
)
def test_a_reward_that_cannot_be_opened_is_refused_before_anything_runs(name: str, config: str, override: str, told: str):
    with pytest.raises(ConfigError, match=told):
        plan(ALL[name], config=config, overrides=["model=m", override])


def test_parts_of_a_reward_are_opened_here():
    given = ["model=m", "server=http://127.0.0.1:9", "train_tasks=a.jsonl", "heldout_tasks=b.jsonl"]
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9 is an address; parts are opened in this process"):
        plan(ALL["rlvr"], config="shaped", overrides=given)


def test_one_directory_spelt_in_several_ways_is_one(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spelt = [plan(ALL["sft"], config="tiny", overrides=[f"output={one}"]).stages for one in ("run", "run/", "./run")]
    assert spelt[0] == spelt[1] == spelt[2]
    with pytest.raises(ConfigError, match="train_tasks and heldout_tasks are both"):
        plan(ALL["sft"], config="tiny", overrides=["train_tasks=a.jsonl", f"heldout_tasks={tmp_path / 'a.jsonl'}"])


def test_answers_to_try_whose_pairs_train_nothing_are_refused():
    given = ["tried_attempts=11", "output=out"]
    with pytest.raises(ConfigError, match=r"^tried_attempts would have no effect: stages.tried_pairs .* which no stage reads"):
        plan(ALL["reward_model"], config="tiny", overrides=given)
    read = "stages.train.data.train=[{path: out/pairs.train.jsonl}, {path: out/tried_pairs.train.jsonl}]"
    assert "tried_pairs" in [one.name for one in plan(ALL["reward_model"], config="tiny", overrides=[*given, read]).stages]


def test_a_combined_reward_is_what_is_checked_and_trained_on_and_not_what_is_evaluated():
    given = ("combine={parts: [{name: right, server: arithmetic}]}", "output=out")
    with pytest.raises(ConfigError, match=r"stages.reward writes out/reward.yaml, which no stage reads; .* reward=out/reward.yaml"):
        plan(ALL["rlvr"], config="tiny", overrides=given)
    given = (*given, "reward=out/reward.yaml")
    assert "--server out/reward.yaml" in argv_of("rlvr", "check_reward", *given)
    assert "env.server=out/reward.yaml" in argv_of("rlvr", "train", *given)
    assert "play.server=arithmetic" in argv_of("rlvr", "evaluate", *given)
    assert "--server arithmetic" in argv_of("rlvr", "check_reward", "output=out")
    assert "env.server=arithmetic" in argv_of("rlvr", "train", "output=out")
