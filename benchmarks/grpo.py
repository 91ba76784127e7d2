"""How fast online training is, and what memory it takes.

    python -m benchmarks.grpo step [--dtype float32|bfloat16] [--turns 3]
    python -m benchmarks.grpo prefix
    python -m benchmarks.grpo pipeline
    python -m benchmarks.grpo --gpu [step] [prefix] [pipeline]

step: ours against TRL's GRPOTrainer, on the same questions with the same reward: 2 prompts of 8 completions of 25 tokens. Ours asks
a resource server over HTTP, TRL a function. prefix: the update on a group of 8 completions of 64 tokens, with its prompt of 1,024
tokens computed once and for each of them; their gradients must be equal. pipeline: steps that follow their rollouts and steps that
overlap with the next ones, with a sampler that waits as long as an update takes.

Each side runs in a process of its own, in turns; ratios within a turn count. On a CPU the model is SmolLM2-135M; with `--gpu`
random weights in the shape of Qwen3-0.6B. Prints Markdown tables and the settings of every side.
"""

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.grpo_sides import Figures, Job, Side
from benchmarks.parts import row, table
from benchmarks.processes import printed_by
from benchmarks.training_options import chosen, present_sides, training_parser
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

SIDES: tuple[Side, ...] = ("ours", "trl", "trl_defaults")
CHECKPOINTING = {"none": False, "selective": "selective", "full": True}
ON_CPU = {"dtype": "float32", "model": "smollm2-135m", "checkpointing": "selective"}
ON_GPU = {"dtype": "bfloat16", "model": "Qwen3-0.6B", "checkpointing": "none"}
"""What a run takes unless told otherwise."""
WAIT_S = "GYM_BRIDGE_BENCHMARK_WAIT_S"
"""Environment variable: how long a completion of `WaitingSampler` takes."""
EQUAL = {"float32": 1e-3, "bfloat16": 5e-2}
"""By how much gradients may differ, as a part of the largest one of their parameter."""


