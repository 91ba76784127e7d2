"""A vLLM server in a venv of its own, placed by Ray beside those who train."""

import json

import pytest

from tests.cluster.ray_stage import Training, grpo, keys, kill, processes_with, steps
from tests.vllm.process import vllm_python

pytestmark = pytest.mark.vllm


def test_a_killed_vllm_server_comes_back_with_the_weights_of_the_moment(tiny_for_vllm, tmp_path):
    run = tmp_path / "run"
    server = [
        "sampler.kind=vllm",
        "cluster.sampler.count=1",
        f"cluster.sampler.python={vllm_python()}",
        "cluster.sampler.args=[--enforce-eager, --dtype, float32, --max-model-len, '1024', --gpu-memory-utilization, '0.2']",
        "cluster.sampler.env.VLLM_CPU_KVCACHE_SPACE='1'",
    ]
    training = Training(grpo(tiny_for_vllm, run, "trainer.max_steps=6", "env.max_attempts=1", *server))
    training.wait_for(lambda: len(steps(run)) >= 2)
    kill(processes_with("vllm.entrypoints.openai.api_server", str(tiny_for_vllm)))
    code, _, err = training.ended()
    assert (code, steps(run)) == (0, [1, 2, 3, 4, 5, 6]), err
    assert "sampler 0 has ended" in err
    assert set(keys(run).values()) == {1}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(one["gap"] - 1) < 1e-4 for one in lines)  # the server played the weights that are trained
    assert processes_with(str(tiny_for_vllm), "vllm") == []
