"""Values of NeMo RL's settings as values of ours, where units, names or shapes differ."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gym_bridge.api.nemo_rl_online_values import ONLINE_CONVERSIONS
from gym_bridge.api.nemo_rl_source import REQUIRED, NoCounterpartError, NoEffectError, Source
from gym_bridge.schemas.nemo_rl_key import NemoRLKey, Verb
from gym_bridge.schemas.nemo_rl_keys import find_key

ROW_FILES: dict[Verb, tuple[str, ...]] = {
    "sft": ("ResponseDataset", "openai_format"),
    "dpo": ("PreferenceDataset", "BinaryPreferenceDataset"),
    "rm": ("PreferenceDataset", "BinaryPreferenceDataset"),
    "grpo": ("NemoGymDataset",),
}
"""NeMo RL's names of the datasets that are files of rows which our verb trains on."""
VALUE_MODEL = "value.*"
VALIDATES = "validation comes before the first step, every trainer.validate_every steps and after the last"
TORCH_BETAS, TORCH_WEIGHT_DECAY = [0.9, 0.999], 0.01  # of torch.optim.AdamW where the config does not say


def convert(key: NemoRLKey, dotted: str, value: Any, source: Source) -> dict[str, Any]:
    """Our dotted keys and values for the value of their key `dotted`; empty when it means nothing here.

    Raises NoCounterpartError for a value without a counterpart, NoEffectError for one that changes nothing.
    """
    conversion = CONVERSIONS.get((key.theirs, source.verb)) or CONVERSIONS.get(key.theirs)
    if conversion is not None and value != REQUIRED:
        try:
            return conversion(value, source)
        except (TypeError, ValueError, KeyError, AttributeError):
            raise NoCounterpartError("a value of an unexpected kind") from None
    if key.theirs == VALUE_MODEL:
        return _as_policy(dotted, value, source)
    if not key.ours:
        if key.loses_nothing(value):
            return {}
        raise NoCounterpartError(key.note)
    return {key.ours: value}


def _as_policy(dotted: str, value: Any, source: Source) -> dict[str, Any]:
    """Nothing for a setting of the value model that the policy has too, or that has no effect on either."""
    policy_key = f"policy{dotted.removeprefix('value')}"
    key = find_key(policy_key, source.verb)
    if value != source.get(policy_key) and not (key is not None and not key.ours and key.loses_nothing(value)):
        raise NoCounterpartError(f"the value model takes all but algorithm.critic.lr from policy, and {policy_key} is another")
    raise NoEffectError("as policy has it")


def _positive_or_null(ours: str) -> Callable[[Any, Source], dict[str, Any]]:
    def conversion(value: Any, source: Source) -> dict[str, Any]:
        return {ours: value * source.updates if value is not None and value > 0 else None}

    return conversion


def _one_of(ours: str, names: Mapping[Any, Any], otherwise: str) -> Callable[[Any, Source], dict[str, Any]]:
    def conversion(value: Any, source: Source) -> dict[str, Any]:
        if value not in names:
            raise NoCounterpartError(otherwise)
        return {ours: names[value]}

    return conversion


def _or_lost(ours: str, otherwise: str) -> Callable[[Any, Source], dict[str, Any]]:
    def conversion(value: Any, source: Source) -> dict[str, Any]:
        if value is None:
            raise NoCounterpartError(otherwise)
        return {ours: value}

    return conversion


def _micro_batch(value: Any, source: Source) -> dict[str, Any]:
    if any(source.get(f"policy.{section}.enabled") for section in ("sequence_packing", "dynamic_batching")):
        return {}  # train_mb_tokens counts
    length = source.get("policy.max_total_sequence_length")
    if not isinstance(length, int) or not isinstance(value, int):
        raise NoCounterpartError("policy.max_total_sequence_length, which it is to be multiplied with, is not set")
    return {"policy.microbatch_tokens": value * length * (2 if source.verb in ("dpo", "rm") else 1)}


