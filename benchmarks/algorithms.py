"""How soon GRPO, PPO and REINFORCE reach one held-out reward.

    python -m benchmarks.algorithms [--target 0.8] [--seeds 0 1 2] [--curves FILE] [--svg FILE]

A transformer of random weights (two layers of 64) is asked for letters or for digits and gets the share of its 8 tokens that
are: it has to read the question, since one kind alone is worth half. Every 10 batches it plays 64 held-out questions. Equal
tuning: each algorithm is tried at the same learning rates with two seeds that are not measured, and is measured at the rate that
needed the fewest tokens with the worse of them. Seconds are those of rollouts and updates, without validations.
"""

import argparse
import json
import math
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import Qwen3Config

from benchmarks.grpo_models import CONTROL, chat_model
from benchmarks.kind_server import NAME
from benchmarks.learning_curves import draw_lines
from benchmarks.parts import row, table
from gym_bridge import train
from gym_bridge.config import load_config
from gym_bridge.errors import PolicyError
from gym_bridge.io.jsonl import write_jsonl
from gym_bridge.resource_servers.process import ServerProcess
from gym_bridge.resource_servers.registry import make_tasks
from gym_bridge.schemas.settings import GRPOSettings

ALGORITHMS: dict[str, dict[str, Any]] = {
    "GRPO": {"preset": "grpo"},
    "PPO": {"preset": "ppo"},
    "REINFORCE": {"loss": "reinforce", "baseline": "none", "scale": "none", "whiten": True},
}
"""PPO makes four updates of a batch, with a value model; REINFORCE compares a reward with the whole batch, once each."""
RATES = (1e-3, 2e-3, 4e-3)
TUNING_SEEDS = (1_000, 1_001)
EVERY = 10
"""Batches from one validation to the next."""
AT_ONCE = 50
"""Batches after which a training that has reached the target is not gone on with."""
REWARD = "validation/held_out/reward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What it took to reach the target."""

    batches: int
    updates: int
    tokens: float
    """Sampled."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training."""

    algorithm: str
    rate: float
    seed: int
    curve: list[tuple[float, float]]
    """(batches, held-out reward)."""
    reached: Reached | None


class Laboratory:
    """Trains the same model on the same tasks of the server at `url`."""

    def __init__(self, directory: Path, url: str, options: argparse.Namespace):
        self._directory, self._url, self._options = directory, url, options
        shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
        vocabulary = {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(CONTROL) + 256, "tie_word_embeddings": True}
        self._model = chat_model(Qwen3Config(**shape, **vocabulary), directory / "model", dtype=torch.float32)
        write_jsonl(directory / "train.jsonl", make_tasks(NAME, num_tasks=2048, seed=0, split="train"))
        write_jsonl(directory / "heldout.jsonl", make_tasks(NAME, num_tasks=64, seed=0, split="heldout"))

    def trial(self, algorithm: str, rate: float, seed: int) -> Trial:
        """One training, until it has reached the target or made as many batches as it may."""
        output = self._directory / "runs" / f"{algorithm}-{rate:g}-{seed}"
        chosen = ALGORITHMS[algorithm]
        updates = 4 if chosen.get("preset") == "ppo" else 1
        values = {
            "policy": {"model": str(self._model), "lr": rate, "compute_dtype": "float32"},
            "data": {
                "train": str(self._directory / "train.jsonl"),
                "validation": {"held_out": str(self._directory / "heldout.jsonl")},
            },
            "env": {"server": self._url},
            "sampler": {"max_tokens": 8},
            "algorithm": {"tasks_per_step": 8, "group_size": 8, **chosen, **({"critic": {"lr": rate}} if updates > 1 else {})},
            "trainer": {
                "output": str(output),
                "seed": seed,
                "validate_every": EVERY * updates,
                "save_every": None,
            },
        }
        found = Trial(algorithm=algorithm, rate=rate, seed=seed, curve=[], reached=None)
        for batches in range(AT_ONCE, self._options.batches + AT_ONCE, AT_ONCE):
            with suppress(PolicyError):  # no group has a spread any more: everything is solved
                train(load_config(GRPOSettings, values=values, overrides=[f"trainer.max_steps={batches * updates}"]))
            lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
            found = _trial(algorithm, rate, seed, lines, updates=updates, target=self._options.target)
            if found.reached is not None:
                break
        return found


