"""A vLLM server in a venv of its own, placed by Ray beside those who train."""

import json
from pathlib import Path

import pytest

from tests.cluster.network_stage import machines
from tests.cluster.ray_stage import Training, grpo, keys, kill, processes_with, steps
from tests.cluster.test_ray_machines import begin, letters
from tests.vllm.process import vllm_python

pytestmark = pytest.mark.vllm


SERVER_ARGS = "[--enforce-eager, --dtype, float32, --max-model-len, '1024', --gpu-memory-utilization, '0.2']"


def servers(count: int) -> list[str]:
    """vLLM servers in a venv of their own."""
    role = {"count": count, "python": vllm_python(), "args": SERVER_ARGS, "env.VLLM_CPU_KVCACHE_SPACE": "'1'"}
    role["env.VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else all servers of a machine take its first core
    return ["sampler.kind=vllm", *(f"cluster.sampler.{name}={value}" for name, value in role.items())]


def gaps(run: Path) -> list[float]:
    """How far the log-probs of what was sampled were from those of the weights that are trained, by step; 1: not at all."""
    return [json.loads(line)["gap"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_server_joins_with_a_machine_and_leaves_with_it(tiny_for_vllm, tmp_path):
    run, log = tmp_path / "run", tmp_path / "run" / "logs" / "sampler-1.log"
    with machines(2) as (first, second), letters(first, "jitter_s=1"):
        first.start_ray(num_cpus=3)
        first.wait_for_nodes(1)
        counts = ["cluster.policy.count=1", "cluster.collectors.count=1", "cluster.sampler.min_count=1"]
        training = begin(first, tiny_for_vllm, run, "trainer.max_steps=100000", "trainer.save_every=50", *servers(2), *counts)
        training.wait_for(lambda: len(steps(run)) >= 2)
        assert not log.exists()
        second.start_ray(num_cpus=1)
        training.wait_for(lambda: log.exists() and "POST /inference/v1/generate" in log.read_text())
        second.lose()
        taken = len(steps(run))
        training.wait_for(lambda: len(steps(run)) >= taken + 4)
        training.process.terminate()
        code, _, err = training.ended()
    assert code == 0, err
    assert "a process that trains was killed" not in err
    assert all(abs(one - 1) < 1e-4 for one in gaps(run))


def test_a_killed_vllm_server_comes_back_with_the_weights_of_the_moment(tiny_for_vllm, tmp_path):
    run = tmp_path / "run"
    training = Training(grpo(tiny_for_vllm, run, "trainer.max_steps=6", "env.max_attempts=1", *servers(1)))
    training.wait_for(lambda: len(steps(run)) >= 2)
    kill(processes_with("vllm.entrypoints.openai.api_server", str(tiny_for_vllm)))
    code, _, err = training.ended()
    assert (code, steps(run)) == (0, [1, 2, 3, 4, 5, 6]), err
    assert "sampler 0 has ended" in err
    assert set(keys(run).values()) == {1}
    assert all(abs(one - 1) < 1e-4 for one in gaps(run))  # the server played the weights that are trained
    assert processes_with(str(tiny_for_vllm), "vllm") == []
