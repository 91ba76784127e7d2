"""`train dpo` through the command line, on what `transform` writes, with a tiny model."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

PAIRS = [{"prompt": f"{a}+2?", "chosen": str(a + 2), "rejected": f"It is {a}"} for a in range(8)]


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def metrics(run: Path) -> list[dict]:
    timed = ("train_s", "trained_tokens_per_s", "tokens_per_s", "source_s", "step_s", "peak_memory_gib")
    return [
        {name: value for name, value in json.loads(line).items() if name not in timed}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def command(tiny_llama: Path) -> Callable[..., list[str]]:
    def build(data: Path, run: Path, *overrides: str) -> list[str]:
        own = [f"data.train={data}", f"policy.model={tiny_llama}", "policy.lr=1e-3", "algorithm.batch_size=3", "--quiet"]
        return ["train", "dpo", "--config", "dpo/tiny", *own, f"trainer.output={run}", *overrides]

    return build


def test_training_begins_at_ln_2_reports_its_numbers_and_leaves_a_model(gym_bridge, command, tmp_path: Path):
    run = tmp_path / "run"
    ended = gym_bridge(*command(write(tmp_path / "dpo.jsonl", *PAIRS), run, "algorithm.epochs=4", "--json"))
    assert (ended.code, ended.err) == (0, "")
    told = json.loads(ended.out)
    assert (told["steps"], told["checkpoint"]) == (12, str(run / "checkpoints" / "step_00000012"))
    steps = metrics(run)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[-1]["loss"] < 0.6
    assert {"accuracy", "margin", "reward_chosen", "reward_rejected", "kl", "num_pairs", "epoch", "grad_norm", "lr"} <= {*steps[0]}
    assert [one["num_pairs"] for one in steps[:3]] == [3, 3, 2]
    assert steps[-1]["accuracy"] == 1.0
    again = gym_bridge(*command(tmp_path / "dpo.jsonl", tmp_path / "more", f"policy.model={run}", "trainer.max_steps=1"))
    assert again.code == 0


def test_rows_of_transform_train_both_ways(gym_bridge, command, tmp_path: Path):
    """Real rollouts, paired by --to dpo and by --to preference, give pairs of equal number."""
    rollouts = tmp_path / "rollouts.jsonl"
    rows = []
    for task in range(2):
        for attempt, (answer, reward) in enumerate((("4", 1.0), ("5", 0.0))):
            message = {"type": "message", "role": "assistant", "id": "m", "status": "completed"}
            content = [{"type": "output_text", "text": answer, "annotations": []}]
            rows.append(
                {
                    "_ng_task_index": task,
                    "_ng_rollout_index": attempt,
                    "reward": reward,
                    "responses_create_params": {"input": [{"role": "user", "content": f"{task}: 2+2?"}]},
                    "response": {"output": [{**message, "content": content}]},
                }
            )
    write(rollouts, *rows)
    losses = []
    for target in ("dpo", "preference"):
        data = tmp_path / f"{target}.jsonl"
        made = gym_bridge("transform", rollouts, "--to", target, "--output", data, "--quiet")
        assert made.code == 0, made.err
        ended = gym_bridge(*command(data, tmp_path / f"run_{target}", "algorithm.epochs=2"))
        assert ended.code == 0, ended.err
        steps = metrics(tmp_path / f"run_{target}")
        assert [one["num_pairs"] for one in steps] == [2, 2]
        losses.append([one["loss"] for one in steps])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("loss", ["sigmoid", "kto", "orpo"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(gym_bridge, command, tmp_path: Path, loss: str):
    data = write(tmp_path / "dpo.jsonl", *PAIRS)
    overrides = ["algorithm.epochs=2", f"algorithm.loss={loss}"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert gym_bridge(*command(data, whole, *overrides)).code == 0
    assert gym_bridge(*command(data, halves, *overrides, "trainer.max_steps=2")).code == 0
    kept = {file.name: file.stat().st_mtime_ns for file in (halves / "ref_logprobs").glob("*")}
    assert len(kept) == (0 if loss == "orpo" else 1)
    assert gym_bridge(*command(data, halves, *overrides)).code == 0
    assert {file.name: file.stat().st_mtime_ns for file in (halves / "ref_logprobs").glob("*")} == kept  # not computed again
    assert metrics(halves) == metrics(whole)
    ends = [load_file(run / "checkpoints" / "step_00000006" / "model" / "model.safetensors") for run in (whole, halves)]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])


def test_a_lost_reference_is_computed_again_from_the_start_weights(gym_bridge, command, tmp_path: Path):
    data = write(tmp_path / "dpo.jsonl", *PAIRS)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert gym_bridge(*command(data, whole)).code == 0
    assert gym_bridge(*command(data, halves, "trainer.max_steps=2")).code == 0
    for file in (halves / "ref_logprobs").iterdir():
        file.unlink()
    assert gym_bridge(*command(data, halves)).code == 0
    assert metrics(halves) == metrics(whole)


def test_other_data_is_refused_in_the_directory_of_a_run(gym_bridge, command, tmp_path: Path):
    run = tmp_path / "run"
    data = write(tmp_path / "dpo.jsonl", *PAIRS)
    assert gym_bridge(*command(data, run, "trainer.max_steps=1")).code == 0
    write(data, *PAIRS[1:])
    ended = gym_bridge(*command(data, run))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "holds another run (digests.data: " in ended.err


def test_dropped_pairs_are_told(gym_bridge, command, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = write(tmp_path / "dpo.jsonl", *PAIRS, {**PAIRS[0], "chosen": "4" * 200})
    assert gym_bridge(*command(data, tmp_path / "run", "data.max_length=150", "trainer.max_steps=1")).code == 0
    assert "dpo.jsonl: dropped 1 rows: too_long" in caplog.text


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ([{"messages": []}], [], "dpo.jsonl:1: no column 'prompt'; expected 'prompt', 'chosen' and 'rejected', or 'context' and"),
        ([PAIRS[0], {**PAIRS[0], "rejected": "2"}], [], "dpo.jsonl:2: chosen and rejected are equal"),
        ([PAIRS[0]], ["data.max_length=5"], "dpo.jsonl: no row is left of 1: 1 too_long; raise data.max_length=5"),
        ([], [], "dpo.jsonl: the file is empty; expected one JSON object a line"),
        (None, [], "dpo.jsonl: No such file or directory"),
        (
            [PAIRS[0]],
            ["algorithm.loss=kto"],
            "algorithm.loss=kto compares answers to different prompts, and all",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(gym_bridge, command, tmp_path: Path, rows, overrides, message):
    data = tmp_path / "dpo.jsonl"
    if rows is not None:
        write(data, *rows)
    ended = gym_bridge(*command(data, tmp_path / "run", *overrides))
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err
