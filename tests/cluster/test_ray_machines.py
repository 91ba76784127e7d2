"""A training over two machines, of which one is cut off, and then lost."""

import json
import sys
from pathlib import Path

import pytest

from tests.api.grpo_stage import LETTERS
from tests.cluster.network_stage import Machine, machines
from tests.cluster.ray_stage import Training, grpo, keys, processes_with, steps

pytestmark = pytest.mark.ray
PORT = 8765


def begin(first: Machine, model: Path, run: Path, *overrides: str) -> Training:
    """A training that `first` starts on the cluster; its server of letters runs there too."""
    tasks = run.with_name("tasks.jsonl")
    asked = [[{"role": "user", "content": f"Say {number}"}] for number in range(12)]
    tasks.write_text("".join(json.dumps({"responses_create_params": {"input": one}}) + "\n" for one in asked))
    own = ["cluster.address=auto", f"env.server=http://{first.address}:{PORT}", f"data.train={tasks}"]
    argv = [one for one in grpo(model, run, *own, *overrides) if not one.startswith("data.num_tasks=")]
    return Training(argv, inside=first.inside)


def letters(first: Machine, *knobs: str):
    """The server, for as long as the block."""
    serve = [sys.executable, "-m", "gym_bridge", "serve", f"{LETTERS}:Letters", "--host", first.address, "--port", str(PORT)]
    return first.running(*serve, "--no-auth", *knobs)


def test_a_machine_that_is_cut_off_for_30_s_costs_nothing_and_one_that_is_lost_no_rollout(tiny_llama, tmp_path):
    run = tmp_path / "run"
    with machines(2) as (first, second), letters(first):
        first.start_ray(num_cpus=2, num_gpus=1)
        first.wait_for_nodes(1)
        second.start_ray(num_cpus=2, num_gpus=1)
        first.wait_for_nodes(2)
        shared = ["cluster.placement=SPREAD", "cluster.policy.gpus=0.5", "cluster.collectors.gpus=0.5"]
        training = begin(first, tiny_llama, run, "trainer.max_steps=20", "env.max_attempts=1", *shared)
        training.wait_for(lambda: len(steps(run)) >= 2)
        for role in ("gym_bridge train grpo --config", "rollouts.shards"):
            assert [len(one.processes(role, variable="CUDA_VISIBLE_DEVICES=0")) for one in (first, second)] == [1, 1]
        second.cut_off(30.0)
        taken = len(steps(run))
        training.wait_for(lambda: len(steps(run)) >= taken + 2)
        second.lose()
        second.start_ray(num_cpus=2, num_gpus=1)
        code, _, err = training.ended()
    assert (code, steps(run)) == (0, list(range(1, 21))), err
    assert err.count("a process that trains was killed") == 1  # by the loss, not by the cut
    assert set(keys(run).values()) == {1}
    ledger = json.loads((run / "rollouts_manifest.json").read_text())["ledger"]
    assert ledger["requested"] == ledger["truncated"] + ledger["completed"] == sum(keys(run).values())
    assert processes_with(str(run)) == []
