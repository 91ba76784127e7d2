"""Reinforcement learning that is killed over and over, in children of a process that has loaded torch.

    python killed_grpo.py MODEL RUN SEED NUM_KILLS SERVER OVERRIDE...

Prints how many kills came while the training ran.
"""

import sys
from functools import partial
from pathlib import Path

import gym_bridge.trainers.grpo  # noqa: F401  # loaded once, not in each child
from tests.api.grpo_stage import run
from tests.trainers.killed_run import killed_and_finished


def go(model: Path, path: Path, overrides: list[str]) -> None:
    """Train in `path` from its last checkpoint on, as a command would."""
    import torch

    torch.set_num_threads(1)
    run(model, path, *overrides)


if __name__ == "__main__":
    model, path = Path(sys.argv[1]), Path(sys.argv[2])
    killed_and_finished(partial(go, model, path, sys.argv[5:]), path, seed=int(sys.argv[3]), num_kills=int(sys.argv[4]))