def _seconds(value: Any, source: Source) -> dict[str, Any]:
    """`DD:HH:MM:SS` as seconds."""
    if value is None:
        return {}
    parts = str(value).split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise NoCounterpartError("expected DD:HH:MM:SS")
    days, hours, minutes, seconds = map(int, parts)
    return {"trainer.max_time_s": float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)}


def _keep(value: Any, source: Source) -> dict[str, Any]:
    if value is None:
        raise NoCounterpartError("all checkpoints are kept there; here trainer.keep_last says how many")
    ranked = source.get("checkpointing.metric_name") and source.validates
    return {"trainer.keep_last": value} | ({"trainer.keep_best": True} if ranked else {})


def _save_every(value: Any, source: Source) -> dict[str, Any]:
    return {"trainer.save_every": None if value is None else value * source.updates}


def _watch(value: Any, source: Source) -> dict[str, Any]:
    """`val:val_loss`, `val:validation-NAME_loss` and older forms of them as `NAME/loss`; of tasks the reward."""
    if value is None:
        return {}
    if not source.validates:
        raise NoCounterpartError("there is no validation set")
    if isinstance(files := source.get("data.validation"), list) and len(files) > 1:
        raise NoCounterpartError("there are several validation sets; trainer.watch names one of them: NAME/METRIC")
    if source.verb == "grpo":
        return {"trainer.watch": _watched_reward(str(value), source)}
    dataset, _, metric = str(value).removeprefix("val:").rpartition("_")
    dataset = "default" if dataset in ("", "val", "validation") else dataset.removeprefix("validation-")
    if str(value).startswith("train:") or metric not in ("loss", "accuracy") or (metric == "accuracy" and source.verb == "sft"):
        raise NoCounterpartError(
            "no validation metric of this training; trainer.watch may be NAME/loss, for pairs NAME/accuracy too"
        )
    return {"trainer.watch": f"{dataset}/{metric}"}


def _watched_reward(value: str, source: Source) -> str:
    """Their accuracy of tasks is a mean reward, sampled at val_temperature."""
    if value not in ("val:accuracy", "val:reward", "val:total_reward/mean", "val_reward"):
        raise NoCounterpartError("no validation metric of this training; trainer.watch may be NAME/reward or NAME/reward_greedy")
    return "default/reward_greedy" if source.get("policy.generation.val_temperature") == 0 else "default/reward"


def _watch_for(value: Any, source: Source) -> dict[str, Any]:
    if not source.get("checkpointing.metric_name") or not source.validates:
        return {}
    return {"trainer.watch_for": "highest" if value else "lowest"}


def _validate_every(value: Any, source: Source) -> dict[str, Any]:
    if value is None or value <= 0:
        return {}
    if not source.validates:
        raise NoCounterpartError("there is no validation set")
    return {"trainer.validate_every": value * source.updates}


def _if_validated(values: tuple[Any, ...], otherwise: str) -> Callable[[Any, Source], dict[str, Any]]:
    """Nothing is lost at one of `values`, and at any where there is nothing to validate on."""

    def conversion(value: Any, source: Source) -> dict[str, Any]:
        if not source.validates:
            raise NoEffectError("there is no validation set")
        if value in values:
            return {}
        raise NoCounterpartError(otherwise)

    return conversion


def _validation_repeats(value: Any, source: Source) -> dict[str, Any]:
    if not source.validates:
        raise NoEffectError("there is no validation set")
    per_task = source.own("val_num_generations_per_prompt", 1)
    return {"data.validation_repeats": per_task * source.get("data.validation.repeat", 1)}


def _tokenizer_name(value: Any, source: Source) -> dict[str, Any]:
    if value in (None, source.get("policy.model_name")):
        return {}
    raise NoCounterpartError("the model's own tokenizer is taken; to change it, change the model's directory")


