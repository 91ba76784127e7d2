"""What a training will need of memory and time, before anything starts."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gym_bridge.api.models import model_directory
from gym_bridge.api.training import read_data, total_steps
from gym_bridge.errors import ConfigError, missing_extra, nearest
from gym_bridge.schemas.launched import check_offload
from gym_bridge.schemas.plan import Plan, PlanSettings
from gym_bridge.schemas.settings import DPOSettings, GRPOSettings, RewardModelSettings, SFTSettings, TrainSettings

if TYPE_CHECKING:
    from gym_bridge.policy.rehearsal import Rehearsal

GIB = 2**30
TRAINS = {"float32": 0.7, "bfloat16": 0.3}
SAMPLES = {"float32": 0.2, "bfloat16": 0.05}
"""Shares of the FLOP/s of a matrix product that a training step and sampling in this process reach on a CPU; benchmarks/plan.py and
benchmarks/sampler.py measure them, RESULTS.md has the figures."""
HOLES = 0.8
"""What glibc's allocator holds on a CPU in pieces that are too small for the next tensors, for each byte that passes: beside
weights, gradients and moments. Measured there too: 0.4 to 3."""
STARTED = (
    "import gym_bridge.policy.parallel_policy as _, re; print(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])"
)
"""What a Python does to learn what a training's process holds before it has a model, in KiB."""


def plan(settings: TrainSettings, asked: PlanSettings) -> Plan:
    """What one process of a training with these settings will hold at its fullest, and how long the training will take.

    The step is rehearsed on tensors without values (`policy.rehearsal`); of the model only config.json is needed, and of the data,
    unless `tokens_per_step` is given, all. Raises ConfigError and PolicyError where training would.
    """
    try:
        from gym_bridge.policy.rehearsal import rehearse
    except ImportError:
        raise missing_extra("plan", "train") from None
    count = asked.num_processes or (settings.cluster.policy.count if settings.cluster.kind == "ray" else 1)
    check_offload(settings.policy, in_shards=True)
    if count % settings.policy.together:
        raise ConfigError(f"{settings.policy.together_told}: {count} processes are no multiple of it; set --num-processes")
    model = model_directory(settings.policy.model)
    head = "scalar" if isinstance(settings, RewardModelSettings) else "lm"
    found = rehearse(model, settings.policy, num_processes=count, head=head)
    memory = _memory(settings, found, count=count)
    amount = _Amount.of(settings, asked, model)
    speed = _Speed.of(settings, asked)
    passes = _passes_besides(settings)
    trained = speed.tokens_per_s(found.flops_per_token, settings, count=count)
    sampled = speed.sampled_tokens_per_s(found.flops_per_token)
    seconds = _step_s(amount, trained, sampled)
    return Plan(
        num_processes=count,
        memory_gib={name: size / GIB for name, size in memory.parts.items()},
        peak_gib=memory.peak / GIB,
        resident_gib=None if memory.resident is None else memory.resident / GIB,
        available_gib=_available(settings, asked, count=count),
        num_parameters=found.parameters,
        num_parameters_here=found.parameters_here,
        tokens_per_s=trained,
        sampled_tokens_per_s=sampled if amount.sampled else None,
        tokens_per_step=amount.tokens,
        num_steps=amount.steps,
        step_s=seconds,
        total_s=seconds * amount.steps if seconds is not None and amount.steps else None,
        notes=(*memory.notes, *amount.notes, *speed.notes, *([f"time: without {' and '.join(passes)}"] if passes else [])),
    )


@dataclass(slots=True)
class _Memory:
    """Bytes of one process."""

    parts: dict[str, int]
    peak: int
    resident: int | None = None
    notes: list[str] = field(default_factory=list)


def _memory(settings: TrainSettings, found: "Rehearsal", *, count: int) -> _Memory:
    memory = _Memory(
        parts={
            "weights": found.weights,
            "gradients": found.gradients,
            "optimizer": found.moments,
            "activations": found.activations,
            "logits chunk": found.logits,
        },
        peak=found.peak,
    )
    if settings.policy.cpu_offload:
        state = found.weights + found.gradients + found.moments
        memory.peak -= state
        memory.notes.append(
            f"memory: weights, gradients and optimizer lie in main memory, {state / GIB:.2f} GiB a process and model"
        )
    if isinstance(settings, GRPOSettings):
        _add_online(memory, settings, found, count=count)
    if settings.policy.device == "cpu":
        passing = memory.peak - found.weights - found.gradients - found.moments
        memory.resident = memory.peak + int(HOLES * passing) + _started_bytes()
    else:
        memory.notes.append("memory: what tensors hold; the driver and NCCL take about 1 GiB of a GPU besides")
    return memory


def _add_online(memory: _Memory, settings: GRPOSettings, found: "Rehearsal", *, count: int) -> None:
    """What online training holds beside a step."""
    parts, algorithm = memory.parts, settings.algorithm
    beside = 0
    on_device = 0 if settings.policy.cpu_offload else 1
    if algorithm.beta and settings.policy.lora is None:
        parts["reference"] = found.frozen
        beside += on_device * found.frozen
    if algorithm.estimator == "gae":
        parts["critic"] = found.weights + found.gradients + found.moments
        beside += on_device * parts["critic"]
    sampling = 0
    if settings.sampler.kind == "local" and not settings.data.is_stored:
        overlaps = settings.overlap.max_staleness > 0
        tokens = settings.sampler.max_batch * settings.sampler.max_tokens
        parts["KV cache"] = tokens * found.kv_bytes_per_token
        sampling = parts["KV cache"] + settings.sampler.max_batch * found.logits_bytes_per_token
        if overlaps or count > 1:
            parts["sampler's copy"] = found.whole
            beside += found.whole
        memory.notes.append("KV cache: of completions; prompts, which siblings share, come to it")
        if overlaps:
            beside += sampling
    state = found.weights + found.gradients + found.moments
    memory.peak = max(memory.peak, on_device * state + sampling) + beside


