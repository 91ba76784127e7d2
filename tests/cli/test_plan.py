"""`gym-bridge plan`: what a training will hold and how long it will take, from its settings and a config.json."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "It is 3"}]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(10)))
    return path


def sft(model: Path, rows: Path, *more: object) -> list[object]:
    settings = [f"policy.model={model}", f"data.train={rows}", "policy.compute_dtype=float32", "policy.microbatch_tokens=64"]
    return ["plan", "sft", *settings, "algorithm.batch_size=4", *more]


def planned(gym_bridge, *argv: object) -> dict:
    ended = gym_bridge(*argv, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_a_plan_tells_memory_and_time(gym_bridge, tiny_llama, rows):
    found = planned(gym_bridge, *sft(tiny_llama, rows))
    numel = found["num_parameters"]
    parts = {name: size * 2**30 for name, size in found["memory_gib"].items()}
    assert found["num_parameters_here"] == numel
    assert parts["gradients"] == 4 * numel
    assert parts["optimizer"] == pytest.approx(8 * numel, rel=0.01)
    assert found["peak_gib"] * 2**30 > 16 * numel
    assert 0.2 < found["resident_gib"] < 2  # Python and PyTorch: the model is tiny
    assert (found["num_steps"], found["fits"], found["notes"]) == (3, True, [])
    assert found["step_s"] == pytest.approx(found["tokens_per_step"] / found["tokens_per_s"])
    assert found["total_s"] == pytest.approx(3 * found["step_s"])


def test_the_table_says_what_the_json_does(gym_bridge, tiny_llama, rows):
    ended = gym_bridge(*sft(tiny_llama, rows))
    assert ended.code == 0, ended.err
    lines = [line.split() for line in ended.out.splitlines()]
    assert {"weights", "gradients", "optimizer", "activations", "logits", "peak", "resident,"} <= {
        line[0] for line in lines if line
    }
    assert ended.out.splitlines()[0].endswith("parameters, 1 processes; each holds 100.000% of them")


def test_more_processes_hold_less_each(gym_bridge, tiny_llama, rows):
    alone, four = (planned(gym_bridge, *sft(tiny_llama, rows, "--num-processes", count)) for count in (1, 4))
    assert four["num_parameters_here"] <= alone["num_parameters_here"] / 3
    assert four["memory_gib"]["optimizer"] < alone["memory_gib"]["optimizer"] / 3
    placed = ["cluster.kind=ray", "cluster.policy.count=4"]
    assert planned(gym_bridge, *sft(tiny_llama, rows, *placed))["memory_gib"] == four["memory_gib"]


def test_what_does_not_fit_is_told_with_what_to_try_and_exit_1(gym_bridge, tiny_llama, rows):
    ended = gym_bridge(*sft(tiny_llama, rows, "--memory-gib", "0.1"))
    assert ended.code == 1
    assert "it does not fit; try more processes, policy.activation_checkpointing=true" in ended.out


def test_a_gpu_is_planned_for_without_one_and_its_time_is_not_guessed(gym_bridge, tiny_llama, tmp_path):
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    argv = ["plan", "sft", f"policy.model={tmp_path}", "data.train=none.jsonl", "policy.device=cuda", "--tokens-per-step", 1000]
    found = planned(gym_bridge, *argv, "--gpu", "H100", "--memory-gib", 80)
    assert (found["tokens_per_s"], found["step_s"], found["resident_gib"], found["fits"]) == (None, None, None, True)
    assert any("give --mfu" in note for note in found["notes"])
    timed = planned(gym_bridge, *argv, "--gpu", "H100", "--mfu", 0.5)
    assert timed["tokens_per_s"] > 1e6
    assert timed["step_s"] == pytest.approx(1000 / timed["tokens_per_s"])
    assert planned(gym_bridge, *argv, "--gpu", "H100", "--mfu", 0.25)["tokens_per_s"] == pytest.approx(timed["tokens_per_s"] / 2)


def test_online_training_adds_its_sampler_its_reference_and_its_critic(gym_bridge, tiny_llama):
    own = [f"policy.model={tiny_llama}", "env.server=arithmetic", "sampler.max_tokens=32", "sampler.max_batch=8"]
    argv = ["plan", "grpo", *own, "policy.compute_dtype=float32", "policy.microbatch_tokens=64", "trainer.max_steps=5"]
    found = planned(gym_bridge, *argv, "algorithm.tasks_per_step=2", "algorithm.group_size=4")
    assert (
        found["memory_gib"]["KV cache"] * 2**30 == 8 * 32 * 2 * 2 * 2 * 8 * 4
    )  # rows, tokens; keys and values, layers, heads, numbers
    assert (found["tokens_per_step"], found["num_steps"]) == (2 * 4 * 32, 5)
    assert found["step_s"] > found["tokens_per_step"] / found["tokens_per_s"]  # and sampling
    assert not {"reference", "critic"} & found["memory_gib"].keys()
    assert "reference" in planned(gym_bridge, *argv, "algorithm.beta=0.1")["memory_gib"]
    critic = planned(gym_bridge, *argv, "algorithm=ppo", "algorithm.overlong_filter=false")["memory_gib"]
    assert critic["critic"] == pytest.approx(sum(critic[name] for name in ("weights", "gradients", "optimizer")))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["policy.tensor_parallel_size=2"], "1 processes are no multiple of it; set --num-processes"),
        (["policy.device=cuda", "--gpu", "H1000"], "no peak FLOP/s is known of it; did you mean 'H100'"),
        (["policy.family=my:Family"], "leave out policy.family"),
        (["policy.lerning_rate=1"], "unknown key 'policy.lerning_rate'"),
        (["--mfu", "2"], "less than or equal to 1"),
        (["--gpu", "H100"], "--gpu is of a GPU, and policy.device=cpu"),
        (["policy.optimizer=adamw_8bit", "--num-processes", "2"], "moments of 8 bits have no shards"),
    ],
)
def test_bad_input_is_one_line(gym_bridge, tiny_llama, rows, more, told):
    ended = gym_bridge(*sft(tiny_llama, rows, *more))
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err
    assert len(ended.err.splitlines()) == 1
