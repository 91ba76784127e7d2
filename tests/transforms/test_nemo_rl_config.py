"""The override file: only keys that NeMo RL has, the right ones for each kind of rows, and what it would do in silence."""

from typing import Any

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.nemo_rl_rows import RowKind
from gym_bridge.transforms.nemo_rl_config import (
    KINDS,
    DatasetFacts,
    base_config_path,
    check_keys,
    check_pairing,
    override_config,
    script_path,
    sequence_length,
    warnings,
)
from tests.transforms.nemo_rl_keys import CODE_KEYS, CONFIG_KEYS, DATASET_KEYS

PAIRINGS = [(algorithm, kind) for algorithm, kinds in KINDS.items() for kind in kinds]


def facts(kind: RowKind, **changes: Any) -> DatasetFacts:
    given = {"kind": kind, "train": ("/d/train.jsonl",), "num_train": 500, "longest": 100} | changes
    return DatasetFacts(**given)


def config(algorithm, kind: RowKind, **changes: Any) -> dict[str, Any]:
    return override_config(algorithm, facts(kind, **changes), model="org/model", base="/RL/base.yaml")


def leaves(value: Any, path: str = "") -> set[str]:
    """Dotted keys, down to what is no section; a dataset is one leaf."""
    if not isinstance(value, dict) or "dataset_name" in value:
        return {path}
    return set().union(*(leaves(one, f"{path}.{key}" if path else key) for key, one in value.items()))


@pytest.mark.parametrize(("algorithm", "kind"), PAIRINGS)
@pytest.mark.parametrize("validation", [(), ("/d/validation.jsonl",)])
def test_every_key_is_one_of_nemo_rl(algorithm, kind: RowKind, validation: tuple[str, ...]):
    written = config(algorithm, kind, validation=validation)
    assert leaves(written) - CONFIG_KEYS[algorithm] - CODE_KEYS == set()
    for dataset in filter(None, (written["data"]["train"], written["data"]["validation"])):
        assert set(dataset) - {"dataset_name"} == DATASET_KEYS[dataset["dataset_name"]]


def test_sft_rows_are_read_without_null_keys_and_rendered_by_the_models_own_template():
    assert config("sft", RowKind.SFT, validation=("/d/validation.jsonl",)) == {
        "defaults": "/RL/base.yaml",
        "policy": {
            "model_name": "org/model",
            "tokenizer": {"name": "${policy.model_name}", "chat_template": "default"},
            "max_total_sequence_length": 128,
        },
        "data": {
            "_override_": True,
            "max_input_seq_length": "${policy.max_total_sequence_length}",
            "shuffle": True,
            "num_workers": 1,
            "add_bos": True,
            "add_eos": True,
            "add_generation_prompt": False,
            "use_multiple_dataloader": False,
            "train": {
                "dataset_name": "openai_format",
                "chat_key": "messages",
                "tool_key": "tools",
                "use_preserving_dataset": True,
                "data_path": "/d/train.jsonl",
            },
            "validation": {
                "dataset_name": "openai_format",
                "chat_key": "messages",
                "tool_key": "tools",
                "use_preserving_dataset": True,
                "data_path": "/d/validation.jsonl",
            },
            "default": {"prompt_file": None, "system_prompt_file": None, "processor": "sft_processor"},
        },
        "logger": {
            "wandb": {"name": "sft-gym-bridge"},
            "swanlab": {"name": "sft-gym-bridge"},
            "tensorboard": {"log_dir": "tb_logs-sft-gym-bridge"},
            "mlflow": {"run_name": "sft-gym-bridge"},
        },
    }


@pytest.mark.parametrize(
    ("algorithm", "kind", "dataset", "base", "script"),
    [
        ("sft", RowKind.RESPONSE, "ResponseDataset", "examples/configs/sft.yaml", "examples/run_sft.py"),
        ("dpo", RowKind.DPO, "BinaryPreferenceDataset", "examples/configs/dpo.yaml", "examples/run_dpo.py"),
        ("rm", RowKind.PREFERENCE, "PreferenceDataset", "examples/configs/rm.yaml", "examples/run_rm.py"),
        ("grpo", RowKind.RESPONSE, "ResponseDataset", "examples/configs/grpo_math_1B.yaml", "examples/run_grpo.py"),
        (
            "grpo",
            RowKind.TASKS,
            "NemoGymDataset",
            "examples/nemo_gym/grpo_workplace_assistant_nemotron_nano_v2_9b.yaml",
            "examples/nemo_gym/run_grpo_nemo_gym.py",
        ),
    ],
)
def test_each_kind_has_its_dataset_its_base_and_its_script(algorithm, kind: RowKind, dataset: str, base: str, script: str):
    assert config(algorithm, kind)["data"]["train"]["dataset_name"] == dataset
    assert (base_config_path(algorithm, kind), script_path(algorithm, kind)) == (base, script)


def test_tasks_go_through_nemo_gym():
    written = config("grpo", RowKind.TASKS)
    assert written["env"] == {"should_use_nemo_gym": True}
    assert written["policy"]["generation"]["vllm_cfg"] == {"async_engine": True, "expose_http_server": True}
    assert written["data"]["max_input_seq_length"] is None
    assert written["data"]["default"]["processor"] == "nemo_gym_data_processor"
    assert written["grpo"]["max_val_samples"] is None
    assert "max_total_sequence_length" not in written["policy"]


