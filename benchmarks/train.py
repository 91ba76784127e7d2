"""How fast training is, and what memory it takes, beside TRL and beside a bare loop.

    python -m benchmarks.train [sft] [dpo] [--dtype float32|bfloat16] [--turns 3]
    python -m benchmarks.train --gpu [sft] [dpo]

Each side trains the same token ids in a process of its own, in turns; ratios within a turn count. On a CPU the model is
SmolLM2-135M with rows of up to 512 tokens; with `--gpu` random weights in the shapes of Qwen3-0.6B and 1.7B, packed to 8k tokens.
Prints Markdown tables and the settings of every side.
"""

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.parts import row, spread, table
from benchmarks.processes import printed_by
from benchmarks.train_sides import Figures, Job, Side, num_tokens, num_trained
from benchmarks.training_options import chosen, present_sides, training_parser

KINDS = ("sft", "dpo")
ON_CPU = {"dtype": "float32", "batch_size": 8, "longest": 512, "microbatch_tokens": 512}
ON_GPU = {"dtype": "bfloat16", "batch_size": 32, "longest": 2048, "microbatch_tokens": 8192}
"""What a run takes unless told otherwise."""
SIDES: tuple[Side, ...] = ("ours", "bare", "trl", "trl_defaults")


def sft_rows(count: int, *, longest: int, seed: int, vocabulary: int) -> list[dict[str, Any]]:
    """Rows of random tokens, an eighth of `longest` to `longest` of them; a third to two thirds of each is its prompt."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.randint(longest // 8, longest)
        ids = draw.choices(range(2, vocabulary), k=length)
        rows.append({"ids": ids, "num_prompt": round(length * draw.uniform(1 / 3, 2 / 3))})
    return rows


def dpo_rows(count: int, *, longest: int, seed: int, vocabulary: int) -> list[dict[str, Any]]:
    """Pairs of random tokens: a prompt of up to half of `longest`, answers of an eighth to half of it."""
    draw = random.Random(seed)

    def part(least: int) -> list[int]:
        return draw.choices(range(2, vocabulary), k=draw.randint(least, longest // 2))

    return [{"prompt": part(longest // 4), "chosen": part(longest // 8), "rejected": part(longest // 8)} for _ in range(count)]


def measure(job: Job, directory: Path) -> Figures:
    """What a side took, in a process of its own."""
    file = directory / "job.json"
    file.write_text(json.dumps(asdict(job)))
    return Figures(**json.loads(printed_by([sys.executable, "-m", "benchmarks.train_sides", str(file)])))


def flops_per_token(model: str, rows: list[dict[str, Any]]) -> float:
    """FLOPs of a token of these rows of supervised fine-tuning, forward and backward, by PaLM's formula."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gym_bridge.policy.flops import model_flops

    with torch.device("meta"):
        costs = model_flops(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)))
    total = sum(costs.of_microbatch(torch.arange(num_tokens(one)), num_trained=num_trained(one)) for one in rows)
    return total / sum(map(num_tokens, rows))


def compare(kind: str, model: str, options: argparse.Namespace, directory: Path, *, name: str) -> None:
    """All sides in turns, as one table."""
    make = sft_rows if kind == "sft" else dpo_rows
    vocabulary = json.loads(Path(model, "config.json").read_text())["vocab_size"]
    rows = make(options.batch_size * (options.steps + 1), longest=options.longest, seed=0, vocabulary=vocabulary)
    found: dict[Side, list[Figures]] = {side: [] for side in present_sides(options)}
    for _ in range(options.turns):
        for side in found:
            job = Job(
                side=side,
                kind=kind,  # pyright: ignore[reportArgumentType] - argparse has checked it
                model=model,
                rows=rows,
                batch_size=options.batch_size,
                dtype=options.dtype,
                device="cuda" if options.gpu else "cpu",
                microbatch_tokens=options.microbatch_tokens,
                output=str(directory / "trl"),
            )
            found[side].append(measure(job, directory))
    print(f"\n{name}, {kind}, {options.dtype}, {options.batch_size} rows a step, {options.steps} timed steps")
    print("settings:", {side: turns[0].settings for side, turns in found.items()}, "\n")
    peak = _peak(options) if kind == "sft" else None
    names = ("side", "trained tokens/s", "all tokens/s", "peak MiB", "ours / it, tokens/s", "ours / it, peak", "loss, first step")
    table(*names, *(["MFU"] if peak else []))
    flops = flops_per_token(model, rows) if peak else 0.0
    for side, turns in found.items():
        pairs = list(zip(found["ours"], turns, strict=True))
        row(
            side,
            spread(one.rate for one in turns),
            spread(one.packed_tokens / one.seconds for one in turns),
            f"{median(one.peak_mib for one in turns):.0f}",
            f"{median(ours.rate / one.rate for ours, one in pairs):.2f}",
            f"{median(ours.peak_mib / one.peak_mib for ours, one in pairs):.2f}",
            f"{turns[0].losses[0]:.4f}" if turns[0].losses else "-",
            *([spread(flops * one.packed_tokens / (one.seconds * peak) for one in turns)] if peak else []),
        )


def main(argv: list[str] | None = None) -> None:
    """Run the kinds that are named."""
    parser = training_parser("benchmarks.train", __doc__, sides=SIDES, on_gpu="random weights of Qwen3 shapes")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="sft, dpo; both without")
    parser.add_argument("--model", default="smollm2-135m", help="on a CPU: what trains")
    parser.add_argument("--batch-size", type=int, help="rows, or pairs, of a step")
    parser.add_argument("--longest", type=int, help="tokens of the longest row")
    parser.add_argument("--microbatch-tokens", type=int)
    options = chosen(parser, argv, named="kinds", known=KINDS, on_gpu=ON_GPU, on_cpu=ON_CPU)
    with tempfile.TemporaryDirectory() as directory:
        for name, model in _models(options, Path(directory)):
            for kind in options.kinds or KINDS:
                compare(kind, model, options, Path(directory), name=name)


def _models(options: argparse.Namespace, directory: Path) -> list[tuple[str, str]]:
    """Names and directories of what trains."""
    if options.gpu:
        from benchmarks.train_shapes import SHAPES, random_model, shape

        return [(name, str(random_model(shape(name), directory / name))) for name in SHAPES]
    from gym_bridge.api.models import model_directory

    return [(options.model, str(model_directory(options.model)))]


def _peak(options: argparse.Namespace) -> float | None:
    """Peak FLOP/s of the device in the dtype of the run; None where it is not known, as of a CPU."""
    if not options.gpu or options.dtype != "bfloat16":
        return None
    import torch

    from gym_bridge.policy.flops import peak_flops

    return peak_flops(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
