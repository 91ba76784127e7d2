"""Small runs of reinforcement learning: a tiny model of random weights against servers of letters, in a process of their own."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gym_bridge import train
from gym_bridge.config import load_config
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.resource_servers.process import ServerProcess
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.trainers.loop import TrainResult

LETTERS = str(Path(__file__).with_name("letters.py"))


@contextmanager
def serving_letters(*argv: str, server: str = "Letters"):
    """The address of a server of letters; `argv` are its settings."""
    with ServerProcess(f"{LETTERS}:{server}", argv) as process:
        yield process.url


def settings(model: Path, output: Path, *overrides: str, **sections: Any) -> GRPOSettings:
    """Two groups of four rollouts of six tokens a step, at a rate at which a tiny model learns within a few of them."""
    values = {
        "policy": {"model": str(model), "lr": 1e-3, "compute_dtype": "float32"},
        "env": {"server": f"{LETTERS}:Letters"},
        "sampler": {"max_tokens": 6},
        "algorithm": {"tasks_per_step": 2, "group_size": 4},
        "trainer": {"output": str(output), "max_steps": 2},
        **sections,
    }
    return load_config(GRPOSettings, values=values, overrides=overrides)


def run(model: Path, output: Path, *overrides: str, **sections: Any) -> TrainResult:
    """Train with these settings."""
    return train(settings(model, output, *overrides, **sections))


def rows(path: Path) -> list[dict]:
    return [row for _, row in read_jsonl(path)]


def weights(output: Path) -> bytes:
    """The last checkpoint's weights, byte for byte."""
    (checkpoint,) = (output / "checkpoints").iterdir()
    return (checkpoint / "model" / "model.safetensors").read_bytes()


def steps(output: Path) -> list[dict]:
    """The metrics of the updates, without the lines of validations and without times."""
    lines = [row for row in rows(output / "metrics.jsonl") if "loss" in row]
    return [
        {name: value for name, value in row.items() if not name.endswith(("_s", "_gib")) and "_s/" not in name} for row in lines
    ]
