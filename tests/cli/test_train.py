"""`train`'s settings: shipped files, overrides, `--dry-run`. Training itself is tested in tests/trainers."""

from pathlib import Path

import pytest
import yaml

from gym_bridge.config import load_config
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.settings import DPOSettings, GRPOSettings, RewardModelSettings, SFTSettings
from gym_bridge.schemas.shipped_configs import find_config

CONFIGS = Path(__file__).parents[2] / "gym_bridge" / "configs"
SHIPPED = {f"{path.parent.name}/{path.stem}": path for path in sorted(CONFIGS.glob("*/*.yaml"))}
NEEDED = {"data.train": "x", "env.server": "arithmetic", "policy.model": "runs/sft"}


def trainer_of(name: str) -> str:
    """The trainer that takes the config `name`: told by its directory, or in the quickstart by its file."""
    if name.startswith(("rlvr/", "quickstart/grpo")):
        return "grpo"
    return name.partition("/")[0] if name.startswith(("dpo/", "rm/")) else "sft"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_parses_and_is_found_by_name(name: str):
    assert find_config(name).samefile(SHIPPED[name])
    model = {"sft": SFTSettings, "dpo": DPOSettings, "rm": RewardModelSettings, "grpo": GRPOSettings}[trainer_of(name)]
    values = yaml.safe_load(SHIPPED[name].read_text())
    missing = [f"{section}.{key}" for section, keys in values.items() for key, value in keys.items() if value == "???"]
    settings = load_config(model, files=[SHIPPED[name]], overrides=[f"{key}={NEEDED[key]}" for key in missing])
    resolved = settings.model_dump(mode="json")
    for section, keys in values.items():
        for key, value in keys.items():
            assert resolved[section][key] == (NEEDED[f"{section}.{key}"] if value == "???" else value)


@pytest.mark.parametrize("verb", ["sft", "dpo", "rm", "grpo"])
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_of_another_verb_is_refused(gym_bridge, verb: str, name: str):
    needed = ["data.train=x", "policy.model=m", *(["env.server=a"] if verb == "grpo" else [])]
    ended = gym_bridge("train", verb, "--config", name, "--dry-run", *needed)
    assert (ended.code == 0) == (trainer_of(name) == verb)
    if ended.code:
        assert f"{name} is a config for train {trainer_of(name)}, not for train {verb}; for that there is" in ended.err


def test_a_config_of_ones_own_for_another_verb_is_refused_by_its_keys(gym_bridge, tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(SHIPPED["rlvr/tiny"].read_text())
    ended = gym_bridge("train", "sft", "--config", mine, "data.train=x")
    assert (ended.code, "unknown key 'env'" in ended.err) == (2, True)


def test_there_is_a_tiny_config_for_every_trainer():
    assert {"sft/tiny", "dpo/tiny", "rm/tiny", "rlvr/tiny"} <= set(SHIPPED)


def test_a_dry_run_prints_settings_that_are_a_config_again(gym_bridge, tmp_path: Path):
    ended = gym_bridge("train", "sft", "--config", "sft/tiny", "data.train=rows.jsonl", "policy.lr=1e-4", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    path = tmp_path / "again.yaml"
    path.write_text(ended.out)
    assert yaml.safe_load(ended.out)["policy"]["lr"] == 1e-4
    assert gym_bridge("train", "sft", "--config", path, "--dry-run").out == ended.out


def test_an_agent_on_the_command_line_takes_the_place_of_a_configs_server(gym_bridge):
    argv = ("--config", "rlvr/tiny", "data.train=x", "env.agent_url=http://127.0.0.1:9001", "--dry-run")
    values = yaml.safe_load(gym_bridge("train", "grpo", *argv).out)
    assert (values["env"]["agent_url"], values["env"]["server"]) == ("http://127.0.0.1:9001", None)
    both = gym_bridge("train", "grpo", *argv, "env.server=arithmetic")
    assert "got env.agent_url and env.server" in both.err


def test_later_configs_win(gym_bridge, tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {train: mine.jsonl}\npolicy: {lr: 0.5}\n")
    ended = gym_bridge("train", "sft", "--config", "sft/tiny", "--config", mine, "--dry-run")
    values = yaml.safe_load(ended.out)
    assert (values["policy"]["lr"], values["policy"]["warmup_steps"], values["data"]["train"]) == (0.5, 2, "mine.jsonl")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sft", "--config", "sft/tinny"], "no shipped config 'sft/tinny'; did you mean 'sft/tiny'"),
        (["sft", "--config", "sft/tiny"], "'data.train' is required; set data.train=..."),
        (["sft", "--config", "sft/tiny", "data.train=x", "policy.lrr=1"], "unknown key 'policy.lrr'; did you mean 'lr' or 'lora'?"),
        (["sft", "--config", "sft/tiny", "data.train=x", "policy.lr=fast"], "policy.lr='fast': Input should be a valid number"),
        (["sft", "--config", "sft/tiny", "data.train=x", "algorithm.loss=nl"], "no loss of this name; did you mean 'nll'?"),
        (["sft", "--config", "sft/tiny", "data.train"], "override 'data.train' has no '='"),
        (["sft", "data.train=x", "policy.master_dtype=bfloat16"], "policy.master_dtype=bfloat16 rounds away updates below 0.4 %"),
        (["sft", "--config", "no.yaml", "data.train=x"], "no.yaml: No such file or directory"),
        (["grpo", "--config", "rlvr/tiny", "data.train=x", "algorithm.group_size=1"], "algorithm.group_size=1: a rollout without"),
        (
            ["grpo", "--config", "rlvr/tiny", "data.train=x", "algorithm=gpo"],
            "algorithm.preset='gpo': no preset of this name; did you mean 'gspo' or",
        ),
        (
            ["dpo", "data.train=x", "algorithm.loss=ipo", "algorithm.label_smoothing=0.1"],
            "algorithm.label_smoothing has no effect on algorithm.loss=ipo; it is for sigmoid, robust",
        ),
        (
            ["dpo", "data.train=x", "algorithm.margin=1"],
            "algorithm.margin has no effect on algorithm.loss=sigmoid; it is",
        ),
        (
            ["dpo", "data.train=x", "algorithm.loss=dpo"],
            "algorithm.loss='dpo': no loss of this name; did you mean 'ipo' or 'orpo'?",
        ),
        (["dpo", "data.train=x", "algorithm.label_smoothing=0.5"], "algorithm.label_smoothing=0.5: Input should be less than 0.5"),
        (["dpo", "--config", "rlvr/tiny", "data.train=x"], "rlvr/tiny is a config for train grpo, not for train dpo"),
        (["sft", "data.train=x", "data.validation=y"], "data.validation: expected {NAME: FILE}"),
        (["sft", "data.train=x", "--dryrun"], "No such option '--dryrun'"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_2(gym_bridge, argv: list[str], message: str):
    ended = gym_bridge("train", *argv, "--dry-run")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err


def test_an_unknown_config_offers_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"no shipped config 'zzzz'; known: .*rlvr/tiny.*sft/tiny"):
        find_config("zzzz")
