"""Trainings on a local Ray, and the processes of one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.api.grpo_stage import LETTERS

PATIENCE_S = 200.0


def grpo(model: Path, run: Path, *overrides: str) -> list[str]:
    """`train grpo` with two processes that train and two that collect."""
    own = [f"policy.model={model}", "policy.lr=1e-3", "policy.compute_dtype=float32", f"env.server={LETTERS}:Letters"]
    sizes = ["sampler.max_tokens=6", "algorithm.tasks_per_step=2", "algorithm.group_size=4", "data.num_tasks=12"]
    learns = ["algorithm.baseline=none", "algorithm.scale=none", "trainer.save_every=1"]
    cluster = ["cluster.kind=ray", "cluster.address=local", "cluster.policy.count=2", "cluster.collectors.count=2"]
    return ["train", "grpo", *own, *sizes, *learns, *cluster, f"trainer.output={run}", *overrides]


class Training:
    """The command, while it runs."""

    def __init__(self, argv: list[str], *, inside: Callable[..., list[str]] = lambda *command: [*command], **options):
        """`inside`: what starts a command where the training is to run."""
        command = inside(sys.executable, "-m", "gym_bridge", *argv)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    def ended(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def wait_for(self, found: Callable[[], bool]) -> None:
        """Until it is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not found():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.05)


def stand_in(directory: Path, name: str, script: str) -> None:
    """A command of this name, in place of one that this machine lacks."""
    path = directory / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def processes_with(*words: str, variable: str = "") -> list[int]:
    """Ids of the processes whose command line has these words, and whose environment this variable; not those that keep others."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            environment = (directory / "environ").read_bytes().decode(errors="replace").split("\0") if variable else [variable]
        except OSError:
            continue
        if all(word in command for word in words) and "cluster.kept" not in command and variable in environment:
            found.append(int(directory.name))
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def steps(run: Path) -> list[int]:
    """Those whose metrics are written."""
    path = run / "metrics.jsonl"
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []
    return [json.loads(line)["step"] for line in whole]


def keys(run: Path) -> Counter:
    """How often each rollout is in the log."""
    rows = map(json.loads, (run / "rollouts.jsonl").read_text().splitlines())
    return Counter((one["_ng_task_index"], one["_ng_rollout_index"]) for one in rows)
