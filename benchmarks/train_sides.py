"""One side of the training benchmark, in a process of its own: takes a job in JSON, trains its rows, prints what it took.

    python -m benchmarks.train_sides JOB.json

Every side trains the same token ids in the same batches, and its first step is not timed. `bare` is a plain loop: one row at a time
through the model, so nothing is padded, the loss over its trained positions alone, and the same AdamW.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.processes import memory_mib

Side = Literal["ours", "bare", "trl", "trl_defaults"]
IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a side trains."""

    side: Side
    kind: Literal["sft", "dpo"]
    model: str
    rows: list[dict[str, Any]]
    """sft: `ids` and `num_prompt`; dpo: `prompt`, `chosen`, `rejected`, all token ids."""
    batch_size: int
    dtype: Literal["float32", "bfloat16"]
    device: str
    microbatch_tokens: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a side took, its first step left out."""

    trained_tokens: int
    packed_tokens: int
    seconds: float
    peak_mib: float
    losses: list[float]
    settings: dict[str, Any]

    @property
    def rate(self) -> float:
        """Trained tokens a second."""
        return self.trained_tokens / self.seconds


def batches(job: Job) -> Iterator[list[dict[str, Any]]]:
    """The rows of each step."""
    for first in range(0, len(job.rows), job.batch_size):
        yield job.rows[first : first + job.batch_size]


def num_trained(row: dict[str, Any]) -> int:
    """Trained tokens of a row."""
    return len(row["ids"]) - row["num_prompt"] if "ids" in row else len(row["chosen"]) + len(row["rejected"])


def num_tokens(row: dict[str, Any]) -> int:
    """All tokens of a row, the prompt of a pair counted on both sides."""
    return len(row["ids"]) if "ids" in row else num_trained(row) + 2 * len(row["prompt"])


def clock(device: str) -> float:
    """Seconds, once the device has done what was asked of it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(job: Job, step: Callable[[list[dict[str, Any]]], float], settings: dict[str, Any]) -> Figures:
    """Take a step for each batch, the first one untimed."""
    started, losses = 0.0, []
    for number, rows in enumerate(batches(job)):
        if number == 1:
            started = clock(job.device)
        losses.append(step(rows))
    return figures(job, clock(job.device) - started, losses, settings)


def figures(job: Job, seconds: float, losses: list[float], settings: dict[str, Any]) -> Figures:
    """Figures of all rows but the first batch's."""
    rows = job.rows[job.batch_size :]
    on_gpu = job.device.startswith("cuda")
    return Figures(
        trained_tokens=sum(map(num_trained, rows)),
        packed_tokens=sum(map(num_tokens, rows)),
        seconds=seconds,
        peak_mib=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else memory_mib("self", "VmHWM"),
        losses=losses,
        settings=settings,
    )


def ours(job: Job) -> Figures:
    """Our policy and losses, as the trainers use them."""
    from gym_bridge.policy.packing import plan_microbatches
    from gym_bridge.policy.torch_policy import TorchPolicy
    from gym_bridge.schemas.settings import DPOAlgorithm, PolicySettings, SFTAlgorithm
    from gym_bridge.trainers.dpo import preference_loss
    from gym_bridge.trainers.sft import sft_loss

    settings = PolicySettings(
        device=job.device,
        compute_dtype=job.dtype,
        lr=1e-6,
        max_grad_norm=1.0,
        microbatch_tokens=job.microbatch_tokens,
        activation_checkpointing="selective" if job.device == "cpu" else False,
    )
    policy = TorchPolicy(Path(job.model), settings)
    loss_fn = sft_loss(SFTAlgorithm()) if job.kind == "sft" else preference_loss(DPOAlgorithm())
    units = [_unit(row) for row in job.rows]
    if job.kind == "dpo":
        units = _referred(policy, units)
    steps = iter([units[first : first + job.batch_size] for first in range(0, len(units), job.batch_size)])

    def step(rows: list[dict[str, Any]]) -> float:
        microbatches = plan_microbatches(next(steps), max_tokens=job.microbatch_tokens)
        return policy.step(microbatches, loss_fn).metrics["loss"]

    told = settings.model_dump(include={"microbatch_tokens", "prefix_sharing", "activation_checkpointing"})
    return timed(job, step, told)


def _unit(row: dict[str, Any]) -> tuple[Any, ...]:
    if "ids" in row:
        return (_sequence(row["ids"], row["num_prompt"]),)
    return tuple(_sequence(row["prompt"] + row[side], len(row["prompt"])) for side in ("chosen", "rejected"))


def _sequence(ids: list[int], num_prompt: int) -> Any:
    from gym_bridge.schemas.tokens import TrainingSequence

    return TrainingSequence(token_ids=np.array(ids, dtype=np.int32), train_mask=np.arange(len(ids)) >= num_prompt)


def _referred(policy: Any, units: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    from dataclasses import replace

    logprobs = iter(policy.logprobs([one for unit in units for one in unit]))

    def referred(one: Any) -> Any:
        placed = np.full(len(one.token_ids), np.nan, dtype=np.float32)
        placed[one.train_mask] = next(logprobs).numpy()
        return replace(one, ref_logprobs=placed)

    return [tuple(referred(one) for one in unit) for unit in units]


def bare(job: Job) -> Figures:
    """A plain loop over a model in the compute dtype: forward and backward of one row, or of one side of a pair, at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype)).to(job.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def logprobs(ids: list[int], num_prompt: int) -> torch.Tensor:
        tokens = torch.tensor([ids], device=job.device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, num_prompt - 1 : -1].float()
        return -F.cross_entropy(logits, tokens[0, num_prompt:], reduction="none")

    def step(rows: list[dict[str, Any]]) -> float:
        total, count = 0.0, sum(map(num_trained, rows))
        for row in rows:
            if "ids" in row:
                loss = -logprobs(row["ids"], row["num_prompt"]).sum() / count
            else:
                sides = [logprobs(row["prompt"] + row[side], len(row["prompt"])).sum() for side in ("chosen", "rejected")]
                loss = -F.logsigmoid(0.1 * (sides[0] - sides[1] - row["reference_margin"])) / len(rows)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    if job.kind == "dpo":
        with torch.no_grad():
            for row in job.rows:
                sides = [logprobs(row["prompt"] + row[side], len(row["prompt"])).sum() for side in ("chosen", "rejected")]
                row["reference_margin"] = float(sides[0] - sides[1])
    return timed(job, step, {})


def trl(job: Job, *, defaults: bool = False) -> Figures:
    """TRL's trainer: at its best settings without kernels that have to be fetched, or at its defaults."""
    from benchmarks.train_trl import trained

    return trained(job, defaults=defaults)


def main() -> None:
    """Train the job in the file that is named, and print its figures."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    match job.side:
        case "ours":
            found = ours(job)
        case "bare":
            found = bare(job)
        case _:
            found = trl(job, defaults=job.side == "trl_defaults")
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
