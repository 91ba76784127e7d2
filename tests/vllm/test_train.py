"""GRPO whose rollouts a real vLLM server samples: it gets the weights after each batch, and says what the trainer says."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gym_bridge.io.jsonl import write_jsonl
from tests.api.grpo_stage import rows, run, serving_letters, steps
from tests.vllm.process import TRAINING, VLLMProcess

pytestmark = pytest.mark.vllm
FLOAT32 = 1.0001


@pytest.fixture(scope="module")
def server(tiny_for_vllm: Path) -> Iterator[VLLMProcess]:
    words = ["--enable-scale-out", "--gpu-memory-utilization", "0.2", "--max-model-len", 1024, "--dtype", "float32"]
    with closing(VLLMProcess(tiny_for_vllm, *words, environment=TRAINING)) as process:
        process.start()
        process.wait()
        yield process


@pytest.mark.parametrize(
    "way",
    [[], ["overlap.max_staleness=1"], ["overlap.max_staleness=2", "overlap.in_flight_updates=true"], ["algorithm.minibatches=2"]],
    ids=["in turns", "overlapped", "in flight", "two updates a batch"],
)
def test_a_policy_learns_from_what_vllm_samples_with_its_weights(server, tiny_for_vllm: Path, tmp_path: Path, way):
    tasks = tmp_path / "tasks.jsonl"
    write_jsonl(tasks, [{"responses_create_params": {"input": f"Say {number}"}} for number in range(8)])
    held_out = [f"data.validation.held_out={tasks}", "trainer.validate_every=2"]
    with serving_letters() as url:
        sampler = ["sampler.kind=vllm", f"sampler.url={server.url}"]
        fixed = [f"env.server={url}", f"data.train={tasks}", *sampler, "trainer.max_steps=4"]
        assert run(tiny_for_vllm, tmp_path / "run", *fixed, *way, *held_out).steps == 4
    found = [one for one in steps(tmp_path / "run") if one.get("staleness_max") == 0]
    assert found
    assert max(one["gap"] for one in found) < FLOAT32  # the server sampled with the weights that the trainer had
    versions = {version for row in rows(tmp_path / "run" / "rollouts.jsonl") for version in row["gym_bridge"]["policy_versions"]}
    assert len(versions) > 1
    assert versions <= set(range(5))
    assert [one["step"] for one in rows(tmp_path / "run" / "metrics.jsonl") if "validation/held_out/reward" in one] == [0, 2, 4]