def _optimizer(value: Any, source: Source) -> dict[str, Any]:
    name = str(value).rpartition(".")[2].lower()
    kwargs = source.get("policy.optimizer.kwargs") or {}
    if name not in ("adamw", "adamw8bit") and not (name == "adam" and not kwargs.get("weight_decay")):
        raise NoCounterpartError("policy.optimizer may be adamw, adamw_fused or adamw_8bit")
    found: dict[str, Any] = {"policy.optimizer": "adamw_8bit" if name == "adamw8bit" else "adamw_fused"}
    if "betas" not in kwargs:
        found["policy.betas"] = TORCH_BETAS
    if "weight_decay" not in kwargs and name != "adam":
        found["policy.weight_decay"] = TORCH_WEIGHT_DECAY
    return found


def _megatron_betas(value: Any, source: Source) -> dict[str, Any]:
    section = "policy.megatron_cfg.optimizer"
    return {"policy.betas": [source.get(f"{section}.adam_beta1", 0.9), source.get(f"{section}.adam_beta2", 0.999)]}


def _megatron_schedule(value: Any, source: Source) -> dict[str, Any]:
    names = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    if value not in names:
        raise NoCounterpartError("policy.schedule takes transformers' names")
    lowest = source.get("policy.megatron_cfg.optimizer.min_lr") or 0.0
    if value == "cosine" and lowest:
        return {"policy.schedule": "cosine_with_min_lr", "policy.schedule_options": {"min_lr": lowest}}
    if value == "linear" and lowest:
        raise NoCounterpartError(f"policy.schedule=linear falls to 0, not to {lowest}")
    return {"policy.schedule": names[value]}


def _megatron_schedule_steps(value: Any, source: Source) -> dict[str, Any]:
    falls = source.get("policy.megatron_cfg.scheduler.lr_decay_style", "constant") != "constant"
    return {"policy.schedule_steps": value * source.minibatches} if falls else {}


def _lora(ours: str, section: str) -> Callable[[Any, Source], dict[str, Any]]:
    def conversion(value: Any, source: Source) -> dict[str, Any]:
        return {ours: value} if source.get(f"{section}.enabled") else {}

    return conversion


def _lora_targets(value: Any, source: Source) -> dict[str, Any]:
    section = "policy.dtensor_cfg.lora_cfg"
    if not source.get(f"{section}.enabled"):
        return {}
    every = source.get(f"{section}.match_all_linear") or not value
    return {"policy.lora.target_modules": "all-linear" if every else list(value)}


def _device(value: Any, source: Source) -> dict[str, Any]:
    return {"policy.device": "cuda"} if value else {}


def _max_input(value: Any, source: Source) -> dict[str, Any]:
    if value in (None, source.get("policy.max_total_sequence_length")):
        return {}
    raise NoCounterpartError("one length bounds a row: data.max_length")


def _scheduler(value: Any, source: Source) -> dict[str, Any]:
    """One torch scheduler, or a warm-up and one that follows at its milestone."""
    if value is None:
        return {}
    parts = [value] if isinstance(value, Mapping) else list(value)
    stages = [part for part in parts if isinstance(part, Mapping) and "name" in part]
    found: dict[str, Any] = {}
    if stages and _rises(stages[0]):
        found["policy.warmup_steps"] = stages.pop(0)["kwargs"].get("total_iters", 5)
    if len(stages) > 1 or len(stages) + bool(found) != sum(1 for part in parts if "milestones" not in part):
        raise NoCounterpartError("policy.schedule is one of transformers' after a linear warm-up")
    warmup = found.get("policy.warmup_steps", 0)
    found |= _fall(stages[0], warmup) if stages else {"policy.schedule": "constant_with_warmup"}
    counted = ("policy.warmup_steps", "policy.schedule_steps")
    return {name: value * source.minibatches if name in counted else value for name, value in found.items()}


