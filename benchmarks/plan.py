"""What `gym-bridge plan` says of a training beside what the training then needed.

    python -m benchmarks.plan [--only NAME ...] [--tokens 1024]

Each case is planned, and then the policy takes three steps of two microbatches for each share of the processes, which a sequence
each fills, on SmolLM2-135M. Peak: bytes of tensors, counted in the fullest process while the last step runs, and what it then held
resident at most. Time is that of the second step, by the plan's constants.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from benchmarks.parts import row, table

CASES: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "checkpointing": (1, ["policy.activation_checkpointing=true"]),
    "selective": (1, ["policy.activation_checkpointing=selective"]),
    "bfloat16": (1, ["policy.compute_dtype=bfloat16"]),
    "LoRA": (1, ["policy.lora.rank=16"]),
    "plain AdamW": (1, ["policy.optimizer=adamw"]),
    "FSDP2, 2 processes": (2, []),
    "FSDP2, 2, checkpointing": (2, ["policy.activation_checkpointing=true"]),
    "TP and SP, 3 processes": (3, ["policy.tensor_parallel_size=3", "policy.sequence_parallel=true"]),
}


def step_alone(words: list[str]) -> None:
    """In a process of a case: take the steps, and print what they needed."""
    import numpy as np

    from gym_bridge.algorithms.losses import negative_log_likelihood
    from gym_bridge.api.models import model_directory
    from gym_bridge.config import load_config
    from gym_bridge.policy.live_bytes import LiveBytes
    from gym_bridge.policy.memory import peak_memory_gib
    from gym_bridge.policy.parallel import Sharded
    from gym_bridge.policy.placement import Whole
    from gym_bridge.policy.ranks import joined
    from gym_bridge.policy.torch_policy import TorchPolicy
    from gym_bridge.schemas.seams import Loss
    from gym_bridge.schemas.settings import SFTSettings
    from gym_bridge.schemas.tokens import TrainingSequence

    settings, ranks = load_config(SFTSettings, files=[], overrides=words).policy, joined()
    placement = Whole(settings) if ranks is None else Sharded(ranks, settings)
    policy = TorchPolicy(model_directory(settings.model), settings, placement=placement)
    draw, size = np.random.default_rng(0), settings.microbatch_tokens
    ids = [draw.integers(5, 300, size=size).astype(np.int32) for _ in range(2 * placement.num_shares)]
    batches = [[TrainingSequence(token_ids=one, train_mask=np.arange(size) > 0)] for one in ids]

    def step() -> None:
        policy.step(batches, lambda found, told: Loss(negative_log_likelihood(found, num_tokens=told.num_tokens)))

    step()
    started = time.perf_counter()
    step()
    seconds = time.perf_counter() - started
    masters = policy.masters
    with LiveBytes([*policy.module.parameters(), *masters.masters.values(), *masters.gradients, *masters.moments]) as live:
        step()
    told = [live.most / 2**30, peak_memory_gib(placement.device), seconds]
    found = [told] if ranks is None else ranks.gathered(told)
    if ranks is None or ranks.leads:
        print("FOUND", json.dumps([max(one) for one in zip(*found, strict=True)]), flush=True)
    if ranks is not None:
        ranks.gathered(None)
        os._exit(0)


def run(words: list[str]) -> str:
    """What a command prints; its own errors where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-3000:]}")
    return done.stdout


def case(count: int, overrides: list[str], tokens: int) -> tuple[dict, list[float]]:
    """The plan, and tensors and memory in GiB and the seconds of a step."""
    settings = ["data.train=none.jsonl", "policy.compute_dtype=float32", f"policy.microbatch_tokens={tokens}", *overrides]
    several = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
    said = run([sys.executable, *several, "-m", "benchmarks.plan", "--alone", *settings])
    (line,) = [line for line in said.splitlines() if line.startswith("FOUND ")]
    shares = 1 if "policy.tensor_parallel_size=3" in overrides else count
    ours = ["--num-processes", str(count), "--tokens-per-step", str(2 * tokens * shares), "--json"]
    planned = run([sys.executable, "-m", "gym_bridge", "plan", "sft", *settings, *ours])
    return json.loads(planned), json.loads(line.removeprefix("FOUND "))


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--alone", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.alone is not None:
        step_alone(options.alone)
        return
    compared = ("tensors, GiB", "counted", "resident, GiB", "measured", "step, s", "measured")
    table("case", *(cell for at in (0, 2, 4) for cell in (f"planned {compared[at]}", compared[at + 1], "ratio")))
    for name in options.only:
        planned, (tensors, resident, seconds) = case(*CASES[name], options.tokens)
        pairs = ((planned["peak_gib"], tensors), (planned["resident_gib"], resident), (planned["step_s"], seconds))
        row(name, *(cell for plan, found in pairs for cell in (f"{plan:.3f}", f"{found:.3f}", f"{plan / found:.3f}")))


if __name__ == "__main__":
    main()
