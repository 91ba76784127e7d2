"""`kill -9` at random moments of a training: what is on disk at its end is what an uninterrupted one leaves, bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers import killed_run
from tests.trainers.loop_stage import metrics

pytestmark = pytest.mark.slow

NUM_KILLS = 6
SECONDS = {"train_s", "source_s", "step_s", "save_s", "validation_s"}
TIMED = SECONDS | {"trained_tokens_per_s", "tokens_per_s", "mfu", "peak_memory_gib"}


def trained(model: Path, run: Path, *, seed: int = 0, num_kills: int = 0) -> int:
    """Train in `run`; how many kills came while it ran."""
    command = [sys.executable, killed_run.__file__, str(model), str(run), str(seed), str(num_kills)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env={"PYTHONPATH": str(root)}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def left(run: Path) -> tuple[list[dict], dict[str, bytes], Path]:
    """The lines of its metrics without what the clock says, its checkpoints' files, and where the best one is."""
    lines = [{name: value for name, value in line.items() if name not in TIMED} for line in metrics(run)]
    checkpoints = run / "checkpoints"
    files = {one.relative_to(run).as_posix(): one.read_bytes() for one in sorted(checkpoints.rglob("*")) if one.is_file()}
    return lines, files, (checkpoints / "best").readlink()


def test_however_often_it_is_killed_a_training_ends_as_an_uninterrupted_one(
    tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    trained(tiny_llama, tmp_path / "whole")
    whole = left(tmp_path / "whole")
    steps = [line["step"] for line in whole[0]]
    assert steps.count(3) == 2  # a line of the step, one of its validation
    assert {Path(name).parts[1] for name in whole[1]} >= {whole[2].name}
    print(f"the whole run: {steps[-1]} steps, the best {whole[2]}")
    num_chains = 40 if request.config.getoption("--soak") else 2
    num_hit = 0
    for chain in range(num_chains):
        run = tmp_path / str(chain)
        num_hit += trained(tiny_llama, run, seed=chain, num_kills=NUM_KILLS)
        assert left(run) == whole
    assert num_hit > num_chains * NUM_KILLS / 2
