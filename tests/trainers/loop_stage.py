"""What tests of the loop train: a tiny model on a source that can be made to fail, with numbers of validation that are given."""

import os
import signal
from itertools import count
from pathlib import Path

import orjson

from gym_bridge.io.metrics import JsonlMetrics
from gym_bridge.io.progress import Progress
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.seams import Loss, TrainStep
from gym_bridge.schemas.settings import PolicySettings, TrainerSettings
from gym_bridge.trainers.loop import TrainResult, source_state, train

HELD_OUT = "validation/held_out/"


class Repeated:
    """A step source that gives the same step over and over; `at_step[n]` happens when step n (from 1) is asked for."""

    def __init__(self, *sequences, num_steps=1000, at_step=None):
        self.step = TrainStep(microbatches=[list(sequences)], metrics={"given": 1.0})
        self.num_steps, self.at_step = num_steps, at_step or {}
        self.taken = 0

    def next(self):
        if self.taken == self.num_steps:
            return None
        self.at_step.get(self.taken + 1, lambda: None)()
        return self.step

    def stepped(self, version):
        self.taken += 1

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]

    def close(self):
        pass


class Given:
    """A validation that finds `losses[version]`, and remembers which versions it was asked for. An exception is raised once."""

    def __init__(self, losses):
        self.losses = dict(losses) if isinstance(losses, dict) else dict(enumerate(losses))
        self.versions = []

    def run(self, policy):
        self.versions.append(policy.version)
        loss = self.losses[policy.version]
        if isinstance(loss, BaseException):
            self.losses[policy.version] = 9.0
            raise loss
        return {f"{HELD_OUT}loss": loss, f"{HELD_OUT}accuracy": -loss}


def likelihood(logprobs, columns):
    """Mean negative log-likelihood."""
    return Loss(-logprobs.sum() / columns.num_tokens)


def terminating(step):
    """`likelihood`; SIGTERM comes in the midst of this step."""
    calls = count(1)

    def loss_fn(logprobs, columns):
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return likelihood(logprobs, columns)

    return loss_fn


def raising(error):
    """A function that raises `error`."""

    def happen():
        raise error

    return happen


def play(
    model: Path, run: Path, source, *, loss_fn=likelihood, dtype="float32", validation=None, progress=None, **settings
) -> TrainResult:
    """Train `model` in `run` from its last checkpoint on, as a command would."""
    directory = RunDirectory(run)
    checkpoint = directory.last_checkpoint()
    policy = TorchPolicy(
        checkpoint / "model" if checkpoint else model, PolicySettings(compute_dtype=dtype, lr=1e-3, warmup_steps=4)
    )
    if checkpoint:
        policy.load(checkpoint)
        source.load_state_dict(source_state(checkpoint))
    with progress or Progress("train", total=None, quiet=True) as shown:
        return train(
            policy,
            source,
            loss_fn,
            run=directory,
            settings=TrainerSettings(output=run, **settings),
            writer=JsonlMetrics(directory.metrics, resume_step=policy.version),
            progress=shown,
            validation=validation,
        )


def checkpoints(run: Path) -> list[str]:
    """Names of all that stands beside the checkpoints."""
    return sorted(one.name for one in (run / "checkpoints").glob("*"))


def metrics(run: Path) -> list[dict]:
    """Lines of the run's metrics."""
    return [orjson.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]


def losses(run: Path) -> list[tuple[int, str, float]]:
    """(step, what, loss) of each line, in order: of steps `train`, of validations `held_out`."""
    names = {"loss": "train", f"{HELD_OUT}loss": "held_out"}
    return [(line["step"], what, line[name]) for line in metrics(run) for name, what in names.items() if name in line]
