"""A training that is killed over and over, in children of a process that has loaded torch.

    python killed_run.py MODEL RUN SEED NUM_KILLS

Prints how many kills came while the training ran. Without kills it is the run to compare with.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from gym_bridge.io.metrics import JsonlMetrics
from gym_bridge.io.progress import Progress
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.settings import PolicySettings, TrainerSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.trainers.epochs import Dataset, EpochSource
from gym_bridge.trainers.loop import source_state, train
from gym_bridge.trainers.validation import Validation
from tests.trainers.loop_stage import likelihood

SETTINGS = TrainerSettings(save_every=2, validate_every=3, keep_best=True, keep_last=2, patience=12)
AT_MOST = 10  # steps of a start before it is killed


def units(first: int, count: int) -> list[tuple[TrainingSequence]]:
    """Sequences of four tokens, the last two of which train."""
    mask = np.array([False, False, True, True])
    rows = (np.array([5, number, (number * 7) % 90 + 10, 2], dtype=np.int32) for number in range(first, first + count))
    return [(TrainingSequence(token_ids=ids, train_mask=mask),) for ids in rows]


def go(model: Path, path: Path) -> None:
    """Train in `path` from its last checkpoint on, as a command would."""
    import torch

    torch.set_num_threads(1)
    run = RunDirectory(path)
    checkpoint = run.last_checkpoint()
    chosen = PolicySettings(compute_dtype="float32", lr=3e-3)
    policy = TorchPolicy(checkpoint / "model" if checkpoint else model, chosen)
    source = EpochSource(Dataset.of(units(10, 17)), batch_size=4, epochs=12, seed=3, policy=chosen)
    if checkpoint:
        policy.load(checkpoint)
        source.load_state_dict(source_state(checkpoint))
    writer = JsonlMetrics(run.metrics, resume_step=policy.version)
    validation = Validation({"a": units(60, 3), "b": units(80, 2)}, likelihood, microbatch_tokens=8, share_prefixes=True)
    with Progress("train", total=None, quiet=True) as progress:
        train(policy, source, likelihood, run=run, settings=SETTINGS, writer=writer, progress=progress, validation=validation)


def started(go: Callable[[], None]) -> int:
    """The process id of a child that does `go`."""
    child = os.fork()
    if child:
        return child
    try:
        go()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def num_steps(path: Path) -> int:
    """Steps that the metrics tell of so far."""
    file = path / "metrics.jsonl"
    return file.read_bytes().count(b'"grad_norm"') if file.exists() else 0


def killed_and_finished(go: Callable[[], None], path: Path, *, seed: int, num_kills: int) -> None:
    """Kill the training `num_kills` times, then let it come to its end; prints how many kills hit it, and exits."""
    moment = random.Random(seed)
    num_hit = 0
    for _ in range(num_kills):
        child = started(go)
        last = RunDirectory(path).last_checkpoint()
        wanted = (int(last.name.removeprefix("step_")) if last else 0) + moment.randrange(AT_MOST)
        while num_steps(path) < wanted and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        time.sleep(moment.uniform(0.0, 0.3 if wanted == 0 else 0.04))
        os.kill(child, signal.SIGKILL)
        num_hit += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    _, status = os.waitpid(started(go), 0)
    print(num_hit)
    sys.exit(status != 0)


if __name__ == "__main__":
    given_model, given_run = Path(sys.argv[1]), Path(sys.argv[2])
    killed_and_finished(partial(go, given_model, given_run), given_run, seed=int(sys.argv[3]), num_kills=int(sys.argv[4]))