def _rises(stage: Mapping[str, Any]) -> bool:
    kwargs = stage.get("kwargs") or {}
    return stage["name"].endswith("LinearLR") and kwargs.get("start_factor", 1 / 3) < kwargs.get("end_factor", 1.0)


def _fall(stage: Mapping[str, Any], warmup: int) -> dict[str, Any]:
    name, kwargs = stage["name"].rpartition(".")[2], stage.get("kwargs") or {}
    if name == "ConstantLR" and kwargs.get("factor", 1 / 3) == 1.0:
        return {"policy.schedule": "constant_with_warmup"}
    if name == "LinearLR" and kwargs.get("start_factor") == 1.0 and kwargs.get("end_factor") == 0:
        return {"policy.schedule": "linear", "policy.schedule_steps": warmup + kwargs.get("total_iters", 5)}
    if name == "CosineAnnealingLR" and "T_max" in kwargs:
        lowest = kwargs.get("eta_min", 0)
        schedule = "cosine_with_min_lr" if lowest else "cosine"
        options = {"policy.schedule_options": {"min_lr": lowest}} if lowest else {}
        return {"policy.schedule": schedule, "policy.schedule_steps": warmup + kwargs["T_max"], **options}
    raise NoCounterpartError(f"no schedule of transformers is {name} with these values; policy.schedule takes their names")


def _train_file(value: Any, source: Source) -> dict[str, Any]:
    return {"data.train": _file(value, source.get("data.default") or {}, source.get("data.train"), source)}


def _file(path: Any, default: Mapping[str, Any], entry: Any, source: Source) -> str:
    entry = entry if isinstance(entry, Mapping) else {}
    name = entry.get("dataset_name", default.get("dataset_name", source.get("data.dataset_name")))
    fitting = ROW_FILES[source.verb]
    if name is not None and name not in fitting:
        raise NoCounterpartError(f"rows of {name} do not train {source.verb} here; those of {' and '.join(fitting)} do")
    if not isinstance(path, str) or Path(path.removesuffix(".gz").removesuffix(".zst")).suffix not in (".jsonl", ".json"):
        raise NoCounterpartError("expected a JSONL file; write the rows to one")
    return path


def _train_files(value: Any, source: Source) -> dict[str, Any]:
    default = source.get("data.default") or {}
    files = [
        {"path": _file(entry.get("data_path"), default, entry, source), "weight": entry.get("repeat", 1)} for entry in value or ()
    ]
    return {"data.train": files} if files else {}


def _repeated(value: Any, source: Source) -> dict[str, Any]:
    path = source.get("data.train.data_path")
    if value == 1:
        return {}
    file = _file(path, source.get("data.default") or {}, source.get("data.train"), source)
    return {"data.train": [{"path": file, "weight": value}]}


def _validation_file(value: Any, source: Source) -> dict[str, Any]:
    path = _file(value, source.get("data.default") or {}, source.get("data.validation"), source)
    return {"data.validation.default": path}


def _validation_files(value: Any, source: Source) -> dict[str, Any]:
    default, found = source.get("data.default") or {}, {}
    for entry in value or ():
        path = _file(entry.get("data_path"), default, entry, source)
        name = "default" if len(value) == 1 else Path(path).name.partition(".")[0]
        found[f"data.validation.{name}"] = path
    return found


def _named_validation_files(value: Any, source: Source) -> dict[str, Any]:
    default = source.get("data.default") or {}
    return {f"data.validation.{name}": _file(path, default, {}, source) for name, path in (value or {}).items()}


def _sft_average(value: Any, source: Source) -> dict[str, Any]:
    if value or not source.get("dpo.sft_loss_weight"):
        return {}
    raise NoCounterpartError("the chosen side's likelihood is a mean over its tokens, there a sum: sft_weight weighs less here")


def _dataset_name(value: Any, source: Source) -> dict[str, Any]:
    if value in ROW_FILES[source.verb]:
        return {}
    raise NoCounterpartError(f"{value} is not read here; write its rows to a JSONL file")