class WaitingSampler:
    """`sampler.kind=benchmarks.grpo:WaitingSampler`: each completion takes as long, without computing, and is random."""

    def __init__(self, policy: Any, settings: Any, **options: Any):
        self.version = policy.version
        self._vocabulary = policy.module.config.vocab_size
        self._wait_s = float(os.environ[WAIT_S])

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """A completion that only its key decides."""
        version = self.version
        await asyncio.sleep(self._wait_s)
        draw = random.Random(repr(tuple(key)))
        ids = tuple(draw.choices(range(self._vocabulary // 2, self._vocabulary), k=params.max_tokens))
        logprobs = (-math.log(self._vocabulary),) * len(ids)
        return Completion(ids=ids, logprobs=logprobs, finish_reason="length", policy_version=version)

    def push(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """New completions carry `version`."""
        self.version = version

    def ensure(self, version: int) -> None:
        """Nothing: no weights are held."""

    def expect(self, num_in_flight: int) -> None:
        """Nothing: no batch waits for anybody."""

    def close(self) -> None:
        """Nothing to release."""


def step(options: argparse.Namespace, model: str, directory: Path) -> None:
    """Ours beside TRL, in turns, as one table."""
    found: dict[Side, list[Figures]] = {side: [] for side in present_sides(options)}
    for _ in range(options.turns):
        for side in found:
            found[side].append(measure(_job(options, model, directory, side), directory))
    print(f"\nstep, {options.dtype}, {options.steps} timed steps of 2 prompts x 8 completions of {options.max_tokens} tokens")
    print("settings:", {side: turns[0].settings for side, turns in found.items()}, "\n")
    table("side", "s / step", "peak MiB", "ours / it, time", "ours / it, peak", "tokens a completion", "reward")
    for side, turns in found.items():
        pairs = list(zip(found["ours"], turns, strict=True))
        row(
            side,
            spread(median(one.step_s) for one in turns),
            f"{median(one.peak_mib for one in turns):.0f}",
            spread(median(ours.step_s) / median(one.step_s) for ours, one in pairs),
            f"{median(ours.peak_mib / one.peak_mib for ours, one in pairs):.2f}",
            f"{median(one.tokens for one in turns):.1f}",
            f"{median(one.reward for one in turns):.3f}",
        )


def prefix(options: argparse.Namespace, model: str, directory: Path) -> None:
    """The update with and without sharing, as one table. Raises SystemExit when their gradients differ."""
    table("prompt", "completions", "shared s", "apart s", "shared / apart", "gradients differ by", "peak MiB")
    for _ in range(options.turns):
        job = _job(options, model, directory, "prefix", max_tokens=options.prefix_completion, prompt_tokens=options.prefix_prompt)
        found = _printed(job, directory)
        shared, apart = (found["seconds"][name] for name in ("shared", "apart"))
        row(
            job.prompt_tokens,
            f"{job.group_size} x {job.max_tokens}",
            spread(shared),
            spread(apart),
            spread(one / other for one, other in zip(shared, apart, strict=True)),
            f"{found['difference']:.1e}",
            f"{found['peak_mib']:.0f}",
        )
        if not found["difference"] <= EQUAL[options.dtype]:
            raise SystemExit(f"the gradients differ by {found['difference']}; {EQUAL[options.dtype]} is allowed")


def pipeline(options: argparse.Namespace, model: str, directory: Path) -> None:
    """Synchronous steps beside asynchronous ones, as one table."""
    table("update s", "synchronous s / step", "asynchronous s / step", "asynchronous / synchronous")
    for _ in range(options.turns):
        update_s = median(measure(_job(options, model, directory, "ours", wait_s=0.0), directory).train_s)
        sides: tuple[Side, ...] = ("ours", "asynchronous")
        together, overlapping = (measure(_job(options, model, directory, side, wait_s=update_s), directory) for side in sides)
        times = [sum(one.step_s) / len(one.step_s) for one in (together, overlapping)]
        row(f"{update_s:.2f}", *(f"{one:.2f}" for one in times), f"{times[1] / times[0]:.2f}")


def measure(job: Job, directory: Path) -> Figures:
    """What a side took, in a process of its own."""
    return Figures(**_printed(job, directory))


def _printed(job: Job, directory: Path) -> dict[str, Any]:
    file = directory / "job.json"
    file.write_text(json.dumps(asdict(job)))
    os.environ[WAIT_S] = str(job.wait_s or 0.0)
    try:
        return json.loads(printed_by([sys.executable, "-m", "benchmarks.grpo_sides", str(file)]))
    finally:
        shutil.rmtree(job.output, ignore_errors=True)  # a checkpoint has ten bytes a parameter


def _job(options: argparse.Namespace, model: str, directory: Path, side: Side, **values: Any) -> Job:
    return Job(
        **{
            "side": side,
            "model": model,
            "dtype": options.dtype,
            "device": "cuda" if options.gpu else "cpu",
            "steps": options.steps,
            "max_tokens": options.max_tokens,
            "checkpointing": CHECKPOINTING[options.checkpointing],
            "output": str(directory / "output"),
            **values,
        }
    )


def spread(values: Iterable[float]) -> str:
    """Median (least to most)."""
    found = sorted(values)
    return f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


PARTS: dict[str, Callable[[argparse.Namespace, str, Path], None]] = {"step": step, "prefix": prefix, "pipeline": pipeline}


def main(argv: list[str] | None = None) -> None:
    """Run the parts that are named."""
    parser = training_parser("benchmarks.grpo", __doc__, sides=SIDES, on_gpu="random weights of a Qwen3 shape")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS) + "; all without")
    parser.add_argument("--model", help="on a CPU: what trains; with --gpu: the shape")
    parser.add_argument("--checkpointing", choices=CHECKPOINTING, help="of ours, in step and pipeline; as shipped without")
    parser.add_argument("--max-tokens", type=int, default=25, help="tokens of a completion, in step and pipeline")
    parser.add_argument("--prefix-prompt", type=int, default=1024, help="tokens of the prompt in prefix")
    parser.add_argument("--prefix-completion", type=int, default=64, help="tokens of a completion in prefix")
    options = chosen(parser, argv, named="parts", known=PARTS, on_gpu=ON_GPU, on_cpu=ON_CPU)
    with tempfile.TemporaryDirectory() as directory:
        model = _model(options, Path(directory))
        for part in options.parts or PARTS:
            PARTS[part](options, model, Path(directory))


def _model(options: argparse.Namespace, directory: Path) -> str:
    """The directory of what trains."""
    if options.gpu:
        from benchmarks.grpo_models import chat_model
        from benchmarks.train_shapes import shape

        return str(chat_model(shape(options.model), directory / options.model))
    from gym_bridge.api.models import model_directory

    return str(model_directory(options.model))


if __name__ == "__main__":
    main()
