"""`kill -9` at random moments of reinforcement learning: no task is lost and none is trained on twice."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gym_bridge.io.jsonl import write_jsonl
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.io.step_records import read_step, recorded_steps
from gym_bridge.trainers.loop import source_state
from tests.api import killed_grpo
from tests.api.grpo_stage import rows, serving_letters, steps

pytestmark = pytest.mark.slow

NUM_KILLS, NUM_STEPS, NUM_TASKS, BATCH = 6, 24, 12, 2
LEARNS_FROM_ALL = ["algorithm.baseline=none", "algorithm.scale=none"]
"""With rewards that are never 0 every group trains, so that every task is seen."""
WAYS = {
    "in turns": (["trainer.save_every=3", *LEARNS_FROM_ALL], 1),
    "overlapped": (["overlap.max_staleness=2", "trainer.save_every=2", *LEARNS_FROM_ALL], 1),
    "in flight, minibatches": (
        [
            "overlap.max_staleness=1",
            "overlap.in_flight_updates=true",
            "algorithm.minibatches=2",
            "trainer.save_every=3",
            *LEARNS_FROM_ALL,
        ],
        2,
    ),
    "with a value model": (["algorithm=ppo", "trainer.save_every=3"], 4),
}
"""Overrides, and updates on a batch."""


@pytest.mark.parametrize(("way", "updates"), WAYS.values(), ids=WAYS)
def test_however_often_it_is_killed_every_task_trains_once_a_pass(way, updates, tiny_llama: Path, tmp_path: Path, request):
    num_chains = 20 if request.config.getoption("--soak") else 1
    fixed = [
        f"trainer.max_steps={NUM_STEPS * updates}",
        "trainer.record=true",
        "data.validation.held_out=" + str(tmp_path / "tasks.jsonl"),
    ]
    num_hit = 0
    tasks = tmp_path / "tasks.jsonl"
    write_jsonl(tasks, [{"responses_create_params": {"input": f"Say {number}"}} for number in range(NUM_TASKS)])
    with serving_letters("jitter_s=0.01", "level=true") as url:
        for seed in range(num_chains):
            run = tmp_path / str(seed)
            num_hit += killed([tiny_llama, run, seed, NUM_KILLS, f"env.server={url}", f"data.train={tasks}", *fixed, *way])
            assert recorded_steps(run / "steps")[: NUM_STEPS * updates] == list(range(1, NUM_STEPS * updates + 1))
            trained = Counter(task for batch in range(NUM_STEPS) for task in tasks_of(run, batch * updates, updates))
            drawn = trained + still_to_train(run)
            num_draws = source_state(RunDirectory(run).last_checkpoint())["stream"]["tasks"]["sets"]["tasks"]["num_draws"]
            assert trained.total() == NUM_STEPS * BATCH
            assert drawn.total() == num_draws
            assert {drawn[task] - num_draws // NUM_TASKS for task in range(NUM_TASKS)} <= {0, 1}  # of each pass one
            assert [one["step"] for one in steps(run)] == list(range(1, NUM_STEPS * updates + 1))
            keys = [(one["_ng_task_index"], one["_ng_rollout_index"]) for one in rows(run / "rollouts.jsonl")]
            assert len(set(keys)) == len(keys)
            if "overlap.max_staleness=2" in way:
                assert max(one["staleness_max"] for one in steps(run)) <= 2
    assert num_hit > num_chains * NUM_KILLS / 2


def killed(argv: list) -> int:
    """Train as killed_grpo does; how many kills hit it."""
    root = Path(__file__).parents[2]
    command = [sys.executable, killed_grpo.__file__, *map(str, argv)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env={"PYTHONPATH": str(root)}, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


def still_to_train(run: Path) -> Counter:
    """Tasks that were taken and have not trained, by the last checkpoint."""
    stream = source_state(RunDirectory(run).last_checkpoint())["stream"]
    waiting = [*stream["tasks"]["pending"], *(one["draw"] for one in stream["groups"])]
    return Counter(one["position"] for one in waiting)


def tasks_of(run: Path, first: int, updates: int) -> list[int]:
    """The tasks of a batch whose updates come after step `first`, each once."""
    found = set()
    for number in range(first + 1, first + updates + 1):
        step = read_step(run / "steps", number)
        found |= {one.origin for batch in step.microbatches for one in batch}
    return sorted({int(origin.split()[-1].split("-")[0]) for origin in found})