CONVERSIONS: dict[str | tuple[str, str], Callable[[Any, Source], dict[str, Any]]] = {
    **ONLINE_CONVERSIONS,
    "ALGORITHM.max_num_steps": _positive_or_null("trainer.max_steps"),
    "ALGORITHM.val_period": _validate_every,
    **{f"ALGORITHM.val_at_{moment}": _if_validated((True,), VALIDATES) for moment in ("start", "end")},
    "grpo.max_val_samples": _if_validated((None,), "all tasks of data.validation are played"),
    "grpo.val_num_generations_per_prompt": _validation_repeats,
    ("data.validation.repeat", "grpo"): _validation_repeats,
    "ALGORITHM.max_num_epochs": _or_lost("algorithm.epochs", "passes are counted here; trainer.max_steps may end them earlier"),
    "dpo.sft_average_log_probs": _sft_average,
    "sft.only_unmask_final": _one_of("data.train_on", {True: "final", False: "all"}, "expected true or false"),
    "policy.train_micro_batch_size": _micro_batch,
    "policy.tokenizer.chat_template_kwargs": lambda value, _: {"policy.chat_template_kwargs": dict(value)} if value else {},
    "policy.precision": _one_of(
        "policy.compute_dtype", {"bfloat16": "bfloat16", "float32": "float32"}, "policy.compute_dtype may be float32 or bfloat16"
    ),
    "policy.max_grad_norm": _or_lost("policy.max_grad_norm", "gradients are always clipped; a large number has the same effect"),
    "policy.tokenizer.name": _tokenizer_name,
    "policy.optimizer.name": _optimizer,
    "policy.scheduler": _scheduler,
    "policy.megatron_cfg.optimizer.optimizer": _one_of("policy.optimizer", {"adam": "adamw_fused"}, "the optimizer is AdamW"),
    "policy.megatron_cfg.optimizer.adam_beta1": _megatron_betas,
    "policy.megatron_cfg.optimizer.adam_beta2": _megatron_betas,
    "policy.megatron_cfg.scheduler.lr_decay_style": _megatron_schedule,
    "policy.megatron_cfg.scheduler.lr_decay_iters": _megatron_schedule_steps,
    "policy.dtensor_cfg.lora_cfg.dim": _lora("policy.lora.rank", "policy.dtensor_cfg.lora_cfg"),
    "policy.dtensor_cfg.lora_cfg.alpha": _lora("policy.lora.alpha", "policy.dtensor_cfg.lora_cfg"),
    "policy.dtensor_cfg.lora_cfg.target_modules": _lora_targets,
    "policy.megatron_cfg.peft.dim": _lora("policy.lora.rank", "policy.megatron_cfg.peft"),
    "policy.megatron_cfg.peft.alpha": _lora("policy.lora.alpha", "policy.megatron_cfg.peft"),
    "cluster.gpus_per_node": _device,
    "policy.megatron_cfg.scheduler.lr_warmup_iters": lambda value, source: {"policy.warmup_steps": value * source.minibatches},
    "checkpointing.save_period": _save_every,
    "checkpointing.keep_top_k": _keep,
    "checkpointing.checkpoint_must_save_by": _seconds,
    "checkpointing.metric_name": _watch,
    "checkpointing.higher_is_better": _watch_for,
    "data.max_input_seq_length": _max_input,
    "data.train": _train_files,
    "data.train.data_path": _train_file,
    "data.train_data_path": _train_file,
    "data.train.repeat": _repeated,
    "data.validation": _validation_files,
    "data.validation.data_path": _validation_file,
    "data.val_data_path": _validation_file,
    "data.val_data_paths": _named_validation_files,
    **{f"data.{part}dataset_name": _dataset_name for part in ("", "train.", "validation.", "default.")},
}
"""By the table's keys; by (key, verb) where a verb differs."""
