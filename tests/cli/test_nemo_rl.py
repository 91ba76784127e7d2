"""`gym-bridge nemo-rl` over real files: found, checked, measured, written, started."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

EXPECTED = Path(__file__).parents[2] / "fixtures" / "expected"
USER = {"role": "user", "content": "What is 2+2?"}
ASSISTANT = {"role": "assistant", "content": "4"}
SFT_ROW = {"messages": [USER, ASSISTANT]}
DPO_ROW = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
TASK_ROW = {
    "responses_create_params": {
        "input": [{"role": "developer", "content": "Be brief."}, USER],
        "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}],
    },
    "agent_ref": {"type": "responses_api_agents", "name": "calculator_agent"},
}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> Path:
    """A model's directory as far as the hand-over looks at it: all but the weights."""
    directory = tmp_path_factory.mktemp("model")
    shutil.copytree(tokenizer_directory, directory, dirs_exist_ok=True)
    (directory / "config.json").write_text('{"max_position_embeddings": 4096}')
    return directory


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What of NeMo RL's checkout is looked at: example configs that inherit, and scripts."""
    root = tmp_path / "RL"
    common = {
        "policy": {"model_name": "m", "tokenizer": {"name": "m"}, "train_global_batch_size": 2, "max_total_sequence_length": 8}
    }
    configs = root / "examples" / "configs"
    configs.mkdir(parents=True)
    (configs / "common.yaml").write_text(yaml.safe_dump(common | {"checkpointing": {"metric_name": "val:val_loss"}}))
    sft = {"defaults": "common.yaml", "sft": {"val_period": 10, "val_at_start": True, "max_num_steps": 60}, "data": {"train": {}}}
    (configs / "sft.yaml").write_text(yaml.safe_dump(sft))
    (root / "examples" / "run_sft.py").write_text("")
    return root