@dataclass(frozen=True, slots=True)
class _Amount:
    """How much there is to do."""

    tokens: int | None
    """Packed tokens of a step."""
    steps: int | None
    sampled: int = 0
    """Tokens of a step that are sampled in this process."""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: TrainSettings, asked: PlanSettings, model: Path) -> "_Amount":
        """As asked, else as the data tells."""
        if isinstance(settings, GRPOSettings):
            algorithm = settings.algorithm
            most = algorithm.tasks_per_step * algorithm.group_size * settings.sampler.max_tokens
            played = settings.sampler.kind == "local" and not settings.data.is_stored
            note = "tokens of a step: completions of full length, one turn each, without prompts"
            tokens = asked.tokens_per_step or most * algorithm.epochs_per_batch
            return cls(tokens, settings.trainer.max_steps, most if played else 0, () if asked.tokens_per_step else (note,))
        offline = cast(SFTSettings | DPOSettings | RewardModelSettings, settings)
        if asked.tokens_per_step:
            return cls(asked.tokens_per_step, settings.trainer.max_steps)
        data = read_data(offline, model)
        steps, units = total_steps(offline, data), data.train.units
        mean = sum(len(one.token_ids) for unit in units for one in unit) / len(units)
        return cls(round(mean * offline.algorithm.batch_size), steps)


@dataclass(frozen=True, slots=True)
class _Speed:
    """FLOP/s of one process, of which some share is reached."""

    trains: float | None
    samples: float | None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: TrainSettings, asked: PlanSettings) -> "_Speed":
        """On a CPU measured now; on a GPU by its maker's figure and the share that was asked for."""
        import torch

        from gym_bridge.policy.flops import matrix_product_flops, peak_flops
        from gym_bridge.policy.loading import resolve_dtype

        policy = settings.policy
        if policy.device == "cpu":
            if given := [f"--{name}" for name in ("gpu", "mfu") if getattr(asked, name) is not None]:
                raise ConfigError(f"{given[0]} is of a GPU, and policy.device=cpu; set policy.device=cuda, or leave it out")
            dtype = resolve_dtype(policy.compute_dtype, torch.device("cpu"))
            rate, name = matrix_product_flops(dtype), str(dtype).removeprefix("torch.")
            return cls(TRAINS[name] * rate, SAMPLES[name] * rate)
        name = asked.gpu or (torch.cuda.get_device_name() if torch.cuda.is_available() else None)
        peak = peak_flops(name) if name else None
        if asked.gpu and peak is None:
            from gym_bridge.policy.flops import PEAK_FLOPS

            raise ConfigError(
                f"--gpu {asked.gpu}: no peak FLOP/s is known of it{nearest(asked.gpu, [one for one, _ in PEAK_FLOPS])}"
            )
        if peak is None or asked.mfu is None:
            return cls(None, None, ("time: unknown; give --mfu, which metrics.jsonl of an earlier run tells, and --gpu",))
        unknown = isinstance(settings, GRPOSettings) and settings.sampler.kind == "local" and not settings.data.is_stored
        note = "time: unknown, for sampling in this process was not measured on a GPU; tokens/s are those of training"
        return cls(peak * asked.mfu, None, (note,) if unknown else ())

    def tokens_per_s(self, flops: float, settings: TrainSettings, *, count: int) -> float | None:
        """Packed tokens trained over all processes."""
        again = 4 / 3 if settings.policy.activation_checkpointing is True else 1.0
        processes = 1 if settings.policy.device == "cpu" and settings.cluster.kind != "ray" else count
        return None if self.trains is None else processes * self.trains / (flops * again)

    def sampled_tokens_per_s(self, flops: float) -> float | None:
        """Tokens sampled in this process: a third of a trained token's FLOPs each."""
        return None if self.samples is None else self.samples / (flops / 3)


def _passes_besides(settings: TrainSettings) -> list[str]:
    """What computes besides the policy's own step."""
    if isinstance(settings, DPOSettings):
        return ["the reference's pass, which is made once a row"]
    if not isinstance(settings, GRPOSettings):
        return []
    algorithm = settings.algorithm
    named = {
        "the reference's pass": algorithm.beta > 0,
        "the critic": algorithm.estimator == "gae",
        "the trainer's own old log-probs": algorithm.old_logprobs == "trainer",
    }
    return [name for name, asked in named.items() if asked]


def _step_s(amount: _Amount, trained: float | None, sampled: float | None) -> float | None:
    if trained is None or amount.tokens is None or (amount.sampled and sampled is None):
        return None
    return amount.tokens / trained + (amount.sampled / sampled if sampled else 0.0)


def _available(settings: TrainSettings, asked: PlanSettings, *, count: int) -> float | None:
    if asked.memory_gib is not None or settings.policy.device != "cpu":
        return asked.memory_gib
    import os

    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return here if settings.cluster.kind == "ray" else here / count


def _started_bytes() -> int:
    """What a process holds that has loaded all that trains."""
    done = subprocess.run([sys.executable, "-P", "-c", STARTED], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024
