"""TRL's side of the benchmark of online training. Imported in the side's own process, in an environment that has TRL."""

import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmarks.grpo_sides import Figures, Job
from benchmarks.processes import memory_mib
from benchmarks.vowel_server import questions, share_of_vowels


class Stopwatch(TrainerCallback):
    """Notes when each step ends, and what is logged of it."""

    def __init__(self, device: str):
        self.device, self.ends, self.logs = device, list[float](), list[dict[str, float]]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Note the numbers."""
        if logs and "reward" in logs:
            self.logs.append(logs)


def trained(job: Job, *, defaults: bool) -> Figures:
    """Train on the same questions with the same reward, called in this process. Defaults: TRL's own but for the batch and the
    dtype; otherwise nothing is computed twice to save memory."""
    batch = job.tasks_per_step * job.group_size
    options: dict[str, Any] = {} if defaults else {"gradient_checkpointing": False}
    asked = questions(job.tasks_per_step * (job.steps + 1), seed=0)
    stopwatch = Stopwatch(job.device)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),  # pyright: ignore[reportArgumentType]
        reward_funcs=_rewards,
        args=GRPOConfig(
            output_dir=job.output,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            per_device_train_batch_size=batch,
            num_generations=job.group_size,
            max_completion_length=job.max_tokens,
            max_steps=job.steps + 1,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=job.device == "cpu",
            bf16=job.dtype == "bfloat16",
            dataloader_pin_memory=False,
            shuffle_dataset=False,
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": one}]} for one in asked]),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        callbacks=[stopwatch],
    )
    trainer.train()
    logs = stopwatch.logs[1:]
    on_gpu = job.device.startswith("cuda")
    return Figures(
        step_s=[after - before for before, after in zip(stopwatch.ends, stopwatch.ends[1:], strict=False)],
        train_s=[],
        peak_mib=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else memory_mib("self", "VmHWM"),
        tokens=sum(one["completions/mean_length"] for one in logs) / len(logs),
        reward=sum(one["reward"] for one in logs) / len(logs),
        settings={**options, "per_device_train_batch_size": batch},
    )


def _rewards(completions: list[list[dict[str, str]]], **columns: Any) -> list[float | None]:
    return [share_of_vowels(one[0]["content"]) for one in completions]