@pytest.fixture
def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `uv` that writes down where and how it was called, and exits with 7."""
    directory = tmp_path / "bin"
    directory.mkdir()
    uv = directory / "uv"
    uv.write_text(f'#!/bin/sh\npwd > {directory}/called\necho "$@" >> {directory}/called\nexit 7\n')
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    return directory / "called"


def test_the_rows_that_transform_writes_become_a_config(gym_bridge, tmp_path, model):
    data = tmp_path / "data"
    data.mkdir()
    rows = (EXPECTED / "example_session_state_mgmt.sft.jsonl").read_text().splitlines(keepends=True)
    (data / "out.train.jsonl").write_text("".join(rows[:-1]))
    (data / "out.validation.jsonl").write_text(rows[-1])
    (data / "pairs.jsonl").write_text((EXPECTED / "nemo_gym_rollouts.dpo.jsonl").read_text())
    ended = gym_bridge("nemo-rl", "sft", "--data", data, "--model", model, "--output", tmp_path / "cfg.yaml")
    assert ended.code == 0, ended.err
    written = yaml.safe_load((tmp_path / "cfg.yaml").read_text())
    assert written["defaults"] == "examples/configs/sft.yaml"
    assert written["policy"]["model_name"] == str(model)
    assert written["policy"]["max_total_sequence_length"] % 64 == 0
    assert written["data"]["train"]["data_path"] == str(data / "out.train.jsonl")
    assert written["data"]["validation"]["data_path"] == str(data / "out.validation.jsonl")
    assert "copy it to the root of the NeMo RL checkout" in ended.out
    assert "uv run examples/run_sft.py --config cfg.yaml\n" in ended.out
    assert f"{len(rows) - 1} sft rows for training" in ended.out
    assert "trains on nothing; add policy.train_global_batch_size" in ended.err


def test_the_length_is_that_of_the_longest_row(gym_bridge, tmp_path, model):
    long = {"messages": [USER, {"role": "assistant", "content": "z" * 300}]}
    data = write(tmp_path / "d.jsonl", SFT_ROW, long)
    arguments = ["nemo-rl", "sft", "--data", data, "--model", model, "--output", tmp_path / "cfg.yaml", "--json"]
    found = json.loads(gym_bridge(*arguments).out)
    assert found["rows"] == 2
    assert 300 < found["longest"] < 400
    assert found["config"]["policy"]["max_total_sequence_length"] == -(-(found["longest"] + 1) // 64) * 64


@pytest.mark.parametrize("algorithm", ["dpo", "rm"])
def test_pairs_train_dpo_and_reward_models(gym_bridge, tmp_path, model, algorithm: str):
    data = EXPECTED / "nemo_gym_rollouts.dpo.jsonl"
    ended = gym_bridge("nemo-rl", algorithm, "--data", data, "--model", model, "--output", tmp_path / "cfg.yaml")
    assert ended.code == 0, ended.err
    written = yaml.safe_load((tmp_path / "cfg.yaml").read_text())
    assert written["data"]["train"]["dataset_name"] == "BinaryPreferenceDataset"
    assert written[algorithm]["val_period"] == 0


def test_tasks_are_handed_to_nemo_gym_with_their_agents_named(gym_bridge, tmp_path, model):
    data = write(tmp_path / "tasks" / "train.jsonl", TASK_ROW)
    ended = gym_bridge("nemo-rl", "grpo", "--data", data, "--model", model, "--output", tmp_path / "cfg.yaml")
    assert ended.code == 0, ended.err
    assert "the rows name the agents calculator_agent" in ended.err
    assert "1 tasks have tools" in ended.err
    assert "examples/nemo_gym/run_grpo_nemo_gym.py" in ended.out
    config_paths = "env.nemo_gym.config_paths=[a.yaml,b.yaml]"
    again = gym_bridge("nemo-rl", "grpo", config_paths, "--data", data, "--model", model, "--output", tmp_path / "cfg.yaml")
    assert "the rows name the agents" not in again.err
    assert yaml.safe_load((tmp_path / "cfg.yaml").read_text())["env"]["nemo_gym"] == {"config_paths": ["a.yaml", "b.yaml"]}


def test_run_starts_nemo_rl_in_its_checkout_and_passes_its_exit_code_on(gym_bridge, tmp_path, model, checkout, fake_uv):
    data = write(tmp_path / "d.jsonl", SFT_ROW, SFT_ROW)
    output = tmp_path / "cfg.yaml"
    words = ["nemo-rl", "sft", "sft.max_num_steps=5", "--data", data, "--model", model, "--output", output]
    ended = gym_bridge(*words, "--run", checkout)
    assert ended.code == 7
    assert fake_uv.read_text().splitlines() == [str(checkout), f"run examples/run_sft.py --config {output}"]
    written = yaml.safe_load(output.read_text())
    assert written["defaults"] == f"{checkout}/examples/configs/sft.yaml"
    assert written["sft"]["max_num_steps"] == 5
    assert "warning" not in ended.err  # the base's batch of two is filled


def test_a_typo_in_an_override_is_refused_where_the_base_is_known(gym_bridge, tmp_path, model, checkout):
    data = write(tmp_path / "d.jsonl", SFT_ROW)
    base = checkout / "examples" / "configs" / "sft.yaml"
    words = ["--data", data, "--model", model, "--output", tmp_path / "cfg.yaml", "--base", base]
    ended = gym_bridge("nemo-rl", "sft", "sft.max_num_stepz=5", *words)
    assert (ended.code, ended.err) == (
        2,
        "gym-bridge: the base config has no key sft.max_num_stepz; did you mean 'max_num_steps'?\n",
    )
    assert not (tmp_path / "cfg.yaml").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "d.jsonl:1: 'messages' ends with the role 'user'"),
        (json.dumps(SFT_ROW) + "\n\n", "d.jsonl:2: a blank line, at which NeMo RL's JSON reader stops"),
        ("\ufeff" + json.dumps(SFT_ROW) + "\n", "d.jsonl:1: a byte-order mark"),
        (json.dumps(SFT_ROW) + "\n{torn", "d.jsonl:2: no JSON"),
        (json.dumps(SFT_ROW) + "\n" + json.dumps(DPO_ROW) + "\n", "d.jsonl:2: a row of kind dpo among sft rows"),
        (json.dumps(DPO_ROW) + "\n", "dpo rows do not train sft: run gym-bridge nemo-rl dpo or rm"),
        ('{"a": 1}\n', "its first row is of no kind that NeMo RL trains on"),
        ("", "its first row is of no kind that NeMo RL trains on"),
    ],
)
def test_bad_data_is_named_by_its_line_and_nothing_is_written(gym_bridge, tmp_path, model, content: str, message: str):
    data = tmp_path / "d.jsonl"
    data.write_text(content, encoding="utf-8")
    ended = gym_bridge("nemo-rl", "sft", "--data", data, "--model", model, "--output", tmp_path / "cfg.yaml")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err
    assert not (tmp_path / "cfg.yaml").exists()


def test_many_problems_are_counted_and_the_first_five_shown(gym_bridge, tmp_path, model):
    data = write(tmp_path / "d.jsonl", *[{"messages": [USER]}] * 7)
    ended = gym_bridge("nemo-rl", "sft", "--data", data, "--model", model, "--output", tmp_path / "cfg.yaml")
    assert "d.jsonl:5:" in ended.err
    assert "d.jsonl:6:" not in ended.err
    assert "; and 2 more" in ended.err


def test_wrong_places_are_one_clear_line(gym_bridge, tmp_path, model, checkout):
    data = write(tmp_path / "d.jsonl", SFT_ROW)
    words = ["nemo-rl", "sft", "--model", model, "--output", tmp_path / "cfg.yaml"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "mixed" / "a.jsonl", SFT_ROW)
    write(tmp_path / "mixed" / "b.jsonl", {"input": "x", "output": "y"})
    for more, message in [
        (["--data", data, "--run", tmp_path / "nowhere"], "nowhere: no such directory; --run takes a checkout"),
        (["--data", data, "--run", tmp_path / "empty"], "no examples/run_sft.py there"),
        (["--data", data, "--base", tmp_path / "no.yaml"], "no.yaml: No such file or directory"),
        (["--data", tmp_path / "none.jsonl"], "none.jsonl: No such file or directory"),
        (["--data", tmp_path / "empty"], "no .jsonl file there holds rows"),
        (["--data", tmp_path / "mixed"], "rows of several kinds"),
        (["--data", write(tmp_path / "d.validation.jsonl", SFT_ROW)], "all are named for validation"),
        (["--data", write(tmp_path / "d.jsonl.zst", SFT_ROW)], "NeMo RL reads plain .jsonl files here"),
    ]:
        ended = gym_bridge(*words, *more)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended
        assert message in ended.err
