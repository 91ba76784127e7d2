"""One side of the benchmark of online training, in a process of its own: takes a job in JSON, trains, prints what it took.

python -m benchmarks.grpo_sides JOB.json
"""

import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.processes import memory_mib

Side = Literal["ours", "asynchronous", "trl", "trl_defaults", "prefix"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a side trains."""

    side: Side
    model: str
    dtype: Literal["float32", "bfloat16"]
    device: str
    steps: int
    """Timed ones; one before them is not."""
    tasks_per_step: int = 2
    group_size: int = 8
    max_tokens: int = 25
    """Of a completion."""
    checkpointing: bool | Literal["selective"] = False
    """Of ours: policy.activation_checkpointing."""
    prompt_tokens: int = 0
    """prefix: of the prompt."""
    wait_s: float | None = None
    """ours and asynchronous: how long a sampler that only waits takes for a completion; None: the policy is sampled."""
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a side took, without its first step."""

    step_s: list[float]
    train_s: list[float]
    """Of `step_s`, what the update took; where that is known."""
    peak_mib: float
    tokens: float
    """Mean tokens of a completion."""
    reward: float
    """Mean reward."""
    settings: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Train the job in the file that is named, and print its figures."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    match job.side:
        case "ours" | "asynchronous":
            found = asdict(ours(job))
        case "prefix":
            found = prefix(job)
        case _:
            from benchmarks.grpo_trl import trained

            found = asdict(trained(job, defaults=job.side == "trl_defaults"))
    print(json.dumps(found))


def ours(job: Job) -> Figures:
    """`gym_bridge.train` on tasks of a resource server in a process of its own, whose memory counts."""
    from benchmarks.vowel_server import NAME
    from gym_bridge.api.training import train
    from gym_bridge.resource_servers.registry import make_tasks

    output = Path(job.output)
    output.mkdir(parents=True)
    tasks = output / "tasks.jsonl"
    rows = make_tasks(NAME, num_tasks=job.tasks_per_step * (job.steps + 1), seed=0, split="train")
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with _served(NAME) as (url, pid):
        settings = grpo_settings(job, tasks=tasks, url=url)
        train(settings)
        server_mib = memory_mib(pid, "VmHWM")
    lines = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_s" in line][1:]
    sampled = job.tasks_per_step * job.group_size
    return Figures(
        step_s=[one["step_s"] for one in steps],
        train_s=[one["train_s"] for one in steps],
        peak_mib=steps[-1]["peak_memory_gib"] * 1024 + (server_mib if job.device == "cpu" else 0.0),
        tokens=sum(one["num_trained_tokens"] for one in steps) / (len(steps) * sampled),
        reward=sum(one["reward"] for one in steps) / len(steps),
        settings=settings.policy.model_dump(include={"microbatch_tokens", "prefix_sharing", "activation_checkpointing"}),
    )


def grpo_settings(job: Job, *, tasks: Path, url: str) -> Any:
    """Of a run of the job; all that is not named here is a default."""
    from gym_bridge.config import validate
    from gym_bridge.schemas.settings import GRPOSettings

    values = {
        "policy": {
            "model": job.model,
            "device": job.device,
            "compute_dtype": job.dtype,
            "lr": 1e-6,
            "activation_checkpointing": job.checkpointing,
        },
        "data": {"train": tasks},
        "env": {"server": url},
        "sampler": {"kind": "local" if job.wait_s is None else "benchmarks.grpo:WaitingSampler", "max_tokens": job.max_tokens},
        "algorithm": {"tasks_per_step": job.tasks_per_step, "group_size": job.group_size},
        "overlap": {"max_staleness": 1 if job.side == "asynchronous" else 0},
        "trainer": {
            "output": Path(job.output) / "run",
            "max_steps": job.steps + 1,
            "alarms": {} if job.wait_s is None else {"max_gap": None},  # random completions are not the policy's
        },
    }
    return validate(GRPOSettings, values)


def _served(name: str) -> Any:
    """(URL, process id) of the server called `name`, for as long as the block lasts."""
    from contextlib import contextmanager

    from gym_bridge.resource_servers.process import ServerProcess

    @contextmanager
    def serving() -> Any:
        before = _children()
        with ServerProcess(name) as server:
            (pid,) = _children() - before
            yield server.url, pid

    return serving()


def _children() -> set[int]:
    return {int(one) for file in Path("/proc/self/task").glob("*/children") for one in file.read_text().split()}


def prefix(job: Job) -> dict[str, Any]:
    """Steps on one group, in turns with its prompt shared and not; and how far the gradients of the two are apart.

    The learning rate is so low that every step begins with the same weights.
    """
    import torch

    from gym_bridge.policy.torch_policy import TorchPolicy
    from gym_bridge.schemas.settings import PolicySettings
    from gym_bridge.trainers.policy_loss import policy_loss

    group_tokens = job.prompt_tokens + job.group_size * job.max_tokens
    options = {"device": job.device, "compute_dtype": job.dtype, "lr": 1e-15, "microbatch_tokens": group_tokens}
    shared = PolicySettings.model_validate(options)
    policy = TorchPolicy(Path(job.model), shared)
    apart = shared.model_copy(update={"prefix_sharing": False})
    sequences = _group(job, vocabulary=policy.module.config.vocab_size)
    loss_fn = policy_loss(grpo_settings(job, tasks=Path("unread"), url="http://unasked"))
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    seconds: dict[str, list[float]] = {"shared": [], "apart": []}
    losses: dict[str, float] = {}
    for number in range(job.steps + 1):
        for name, settings in (("shared", shared), ("apart", apart)):
            policy.settings = settings
            microbatches = _planned(sequences, settings)
            caught = _Gradients(policy) if number == 0 else None
            started = time.perf_counter()
            losses[name] = policy.step(microbatches, loss_fn).metrics["loss"]
            if caught is None:
                seconds[name].append(time.perf_counter() - started)
            else:
                gradients[name] = caught.taken()
    return {
        "seconds": seconds,
        "losses": losses,
        "difference": _difference(gradients["shared"], gradients["apart"]),
        "peak_mib": memory_mib("self", "VmHWM"),
    }


def _group(job: Job, *, vocabulary: int) -> list[Any]:
    """One prompt of random tokens and the completions of a group."""
    import numpy as np

    from gym_bridge.schemas.tokens import TrainingSequence

    draw = random.Random(0)
    prompt = draw.choices(range(2, vocabulary), k=job.prompt_tokens)
    mask = np.arange(job.prompt_tokens + job.max_tokens) >= job.prompt_tokens
    logprobs = np.where(mask, np.float32(-np.log(vocabulary)), np.float32("nan"))
    return [
        TrainingSequence(
            token_ids=np.array([*prompt, *draw.choices(range(2, vocabulary), k=job.max_tokens)], dtype=np.int32),
            train_mask=mask,
            rollout_logprobs=logprobs,
            advantage=1.0 if number % 2 else -1.0,
        )
        for number in range(job.group_size)
    ]


def _planned(sequences: list[Any], settings: Any) -> list[list[Any]]:
    from gym_bridge.policy.packing import plan_microbatches

    units = [(one,) for one in sequences]
    return plan_microbatches(units, max_tokens=settings.microbatch_tokens, share_prefixes=settings.prefix_sharing)


class _Gradients:
    """Copies of the gradients of the next step, added up over its microbatches."""

    def __init__(self, policy: Any):
        self._sums: dict[str, Any] = {}
        self._handles = [
            param.register_post_accumulate_grad_hook(self._catch(name, policy.masters.masters[name]))
            for name, param in policy.module.named_parameters()
        ]

    def _catch(self, name: str, master: Any) -> Any:
        def catch(param: Any) -> None:
            self._sums[name] = (master.grad if param.grad is None else param.grad).float().cpu().clone()

        return catch

    def taken(self) -> dict[str, Any]:
        """What was caught; nothing more is."""
        for one in self._handles:
            one.remove()
        return self._sums


def _difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest of all parameters, as a part of the largest gradient there."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max() / second[name].abs().max()) for name in first)


if __name__ == "__main__":
    main()
