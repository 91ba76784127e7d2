"""`gym-bridge nemo-rl import`, and what `train` says to someone who types NeMo RL's keys."""

import json
from collections import Counter
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from gym_bridge.api.nemo_rl_import import SETTINGS, import_nemo_rl_config, read_nemo_rl_config
from gym_bridge.config import load_config
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.nemo_rl_key import VERBS
from gym_bridge.schemas.nemo_rl_keys import KEYS, MAPPED, find_key, nemo_rl_keys
from tests.cli.nemo_rl_imports import CONFIGS, STILL_NEEDED, VERB_OF, imported


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of a config; the two sections that are one value stay whole."""
    found = []
    for name, value in values.items():
        whole = f"{prefix}{name}" in ("policy.scheduler", "data.val_data_paths")
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value and not whole else [f"{prefix}{name}"]
    return found


@pytest.mark.parametrize("name", VERB_OF)
def test_what_is_written_is_what_train_takes(gym_bridge, tmp_path, name):
    written, verb = tmp_path / "ours.yaml", VERB_OF[name]
    ended = gym_bridge("nemo-rl", "import", CONFIGS / f"{name}.yaml", "--output", written)
    assert ended.code == 0, ended.err
    assert f"gym-bridge train {verb} --config {written}" in ended.out
    ended = gym_bridge("train", verb, "--config", written, "--dry-run", *STILL_NEEDED[name])
    assert ended.code == 0, ended.err
    for key in STILL_NEEDED[name]:
        others = [one for one in STILL_NEEDED[name] if one != key]
        ended = gym_bridge("train", verb, "--config", written, "--dry-run", *others)
        assert (ended.code, f"{key.partition('=')[0]!r} is required" in ended.err) == (2, True)


def test_sft_is_translated_value_by_value():
    settings = import_nemo_rl_config(CONFIGS / "sft.yaml").settings
    assert settings["policy"]["lora"] == {"rank": 16, "alpha": 64}
    assert (settings["policy"]["betas"], settings["policy"]["weight_decay"]) == ([0.9, 0.98], 0.1)
    assert settings["policy"]["microbatch_tokens"] == 4096  # 4 rows of 1024, through ${mul:...}
    assert settings["data"] == {
        "max_length": 1024,
        "train": "train.jsonl",
        "validation": {"default": "val.jsonl"},
        "train_on": "final",
    }
    assert settings["algorithm"] == {"batch_size": 32, "epochs": 1}
    assert settings["trainer"] == {
        "keep_last": 3,
        "keep_best": True,
        "save_every": 10,
        "output": "results/sft",
        "watch": "default/loss",
        "watch_for": "lowest",
        "max_time_s": 13500.0,  # 3 hours 45 minutes
        "max_steps": 60,
        "validate_every": 10,
        "seed": 42,
    }


def test_dpo_and_rm_count_pairs_as_two_rows():
    dpo, rm = (import_nemo_rl_config(CONFIGS / f"{verb}.yaml").settings for verb in ("dpo", "rm"))
    assert dpo["policy"]["microbatch_tokens"] == 4096  # 2 pairs of 2 x 1024
    assert rm["policy"]["microbatch_tokens"] == 16384  # 1 pair of 2 x 8192
    assert dpo["algorithm"] == {"batch_size": 128, "epochs": 2, "beta": 0.05, "sft_weight": 0, "length_normalised": False}
    schedule = ("schedule", "schedule_steps", "schedule_options")
    assert [dpo["policy"][name] for name in schedule] == ["cosine_with_min_lr", 100, {"min_lr": 1e-7}]
    assert (rm["trainer"]["max_steps"], rm["trainer"]["save_every"]) == (None, 16)
    assert (rm["trainer"]["watch"], rm["trainer"]["watch_for"]) == ("held_out/accuracy", "highest")
    assert rm["data"]["validation"] == {"held_out": "held_out.jsonl"}


@pytest.mark.parametrize("name", VERB_OF)
def test_no_key_is_dropped_in_silence(name, tmp_path):
    config = read_nemo_rl_config(CONFIGS / f"{name}.yaml")
    config["policy"]["new_in_their_next_release"] = {"deep": 1}
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(config))
    found = import_nemo_rl_config(tmp_path / "theirs.yaml")
    named = [key for key, *_ in (*found.mapped, *found.lost, *found.meaningless)]
    assert Counter(named) == Counter(leaves(config))
    assert ("policy.new_in_their_next_release.deep", 1, "no key of NeMo RL that is known here") in found.lost


@pytest.mark.parametrize("name", VERB_OF)
def test_every_key_that_is_named_is_named_to_the_user(name, gym_bridge, tmp_path):
    found = import_nemo_rl_config(CONFIGS / f"{name}.yaml")
    ended = gym_bridge("nemo-rl", "import", CONFIGS / f"{name}.yaml", "--output", tmp_path / "ours.yaml")
    head = " ".join(line.removeprefix("#").strip() for line in (tmp_path / "ours.yaml").read_text().splitlines() if line[0] == "#")
    for key, *_ in (*found.lost, *found.meaningless):
        assert f"{key}=" in ended.err
        assert f"{key}=" in head


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.theirs)
def test_every_row_of_the_table_is_found_and_leads_somewhere(key):
    for verb in key.verbs:
        dotted = key.theirs.replace("ALGORITHM", verb)
        assert find_key(dotted, verb) is key
        if key.ours:
            assert field_exists(SETTINGS[verb], key.ours)
        else:
            assert key.note


def test_no_key_stands_twice_in_the_table():
    assert [one for one, count in Counter((key.theirs, verb) for key in KEYS for verb in key.verbs).items() if count > 1] == []


def field_exists(model: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        options = [model, *get_args(model)]
        here = next(one for one in options if isinstance(one, type) and issubclass(one, BaseModel))
        if part not in here.model_fields:
            return False
        model = here.model_fields[part].annotation
    return True


@pytest.mark.parametrize("key", [one for one in MAPPED if one.theirs != one.ours], ids=lambda key: key.theirs)
def test_a_typed_key_of_nemo_rl_is_told_by_ours(key):
    verb = key.verbs[0]
    override = f"{key.theirs.replace('ALGORITHM', verb)}=1"
    with pytest.raises(ConfigError) as caught:
        load_config(SETTINGS[verb], overrides=[override], foreign=nemo_rl_keys(verb))
    name = override.removesuffix("=1")
    assert f"unknown key {name!r} is NeMo RL's name of {key.ours!r}" in str(caught.value)


def test_hints_stand_beside_other_mistakes(gym_bridge):
    overrides = ("ppo.num_prompts_per_step=8", "grpo.advantage_clip_low=3", "policy.lrr=1", "data.train=a", "env.server=a")
    ended = gym_bridge("train", "grpo", *overrides)
    assert ended.code == 2
    assert ended.err.strip() == (
        "gym-bridge: unknown key 'ppo.num_prompts_per_step' is NeMo RL's name of 'algorithm.tasks_per_step'; unknown key "
        "'grpo.advantage_clip_low' is one of NeMo RL, without a counterpart here: advantages are not clipped; unknown key "
        "'policy.lrr'; did you mean 'lr' or 'lora'?"
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.train=[{path: a.jsonl, wieght: 3}]"], "data.train.0.wieght"),
        (["data.train=[{path: a.jsonl, weight: 0}]"], "data.train.0.weight=0: Input should be greater than 0"),
        (
            ["data.train=[{path: a.jsonl, server: code}]", "data.validation.b=b"],
            "data.validation.b: files of data.train",
        ),
        (["data.train=a", "data.rollouts=b"], "expected one of data.train, data.rollouts, data.groups and data.replay"),
    ],
)
def test_what_is_wrong_within_a_section_is_told_although_nemo_rl_has_one_of_that_name(gym_bridge, overrides, told):
    ended = gym_bridge("train", "grpo", "env.server=a", *overrides)
    assert (ended.code, told in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("override", ["env.servr=a", "policy.lrr=1", "trainer.max_step=1"])
def test_a_plain_typo_is_no_key_of_nemo_rl(gym_bridge, override):
    ended = gym_bridge("train", "grpo", override, "data.train=a", "env.server=a")
    assert "NeMo RL" not in ended.err
    assert "did you mean" in ended.err


@pytest.mark.parametrize("verb", VERBS)
def test_a_whole_config_of_nemo_rl_is_recognised(gym_bridge, verb, tmp_path):
    for name in (f"{verb}.yaml", "common.yaml"):  # one of which is the other's defaults
        (tmp_path / name).write_text((CONFIGS / name).read_text())
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(read_nemo_rl_config(CONFIGS / f"{verb}.yaml")))
    for file in (tmp_path / f"{verb}.yaml", resolved):  # with their functions, which are not ours, and without
        ended = gym_bridge("train", verb, "--config", file)
        assert ended.code == 2
        assert "more such keys: this is a config of NeMo RL, of which gym-bridge nemo-rl import FILE makes one of ours" in ended.err
        assert len(ended.err) < 1500


@pytest.mark.parametrize(
    ("policy", "ours"),
    [
        ({"optimizer": {"name": "torchao.optim.AdamW8bit", "kwargs": {}}}, {"optimizer": "adamw_8bit"}),
        ({"optimizer": {"name": "torch.optim.Adam", "kwargs": {"betas": [0.8, 0.9]}}}, {"betas": [0.8, 0.9]}),
        (
            {"tokenizer": {"name": "m", "chat_template_kwargs": {"enable_thinking": False}}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        (
            {"precision": "float32", "tokenizer": {"name": "m", "chat_template_kwargs": None}},
            {"compute_dtype": "float32", "chat_template_kwargs": None},
        ),
        ({"max_total_sequence_length": 100, "train_micro_batch_size": 3}, {"microbatch_tokens": 300}),
        (
            {"scheduler": {"name": "torch.optim.lr_scheduler.CosineAnnealingLR", "kwargs": {"T_max": 9}}},
            {"schedule": "cosine", "schedule_steps": 9},
        ),
        (
            {
                "scheduler": [
                    {"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": {"start_factor": 0.1, "total_iters": 5}},
                    {
                        "name": "torch.optim.lr_scheduler.LinearLR",
                        "kwargs": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 20},
                    },
                    {"milestones": [5]},
                ]
            },
            {"warmup_steps": 5, "schedule": "linear", "schedule_steps": 25},
        ),
        (
            {
                "megatron_cfg": {
                    "enabled": True,
                    "optimizer": {"optimizer": "adam", "lr": 2e-6, "min_lr": 1e-7, "adam_beta1": 0.8, "adam_beta2": 0.9},
                    "scheduler": {"lr_decay_style": "cosine", "lr_decay_iters": 50, "lr_warmup_iters": 7},
                },
                "optimizer": {"kwargs": {"lr": 1.0}},
            },
            {
                "lr": 2e-6,
                "betas": [0.8, 0.9],
                "warmup_steps": 7,
                "schedule": "cosine_with_min_lr",
                "schedule_steps": 50,
                "schedule_options": {"min_lr": 1e-7},
            },
        ),
        (
            {
                "dtensor_cfg": {
                    "lora_cfg": {"enabled": True, "dim": 4, "alpha": 8, "match_all_linear": False, "target_modules": ["q_proj"]}
                }
            },
            {"lora": {"rank": 4, "alpha": 8, "target_modules": ["q_proj"]}},
        ),
    ],
)
def test_a_policy_is_converted(tmp_path, policy, ours):
    found = imported(tmp_path, "sft", policy=policy).settings["policy"]
    assert {name: found.get(name) for name in ours} == ours


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"policy": {"precision": "float16"}}, "policy.precision"),
        ({"policy": {"optimizer": {"name": "torch.optim.SGD", "kwargs": {}}}}, "policy.optimizer.name"),
        ({"policy": {"max_grad_norm": None}}, "policy.max_grad_norm"),
        ({"policy": {"model_name": "a", "tokenizer": {"name": "b"}}}, "policy.tokenizer.name"),
        ({"policy": {"scheduler": {"name": "torch.optim.lr_scheduler.StepLR", "kwargs": {"step_size": 3}}}}, "policy.scheduler"),
        ({"policy": {"scheduler": "cosine"}}, "policy.scheduler"),
        ({"policy": {"dtensor_cfg": {"expert_parallel_size": 2}}}, "policy.dtensor_cfg.expert_parallel_size"),
        ({"checkpointing": {"keep_top_k": None}}, "checkpointing.keep_top_k"),
        ({"checkpointing": {"enabled": False}}, "checkpointing.enabled"),
        ({"checkpointing": {"checkpoint_must_save_by": "soon"}}, "checkpointing.checkpoint_must_save_by"),
        ({"checkpointing": {"metric_name": "val:val_loss"}}, "checkpointing.metric_name"),
        ({"data": {"train": {"data_path": "org/name"}}}, "data.train.data_path"),
        ({"data": {"train": {"data_path": "a.jsonl", "input_key": "question"}}}, "data.train.input_key"),
        ({"data": {"train": {"data_path": "a.jsonl", "dataset_name": "PreferenceDataset"}}}, "data.train.data_path"),
        ({"data": {"shuffle": False}}, "data.shuffle"),
        ({"logger": {"swanlab_enabled": True}}, "logger.swanlab_enabled"),
        ({"cluster": {"num_nodes": 2}}, "cluster.num_nodes"),
        ({"sft": {"max_num_epochs": None}}, "sft.max_num_epochs"),
    ],
)
def test_a_value_without_a_counterpart_is_named_as_lost(tmp_path, sections, key):
    assert key in [lost for lost, *_ in imported(tmp_path, "sft", **sections).lost]


def test_loggers_have_the_same_names(tmp_path):
    theirs = {"wandb_enabled": True, "wandb": {"project": "sums", "name": "first"}, "monitor_gpus": True, "log_dir": "logs"}
    found = imported(tmp_path, "sft", logger={**theirs, "gpu_monitoring": {"collection_interval": 5, "flush_interval": 5}})
    assert found.settings["logger"] == {"wandb_enabled": True, "wandb": {"project": "sums", "name": "first"}, "monitor_every_s": 5}
    assert not [lost for lost, *_ in found.lost if lost.startswith("logger")]


def test_several_files_keep_their_weights_and_names(tmp_path):
    files = [{"data_path": "a.jsonl", "repeat": 2}, {"data_path": "b.jsonl"}]
    held_out = [{"data_path": "c.jsonl"}, {"data_path": "d.x.jsonl"}]
    data = {"train": files, "validation": held_out, "default": {"dataset_name": "ResponseDataset"}}
    found = imported(tmp_path, "sft", data=data, checkpointing={"metric_name": "val:val_loss"})
    assert found.settings["data"]["train"] == [{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 1}]
    assert found.settings["data"]["validation"] == {"c": "c.jsonl", "d": "d.x.jsonl"}
    assert "checkpointing.metric_name" in [key for key, *_ in found.lost]  # of which set?
    assert imported(tmp_path, "sft", data={"train": {"data_path": "a.jsonl", "repeat": 3}}).settings["data"]["train"] == [
        {"path": "a.jsonl", "weight": 3}
    ]


def test_a_section_of_theirs_can_take_the_place_of_its_parents(tmp_path):
    (tmp_path / "parent.yaml").write_text("sft: {seed: 1}\ndata: {train: {dataset_name: squad, split: validation}}\n")
    child = "defaults: parent.yaml\nsft: {max_num_steps: '${add:${sft.seed}, ${div:6, 3}}'}\n"
    child += "data: {_override_: true, train: {data_path: a.jsonl}}\n"
    (tmp_path / "child.yaml").write_text(child.replace("${div:6, 3}", "${max:2, 1}"))
    found = import_nemo_rl_config(tmp_path / "child.yaml")
    assert found.settings == {"data": {"train": "a.jsonl"}, "trainer": {"seed": 1, "max_steps": 3}}
    from omegaconf import OmegaConf

    assert not OmegaConf.has_resolver("mul")  # what we taught it for this is forgotten


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: gone.yaml\nsft: {}", "gone.yaml: No such file"),
        ("sft: {seed: '${nope.seed}'}", "cannot put in the values of ${...}"),
        ("sft: {seed: '${times:1, 2}'}", "cannot put in the values of ${...}"),
        ("sft: {seed: '${mul:a, b}'}", "cannot put in the values of ${...}"),
        ("sft: [", "theirs.yaml"),
        ("- a", "expected a config as key: value"),
        ("eval: {}", "with one section of grpo, sft, dpo, rm, ppo, distillation; it has the section eval"),
        ("grpo: {}\nppo: {}", "it has grpo, ppo"),
        ("sft: {}\ndpo: {}", "it has sft, dpo"),
        ("policy: {lr: 1}", "it has none of them"),
        ("sft: {seed: forty-two}", "these would be refused: trainer.seed='forty-two'"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(gym_bridge, tmp_path, text, message):
    (tmp_path / "theirs.yaml").write_text(text)
    ended = gym_bridge("nemo-rl", "import", tmp_path / "theirs.yaml", "--output", tmp_path / "ours.yaml")
    assert (ended.code, message in ended.err) == (2, True), ended.err
    assert not (tmp_path / "ours.yaml").exists()


def test_an_existing_output_and_a_missing_input_are_refused(gym_bridge, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    ended = gym_bridge("nemo-rl", "import", CONFIGS / "sft.yaml", "--output", tmp_path / "mine.yaml")
    assert (ended.code, (tmp_path / "mine.yaml").read_text()) == (2, "mine")
    ended = gym_bridge("nemo-rl", "import", tmp_path / "none.yaml")
    assert (ended.code, "no such file" in ended.err) == (2, True)


def test_json_holds_what_was_found(gym_bridge):
    ended = gym_bridge("nemo-rl", "import", CONFIGS / "rm.yaml", "--json")
    found = json.loads(ended.out)
    assert (found["verb"], found["settings"]["algorithm"]) == ("rm", {"batch_size": 128, "epochs": 1})
