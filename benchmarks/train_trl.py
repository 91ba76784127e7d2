"""TRL's side of the training benchmark. Imported in the side's own process, in an environment that has TRL."""

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from benchmarks.train_sides import IGNORED, Figures, Job, clock, figures, num_tokens


class Stopwatch(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self, device: str):
        self.device, self.ends, self.losses = device, list[float](), list[float]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(clock(self.device))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Note the loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


class TokenPairs(DPOTrainer):
    """DPO on pairs that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def trained(job: Job, *, defaults: bool) -> Figures:
    """Train the job's rows. Defaults: TRL's own but for the batch, the dtype and what a benchmark needs; otherwise its best."""
    shared = {
        "output_dir": job.output,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": job.device == "cpu",
        "bf16": job.dtype == "bfloat16",
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
    }
    stopwatch = Stopwatch(job.device)
    options = _default_options(job) if defaults else _best_options(job)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, attn_implementation="sdpa")
    make = _sft if job.kind == "sft" else _dpo
    trainer = make(job, model, {**shared, **options}, stopwatch)
    trainer.train()
    seconds = stopwatch.ends[-1] - stopwatch.ends[0]
    found = figures(job, seconds, stopwatch.losses, {**options, "attention": "sdpa", "steps": len(stopwatch.ends)})
    return _of_the_timed_steps(job, found, len(stopwatch.ends))


def _default_options(job: Job) -> dict[str, Any]:
    return {"per_device_train_batch_size": job.batch_size}


def _best_options(job: Job) -> dict[str, Any]:
    """Packed blocks as long as our microbatches, nothing computed twice; for DPO, which it cannot pack without flash attention, one
    pair at a time, so that the two sides alone are padded, and the reference's log-probs beforehand."""
    if job.kind == "dpo":
        return {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": job.batch_size,
            "gradient_checkpointing": False,
            "precompute_ref_log_probs": True,
        }
    blocks = max(1, round(sum(map(num_tokens, job.rows)) / len(job.rows) * job.batch_size / job.microbatch_tokens))
    return {
        "packing": True,
        "max_length": job.microbatch_tokens,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": blocks,
        "gradient_checkpointing": False,
    }


def _of_the_timed_steps(job: Job, found: Figures, steps: int) -> Figures:
    """`found` with the tokens of all but one of `steps` equal steps: packed blocks are not our batches."""
    from dataclasses import replace

    from benchmarks.train_sides import num_trained

    share = (steps - 1) / steps
    return replace(
        found,
        trained_tokens=round(share * sum(map(num_trained, job.rows))),
        packed_tokens=round(share * sum(map(num_tokens, job.rows))),
    )


def _sft(job: Job, model: Any, options: dict[str, Any], stopwatch: Stopwatch) -> SFTTrainer:
    rows = [
        {"input_ids": row["ids"], "labels": [IGNORED] * row["num_prompt"] + row["ids"][row["num_prompt"] :]} for row in job.rows
    ]
    return SFTTrainer(
        model=model,
        args=SFTConfig(**options),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(job),
        callbacks=[stopwatch],
    )


def _dpo(job: Job, model: Any, options: dict[str, Any], stopwatch: Stopwatch) -> DPOTrainer:
    rows = [{f"{name}_ids": row[name] for name in ("prompt", "chosen", "rejected")} for row in job.rows]
    return TokenPairs(
        model=model,
        args=DPOConfig(**options),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(job),
        callbacks=[stopwatch],
    )


def _tokenizer(job: Job) -> PreTrainedTokenizerFast:
    """The trainers want one, though every row is token ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