def test_without_a_validation_file_validation_is_off():
    written = config("dpo", RowKind.DPO)
    assert written["dpo"] == {"val_period": 0, "val_at_start": False}
    assert written["checkpointing"] == {"metric_name": None}
    assert written["data"]["validation"] is None


def test_several_files_are_a_list_but_for_preferences():
    files = ("/d/a.jsonl", "/d/b.jsonl")
    assert [one["data_path"] for one in config("sft", RowKind.SFT, train=files)["data"]["train"]] == list(files)
    with pytest.raises(ConfigError, match=r"one file of preferences, found /d/a.jsonl, /d/b.jsonl"):
        config("rm", RowKind.DPO, train=files)


@pytest.mark.parametrize(
    ("algorithm", "kind", "longest", "length"),
    [
        ("sft", RowKind.SFT, 63, 64),
        ("sft", RowKind.SFT, 64, 128),  # a row that reaches the limit is neutralised
        ("dpo", RowKind.DPO, 1000, 1024),
        ("grpo", RowKind.RESPONSE, 100, 1152),  # 100 + 1024 for the answer, rounded up
        ("grpo", RowKind.TASKS, 100, None),
    ],
)
def test_the_sequence_length_holds_the_longest_row(algorithm, kind: RowKind, longest: int, length: int | None):
    assert sequence_length(algorithm, facts(kind, longest=longest)) == length


@pytest.mark.parametrize(
    ("algorithm", "kind", "instead"),
    [
        ("sft", RowKind.DPO, "dpo rows do not train sft: run gym-bridge nemo-rl dpo or rm with them"),
        ("dpo", RowKind.SFT, "sft rows do not train dpo: run gym-bridge nemo-rl sft with them"),
        ("grpo", RowKind.SFT, "make rows for grpo with gym-bridge transform --to tasks"),
        ("rm", RowKind.TASKS, "tasks rows do not train rm: run gym-bridge nemo-rl grpo with them"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_what_to_run_instead(algorithm, kind: RowKind, instead: str):
    with pytest.raises(ConfigError, match=instead):
        check_pairing(algorithm, kind)


@pytest.mark.parametrize(
    ("algorithm", "kind", "changes", "warning"),
    [
        ("rm", RowKind.PREFERENCE, {"num_with_tools": 3}, "3 rows have tools: NeMo RL does not give them"),
        ("dpo", RowKind.PREFERENCE, {"num_with_object_arguments": 2}, "2 rows have tool calls with arguments as objects"),
        ("dpo", RowKind.PREFERENCE, {"num_long_completions": 4}, "4 rows have completions of several messages"),
        ("sft", RowKind.SFT, {"num_rewritten": 5}, "in 5 rows the chat template writes earlier turns anew"),
        ("rm", RowKind.DPO, {"dated_template": True}, "the chat template writes today's date"),
        ("grpo", RowKind.RESPONSE, {"longest_output": 900}, "the longest 'output' has 900 characters"),
        ("sft", RowKind.SFT, {"num_train": 7}, "7 rows are fewer than one step's policy.train_global_batch_size of 32"),
        ("dpo", RowKind.DPO, {"num_train": 7}, "of 128: NeMo RL drops the last, incomplete batch and trains on nothing"),
        ("grpo", RowKind.RESPONSE, {"num_train": 7}, "add grpo.num_prompts_per_step=7"),
        ("sft", RowKind.SFT, {"longest": 5000, "max_positions": 4096}, "5056 is more than the model's 4096 positions"),
        ("grpo", RowKind.TASKS, {"agents": ("a", "b")}, "the rows name the agents a, b: list the NeMo Gym configs"),
        ("grpo", RowKind.TASKS, {"num_with_tools": 9}, "9 tasks have tools: set policy.generation.vllm_cfg.http_server_serving"),
    ],
)
def test_what_nemo_rl_would_do_in_silence_is_said(algorithm, kind: RowKind, changes: dict[str, Any], warning: str):
    found = warnings(algorithm, facts(kind, **changes), config(algorithm, kind, **changes), None)
    assert any(warning in one for one in found), found


def test_a_good_dataset_has_no_warning():
    assert warnings("sft", facts(RowKind.SFT), config("sft", RowKind.SFT), None) == []
    assert warnings("dpo", facts(RowKind.DPO), config("dpo", RowKind.DPO), None) == []


def test_a_length_below_the_longest_row_and_an_old_base_are_warned_of():
    written = config("sft", RowKind.SFT)
    written["policy"]["max_total_sequence_length"] = 100
    base = {"data": {"dataset_name": "HelpSteer3"}, "policy": {"train_global_batch_size": 4}}
    length, old = warnings("sft", facts(RowKind.SFT), written, base)
    assert "the longest row has 100 tokens, more than max_total_sequence_length 100 holds" in length
    assert "the base config has no data.train" in old


def test_a_key_that_the_base_does_not_have_is_refused_with_the_nearest():
    base = {"sft": {"max_num_steps": 60}, "policy": {"optimizer": {"name": "AdamW", "kwargs": {"lr": 1.0}}}, "data": {}}
    check_keys({"sft": {"max_num_steps": 5}, "policy": {"optimizer": {"kwargs": {"fused": True}}}, "data": {"x": 1}}, base)
    with pytest.raises(ConfigError, match=r"no key sft.max_num_step; did you mean 'max_num_steps'"):
        check_keys({"sft": {"max_num_step": 5}}, base)
    with pytest.raises(ConfigError, match="no section 'polisy'; did you mean 'policy'"):
        check_keys({"polisy": {}}, base)
