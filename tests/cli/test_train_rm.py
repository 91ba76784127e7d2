"""`train rm` through the command line; its checkpoint is a model that the reward model server serves."""

import json
from pathlib import Path

import pytest

from gym_bridge.resource_servers.reward_model.scorer import RewardScorer

from .test_train_dpo import PAIRS, metrics, write


@pytest.fixture
def command(tiny_llama: Path):
    def build(data: Path, run: Path, *overrides: str) -> list[str]:
        own = [f"data.train={data}", f"policy.model={tiny_llama}", "policy.lr=1e-3", "algorithm.batch_size=4", "--quiet"]
        return ["train", "rm", "--config", "rm/tiny", *own, f"trainer.output={run}", *overrides]

    return build


def test_a_reward_model_is_trained_and_served(gym_bridge, command, tmp_path: Path):
    run = tmp_path / "run"
    ended = gym_bridge(*command(write(tmp_path / "dpo.jsonl", *PAIRS), run, "algorithm.epochs=6", "--json"))
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["steps"] == 12
    steps = metrics(run)
    assert {"accuracy", "margin", "reward_chosen", "reward_rejected", "num_pairs"} <= {*steps[0]}
    assert steps[-1]["loss"] < steps[0]["loss"]
    scorer = RewardScorer(str(run), device="cpu", dtype="float32", renderer=None)

    def score(pair: dict, side: str) -> float:
        asked = [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]
        return scorer.scores([scorer.token_ids(asked, [])])[0]

    assert all(score(pair, "chosen") > score(pair, "rejected") for pair in PAIRS)


def test_a_resumed_run_equals_an_uninterrupted_one(gym_bridge, command, tmp_path: Path):
    data = write(tmp_path / "dpo.jsonl", *({**pair, "gap": number} for number, pair in enumerate(PAIRS)))
    overrides = ["data.margin=gap", "algorithm.epochs=2"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert gym_bridge(*command(data, whole, *overrides)).code == 0
    for stop in (["trainer.max_steps=1"], []):
        assert gym_bridge(*command(data, halves, *overrides, *stop)).code == 0
    assert metrics(halves) == metrics(whole)
    ends = [(run / "checkpoints" / "step_00000004" / "model" / "model.safetensors").read_bytes() for run in (whole, halves)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ([{"messages": []}], [], "dpo.jsonl:1: no column 'prompt'"),
        ([PAIRS[0]], ["data.margin=gap"], "dpo.jsonl:1: the row's margin 'gap' is None; expected a number of at least 0"),
        ([PAIRS[0]], ["data.max_length=5"], "dpo.jsonl: no row is left of 1: 1 too_long; raise data.max_length=5"),
        (None, [], "dpo.jsonl: No such file or directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(gym_bridge, command, tmp_path: Path, rows, overrides, message):
    data = tmp_path / "dpo.jsonl"
    if rows is not None:
        write(data, *rows)
    ended = gym_bridge(*command(data, tmp_path / "run", *overrides))
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err
