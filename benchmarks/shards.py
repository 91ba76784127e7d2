"""What FSDP2 costs where there is nothing to spread: a step over one rank beside the same step of one process.

    python -m benchmarks.shards [--gpu] [--turns 5] [--tokens 512]

Both policies are open at once, over SmolLM2-135M in float32 (with --gpu: a model of random weights in the shape of Qwen3-0.6B in
bfloat16, on the first CUDA device), and take the same steps in turns.
"""

import argparse
import os
import socket
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.parts import row, table
from benchmarks.train_shapes import random_model, shape
from gym_bridge.algorithms.losses import negative_log_likelihood
from gym_bridge.api.models import model_directory
from gym_bridge.policy.parallel import Sharded
from gym_bridge.policy.ranks import joined
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import PolicySettings
from gym_bridge.schemas.tokens import TrainingSequence


def as_only_rank() -> None:
    """What torchrun would tell the only process of a training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **place}


def step_s(policy: TorchPolicy, sequences: list[TrainingSequence]) -> float:
    """Seconds of one update over two microbatches."""
    started = time.perf_counter()
    policy.step(
        [sequences[:1], sequences[1:]],
        lambda logprobs, columns: Loss(negative_log_likelihood(logprobs, num_tokens=columns.num_tokens)),
    )
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main(argv: list[str] | None = None) -> None:
    """Print both medians and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="on the first CUDA device")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512, help="of each of the two sequences of a step")
    parser.add_argument("--model", help="another one than SmolLM2-135M")
    options = parser.parse_args(argv)
    as_only_rank()
    ranks = joined()
    assert ranks is not None, "the environment says so"
    with tempfile.TemporaryDirectory() as directory:
        if options.gpu:
            model, place = random_model(shape("Qwen3-0.6B"), Path(directory)), {"device": "cuda", "compute_dtype": "bfloat16"}
        else:
            model, place = model_directory(options.model or "smollm2-135m"), {"compute_dtype": "float32"}
        settings = PolicySettings(model=str(model), activation_checkpointing="selective", **place)
        policies = {
            "one process": TorchPolicy(model, settings),
            "one rank": TorchPolicy(model, settings, placement=Sharded(ranks, settings)),
        }
    draw = np.random.default_rng(0)
    sequences = [
        TrainingSequence(
            token_ids=draw.integers(5, 300, size=options.tokens).astype(np.int32), train_mask=np.arange(options.tokens) > 3
        )
        for _ in range(2)
    ]
    found: dict[str, list[float]] = {name: [] for name in policies}
    for turn in range(options.turns + 1):
        for name, policy in policies.items():
            seconds = step_s(policy, sequences)
            if turn:  # the first one warms up
                found[name].append(seconds)
    print(f"torch {torch.__version__}, {options.turns} turns, 2 x {options.tokens} tokens a step\n")
    table("", "seconds a step", "smallest", "largest")
    for name, seconds in found.items():
        row(name, f"{median(seconds):.3f}", f"{min(seconds):.3f}", f"{max(seconds):.3f}")
    ratios = [shards / whole for whole, shards in zip(found["one process"], found["one rank"], strict=True)]
    print(f"\none rank / one process: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
