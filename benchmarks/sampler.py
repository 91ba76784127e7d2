"""How fast the in-process sampler plays rollouts of several turns, beside `generate` of transformers.

    python -m benchmarks.sampler [--turns 3] [--tool-tokens 40] [--sides ours transformers]

SmolLM2-135M in float32 on a CPU: 8 groups of 8 rollouts under one system prompt, each with the task of its group and three replies
of 16 tokens, between which a tool says something. Token ids are random. transformers gets all rows of a turn at once, left-padded,
as trainers do that sample with it. Each side runs in a process of its own. Prints a Markdown table.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.parts import row, table
from benchmarks.processes import memory_mib, printed_by
from gym_bridge.api.models import model_directory
from gym_bridge.policy.loading import load_module
from gym_bridge.schemas.tokens import SampleKey, SamplingParams

SIDES = ("ours", "transformers")
GROUPS, GROUP_SIZE, TASK_TOKENS, REPLY_TOKENS = 8, 8, 65, 16
NO_STOP = 49_151
"""A token that nobody says."""

Turn = Callable[[list[tuple[int, ...]], int], Sequence[Sequence[int]]]
"""(prompts, number) -> the replies."""


def ours(module: PreTrainedModel) -> Turn:
    """Replies of the sampler, which goes on from its turn before."""
    from gym_bridge.policy.samplers.generation import Request, generate
    from gym_bridge.policy.samplers.token_tree import TokenTree

    tree, params = TokenTree(module), SamplingParams(max_tokens=REPLY_TOKENS, stop_token_ids=(NO_STOP,))

    def play(prompts: list[tuple[int, ...]], number: int) -> Sequence[Sequence[int]]:
        requests = [Request(one, params, SampleKey(0, place, 0, number)) for place, one in enumerate(prompts)]
        generate(tree, requests)
        return [one.ids for one in requests]

    return play


def transformers(module: PreTrainedModel) -> Turn:
    """Replies of `generate`."""

    def play(prompts: list[tuple[int, ...]], number: int) -> Sequence[Sequence[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(one)) + list(one) for one in prompts])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
        asked: dict[str, Any] = {
            "do_sample": True,
            "top_k": 0,
            "max_new_tokens": REPLY_TOKENS,
            "eos_token_id": NO_STOP,
            "pad_token_id": 0,
        }
        with torch.inference_mode():
            return module.generate(ids, attention_mask=mask, **asked)[:, width:].tolist()  # pyright: ignore[reportCallIssue]

    return play


def played(side: str, system_tokens: int, tool_tokens: int, turns: int) -> dict[str, Any]:
    """Seconds of each turn, and the peak of memory."""
    draw = random.Random(0)

    def words(count: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(10, 40_000), k=count))

    system = words(system_tokens)
    prompts = [one for _ in range(GROUPS) for one in [(*system, *words(TASK_TOKENS))] * GROUP_SIZE]
    module = load_module(model_directory("smollm2-135m"), device=torch.device("cpu"), dtype=torch.float32)
    play = {"ours": ours, "transformers": transformers}[side](module)
    seconds: list[float] = []
    for number in range(turns):
        started = time.perf_counter()
        replies = play(prompts, number)
        seconds.append(time.perf_counter() - started)
        prompts = [(*prompt, *reply, *words(tool_tokens)) for prompt, reply in zip(prompts, replies, strict=True)]
    return {"seconds": seconds, "peak_mib": memory_mib("self", "VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system-tokens", type=int, nargs="+", default=[0, 950])
    parser.add_argument("--tool-tokens", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(played(options.side, options.system_tokens[0], options.tool_tokens, options.turns)))
        return
    table("system prompt", "side", "s, turn by turn", "peak MiB")
    for system in options.system_tokens:
        for side in options.sides:
            sizes = ["--system-tokens", str(system), "--tool-tokens", str(options.tool_tokens), "--turns", str(options.turns)]
            found = json.loads(printed_by([sys.executable, "-m", "benchmarks.sampler", "--side", side, *sizes]))
            row(system, side, ", ".join(f"{one:.1f}" for one in found["seconds"]), f"{found['peak_mib']:.0f}")


if __name__ == "__main__":
    main()
