"""The scripts of `gym-bridge launch` run whole, with real Ray; ssh, srun and scontrol are this machine's bash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.ray_stage import grpo, processes_with, stand_in, steps

pytestmark = pytest.mark.ray

SRUN = 'while [[ "$1" == --* ]]; do shift; done; exec "$@"'
SSH = 'exec bash -c "${@: -1}"'
ADDRESS = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()[0]
SMALL = ["cluster.policy.count=1", "cluster.policy.cpus=0.5", "cluster.collectors.count=1", "cluster.collectors.cpus=0.5"]


@pytest.mark.parametrize(
    ("where", "options"), [("slurm", ["--cpus-per-node", "2"]), ("hosts", ["--hosts", ADDRESS])], ids=["slurm", "hosts"]
)
def test_a_printed_script_starts_ray_trains_and_ends_all_of_it(tiny_llama, tmp_path, where, options):
    run = tmp_path / "run"
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    stand_in(bin_directory, "srun", SRUN)
    stand_in(bin_directory, "ssh", SSH)
    stand_in(bin_directory, "scontrol", "hostname")
    _, verb, *words = grpo(tiny_llama, run, *SMALL, "trainer.max_steps=2")
    words.remove("cluster.address=local")
    command = [sys.executable, "-m", "gym_bridge", "launch", where, verb, *words, *options, "--directory", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "1"}
    places = {"PATH": f"{bin_directory}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2])}
    environment = {**os.environ, **slurm, **places}
    found = subprocess.run(["bash"], input=printed, capture_output=True, text=True, check=False, timeout=200, env=environment)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "done after 2 steps" in found.stdout
    assert steps(run) == [1, 2]
    assert processes_with("raylet") == []