def _trial(algorithm: str, rate: float, seed: int, lines: list[dict[str, Any]], *, updates: int, target: float) -> Trial:
    curve, reached, tokens, seconds = [], None, 0.0, 0.0
    for line in lines:
        tokens, seconds = tokens + line.get("num_sampled_tokens", 0), seconds + line.get("step_s", 0.0)
        if REWARD in line:
            batches = line["step"] // updates
            curve.append((batches, line[REWARD]))
            if reached is None and line[REWARD] >= target:
                reached = Reached(batches=batches, updates=line["step"], tokens=tokens, seconds=seconds)
    return Trial(algorithm=algorithm, rate=rate, seed=seed, curve=curve, reached=reached)


def tuned(laboratory: Laboratory) -> dict[str, float]:
    """The learning rate of each algorithm whose worst training took the fewest tokens, after a table of all that were tried.

    Raises SystemExit when an algorithm reaches the target at no rate with every seed, and when nothing has to be learnt for it.
    """
    print(f"\nTuning, seeds {', '.join(map(str, TUNING_SEEDS))}: batches to the target\n")
    table("algorithm", *(f"lr {rate:g}" for rate in RATES))
    best: dict[str, float] = {}
    for algorithm in ALGORITHMS:
        trials = {rate: [laboratory.trial(algorithm, rate, seed) for seed in TUNING_SEEDS] for rate in RATES}
        row(algorithm, *(", ".join(map(_told, found)) for found in trials.values()))
        worst = {rate: max(one.reached.tokens if one.reached else math.inf for one in found) for rate, found in trials.items()}
        tokens, best[algorithm] = min((tokens, rate) for rate, tokens in worst.items())
        if tokens == math.inf:
            raise SystemExit(f"{algorithm} does not reach the target at any rate; take a lower --target, or more --batches")
        if tokens == 0:
            raise SystemExit("the untrained model reaches the target; take a higher --target")
    return best


def _told(one: Trial) -> str:
    return str(one.reached.batches) if one.reached else f"never ({one.curve[-1][1]:.2f})"


def measured(laboratory: Laboratory, rates: dict[str, float], seeds: list[int]) -> list[Trial]:
    """A table of what each algorithm took with each seed, and the ratio of PPO to GRPO."""
    print("\nMeasured\n")
    table("algorithm", "lr", "seed", "batches", "updates", "tokens", "seconds")
    trials = [laboratory.trial(algorithm, rate, seed) for seed in seeds for algorithm, rate in rates.items()]
    for one in sorted(trials, key=lambda one: list(ALGORITHMS).index(one.algorithm)):
        took = one.reached
        told = ("never", "", "", "") if took is None else (took.batches, took.updates, f"{took.tokens:.0f}", f"{took.seconds:.1f}")
        row(one.algorithm, f"{one.rate:g}", one.seed, *told)
    print()
    table("medians over seeds", "batches", "updates", "tokens", "seconds")
    for algorithm in ALGORITHMS:
        found = [one.reached for one in trials if one.algorithm == algorithm and one.reached is not None]
        if len(found) == len(seeds):
            row(algorithm, *(f"{_median(found, name):.4g}" for name in ("batches", "updates", "tokens", "seconds")))
    ratios = [f"{name} {_ratio(trials, name):.2f}" for name in ("tokens", "seconds") if _ratio(trials, name)]
    print(f"\nPPO / GRPO, of these medians: {', '.join(ratios) or 'none, since one of them never reached it'}")
    return trials


def _median(found: list[Reached], name: str) -> float:
    return median(getattr(one, name) for one in found)


def _ratio(trials: list[Trial], name: str) -> float | None:
    """None where a training never reached the target."""
    ppo, grpo = ([one.reached for one in trials if one.algorithm == algorithm] for algorithm in ("PPO", "GRPO"))
    found = ([one for one in reached if one is not None] for reached in (ppo, grpo))
    return None if None in (*ppo, *grpo) else _median(next(found), name) / _median(next(found), name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.algorithms", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", type=float, default=0.8, help="held-out reward")
    parser.add_argument("--batches", type=int, default=400, help="of each training, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--curves", type=Path, help="JSONL file of the measured curves")
    parser.add_argument("--svg", type=Path, help="picture of them; needs matplotlib")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory, ServerProcess(NAME) as server:
        laboratory = Laboratory(Path(directory), server.url, options)
        trials = measured(laboratory, tuned(laboratory), options.seeds)
    if options.curves is not None:
        write_jsonl(options.curves, ({"algorithm": one.algorithm, "seed": one.seed, "curve": one.curve} for one in trials))
    if options.svg is not None:
        curves = {f"{one.algorithm} {one.seed}": one.curve for one in trials}
        draw_lines(options.svg, curves, x_label="batches of 64 rollouts", y_label="held-out reward")


if __name__ == "__main__":
    main()
