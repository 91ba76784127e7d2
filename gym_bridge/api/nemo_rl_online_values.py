"""Values of NeMo RL's online training as values of ours: batches, estimators, rewards, play."""

from collections.abc import Mapping
from typing import Any

from gym_bridge.api.nemo_rl_loss_values import LOSS_CONVERSIONS, Conversion, always_on_policy, refuse_off
from gym_bridge.api.nemo_rl_source import DEFAULT_BETA, ESTIMATORS, REQUIRED, NoCounterpartError, NoEffectError, Source


def implied(settings: Mapping[str, Any], source: Source) -> dict[str, tuple[Any, str]]:
    """Settings that NeMo RL's config means without saying so, with their values and why; none for a config without a loss."""
    found: dict[str, tuple[Any, str]] = {}
    if source.verb != "grpo" or not isinstance(source.get("loss_fn"), Mapping):
        return found
    if (estimator := ESTIMATORS.get(source.estimator, "group")) != "group":
        found["algorithm.estimator"] = (estimator, f"the section {source.section or source.verb} has no other there")
    if source.section != "distillation":
        if not always_on_policy(source):
            found["algorithm.old_logprobs"] = ("trainer", "the ratio is against the trainer's log-probs there")
        if source.has_kl and source.get("loss_fn.reference_policy_kl_penalty") is None:
            found["algorithm.beta"] = (DEFAULT_BETA, "its default there")
    if source.estimator in ("grpo", "gdpo"):
        found["algorithm.baseline"] = ("leave_one_out", "its default there")
    return {key: value for key, value in found.items() if key not in settings}


def _minibatches(value: Any, source: Source) -> dict[str, Any]:
    prompts = source.own("num_prompts_per_step", 0)
    rollouts = prompts * source.own("num_generations_per_prompt", 0)
    if value == rollouts:
        raise NoEffectError("one update a step, of all its rollouts")
    if value * source.minibatches == rollouts:
        return {"algorithm.minibatches": source.minibatches}
    raise NoCounterpartError(f"a step of {rollouts} rollouts in {prompts} groups cannot be cut so; algorithm.minibatches is 1")


def _turns(value: Any, source: Source) -> dict[str, Any]:
    if source.get("env.should_use_nemo_gym"):
        raise NoEffectError("NeMo Gym's agents bound their turns themselves")
    return {"env.max_turns": value}


def _total_tokens(value: Any, source: Source) -> dict[str, Any]:
    if source.get("env.should_use_nemo_gym"):
        raise NoCounterpartError("where NeMo Gym's agents play, vllm serve --max-model-len bounds a rollout")
    return {"env.max_total_tokens": value}


def _estimator(value: Any, source: Source) -> dict[str, Any]:
    if value not in ESTIMATORS:
        raise NoCounterpartError("algorithm.estimator may be group, components, gae, teacher, or one of your own")
    found: dict[str, Any] = {"algorithm.estimator": ESTIMATORS[value]}
    if value == "reinforce_plus_plus":
        centred = source.own("adv_estimator.minus_baseline", True)
        found |= {"algorithm.baseline": "mean" if centred else "none", "algorithm.scale": "none", "algorithm.whiten": True}
    if value == "raw_reward":
        found |= {"algorithm.baseline": "none", "algorithm.scale": "none"}
    return found


def _of_groups(name: str, ours: str, values: Mapping[bool, str], *, moved: bool) -> Conversion:
    """A setting of grpo and gdpo that stands in the section, or, later, in that of the estimator, where it counts."""

    def conversion(value: Any, source: Source) -> dict[str, Any]:
        if source.estimator not in ("grpo", "gdpo"):
            raise NoEffectError(f"{source.estimator} takes no heed of it")
        if not moved and source.own(f"adv_estimator.{name}") is not None:
            raise NoEffectError(f"adv_estimator.{name} counts")
        if not isinstance(value, bool):
            raise NoCounterpartError("expected true or false")
        return {ours: values[value]}

    return conversion


def _only(estimators: tuple[str, ...], ours: str) -> Conversion:
    def conversion(value: Any, source: Source) -> dict[str, Any]:
        if source.estimator not in estimators:
            raise NoEffectError(f"{source.estimator} takes no heed of it")
        return {ours: value}

    return conversion


def _minus_baseline(value: Any, source: Source) -> dict[str, Any]:
    if source.estimator != "reinforce_plus_plus":
        raise NoEffectError(f"{source.estimator} takes no heed of it")
    return {"algorithm.baseline": "mean" if value else "none"}


def _other_lambda(value: Any, source: Source) -> dict[str, Any]:
    if value in (None, source.own("adv_estimator.gae_lambda")):
        return {}
    raise NoCounterpartError("one lambda serves values and policy: algorithm.critic.lam")


def _scaled(side: str) -> Conversion:
    ours = {"source": "algorithm.reward_scale.source", "target": "algorithm.reward_scale.target"}[side]

    def conversion(value: Any, source: Source) -> dict[str, Any]:
        _takes_reward(source)
        return {ours: [source.own(f"reward_scaling.{side}_{end}", default) for end, default in (("min", 0.0), ("max", 1.0))]}

    return conversion


def _takes_reward(source: Source) -> None:
    """Raises NoEffectError where the reward as a whole plays no part, there as here."""
    if ESTIMATORS.get(source.estimator) in ("components", "teacher"):
        raise NoEffectError(f"{source.estimator} does not take the whole reward")


def _overlong(ours: str) -> Conversion:
    def conversion(value: Any, source: Source) -> dict[str, Any]:
        _takes_reward(source)
        if source.own("reward_shaping.stop_properly_penalty_coef") is not None:
            raise NoEffectError("stop_properly_penalty_coef stands in its place")
        if not source.own("reward_shaping.overlong_buffer_length"):
            raise NoCounterpartError("algorithm.overlong_penalty needs algorithm.overlong_buffer")
        return {ours: value}

    return conversion


def _response_length(value: Any, source: Source) -> dict[str, Any]:
    longest = source.get("policy.generation.max_new_tokens")
    if value in (None, longest) or source.own("reward_shaping.stop_properly_penalty_coef") is not None:
        return {}
    raise NoCounterpartError(f"the overlong penalty counts back from sampler.max_tokens={longest}")


def _truncated_factor(value: Any, source: Source) -> dict[str, Any]:
    if value is None:
        return {}
    _takes_reward(source)
    return {"algorithm.truncated_factor": value}


def _dynamic(value: Any, source: Source) -> dict[str, Any]:
    refuse_off(value)
    if ESTIMATORS.get(source.estimator) in ("gae", "teacher"):
        raise NoCounterpartError(f"algorithm.estimator={ESTIMATORS[source.estimator]} trains on every group")
    return {"algorithm.dynamic_sampling": True}


def _refills(value: Any, source: Source) -> dict[str, Any]:
    if not source.own("use_dynamic_sampling"):
        raise NoEffectError("dynamic sampling is off")
    if not isinstance(value, int) or value < 2:
        raise NoCounterpartError("a batch may be refilled once at least")
    return {"algorithm.max_refills": value - 1}


def _batch_multiplier(value: Any, source: Source) -> dict[str, Any]:
    if not source.own("use_dynamic_sampling") or value in (None, 1):
        return {}
    raise NoCounterpartError("as many groups are played as are missing")


def _staleness(value: Any, source: Source) -> dict[str, Any]:
    refuse_off(source.staleness)
    return {"overlap.max_staleness": source.staleness}


def _backend(value: Any, source: Source) -> dict[str, Any]:
    if value == "vllm":
        return {"sampler.kind": "vllm"}
    raise NoEffectError("the policy answers in the training process; sampler.kind=vllm takes servers")


def _input_length(value: Any, source: Source) -> dict[str, Any]:
    if source.get("env.should_use_nemo_gym"):
        raise NoEffectError("tasks of NeMo Gym are not measured")
    if value in (None, source.get("policy.max_total_sequence_length")):
        raise NoEffectError("env.max_total_tokens bounds a rollout, its prompt too")
    raise NoCounterpartError("env.max_total_tokens bounds a rollout, its prompt too")


def _colocated(value: Any, source: Source) -> dict[str, Any]:
    if not value:
        raise NoEffectError("sampler.url says where the servers are")
    on_one_gpu = source.get("policy.generation.backend") == "vllm" and source.get("cluster.gpus_per_node")
    return {"sampler.sleep": True, "sampler.transfer": "ipc"} if on_one_gpu and not source.staleness else {}


def _gym_configs(value: Any, source: Source) -> dict[str, Any]:
    if not source.get("env.should_use_nemo_gym"):
        raise NoEffectError("env.should_use_nemo_gym is not true")
    return {"env.gym_configs": list(value)}


def _critic_passes(value: Any, source: Source) -> dict[str, Any]:
    if value in (None, source.own("ppo_epochs", 1)):
        return {}
    raise NoCounterpartError("the value model takes as many passes as the policy: algorithm.epochs_per_batch")


def _critic_model(value: Any, source: Source) -> dict[str, Any]:
    if value == source.get("policy.model_name"):
        return {}
    raise NoCounterpartError("the value model begins as the policy with a new head")


def _teachers(value: Any, source: Source) -> dict[str, Any]:
    paths = set(value.values())
    if source.estimator != "opd":
        raise NoEffectError("the estimator is not opd")
    if len(paths) != 1:
        raise NoCounterpartError("one teacher speaks of all tasks: algorithm.teacher")
    return {"algorithm.teacher": paths.pop()}


def online_requirements(settings: Mapping[str, Any]) -> dict[str, str]:
    """Our keys of the sampler that the user has to set, and what to; `???` stands there."""
    if settings.get("sampler.kind") != "vllm" or settings.get("sampler.url", REQUIRED) != REQUIRED:
        return {}
    return {"sampler.url": "vLLM's base URL; to sample in this process instead, leave kind, url, sleep and transfer out"}


_SCALE, _BASELINE = {True: "std", False: "none"}, {True: "leave_one_out", False: "mean"}
_NORMALIZE, _LEAVE_ONE_OUT = "normalize_rewards", "use_leave_one_out_baseline"

ONLINE_CONVERSIONS: dict[str | tuple[str, str], Conversion] = {
    ("policy.train_global_batch_size", "grpo"): _minibatches,
    ("policy.max_total_sequence_length", "grpo"): _total_tokens,
    ("data.max_input_seq_length", "grpo"): _input_length,
    "grpo.max_rollout_turns": _turns,
    f"grpo.{_NORMALIZE}": _of_groups(_NORMALIZE, "algorithm.scale", _SCALE, moved=False),
    f"grpo.adv_estimator.{_NORMALIZE}": _of_groups(_NORMALIZE, "algorithm.scale", _SCALE, moved=True),
    f"grpo.{_LEAVE_ONE_OUT}": _of_groups(_LEAVE_ONE_OUT, "algorithm.baseline", _BASELINE, moved=False),
    f"grpo.adv_estimator.{_LEAVE_ONE_OUT}": _of_groups(_LEAVE_ONE_OUT, "algorithm.baseline", _BASELINE, moved=True),
    "grpo.adv_estimator.name": _estimator,
    "grpo.adv_estimator.minus_baseline": _minus_baseline,
    "grpo.adv_estimator.normalize_advantages": _only(("gae", "raw_reward"), "algorithm.whiten"),
    "grpo.adv_estimator.gae_lambda": _only(("gae",), "algorithm.critic.lam"),
    "grpo.adv_estimator.gae_gamma": _only(("gae",), "algorithm.critic.gamma"),
    **{f"grpo.adv_estimator.gae_lambda_{part}": _other_lambda for part in ("value", "policy")},
    **{f"grpo.reward_scaling.{side}_{end}": _scaled(side) for side in ("source", "target") for end in ("min", "max")},
    "grpo.reward_shaping.overlong_buffer_length": _overlong("algorithm.overlong_buffer"),
    "grpo.reward_shaping.overlong_buffer_penalty": _overlong("algorithm.overlong_penalty"),
    "grpo.reward_shaping.max_response_length": _response_length,
    "grpo.reward_shaping.stop_properly_penalty_coef": _truncated_factor,
    "grpo.use_dynamic_sampling": _dynamic,
    "grpo.dynamic_sampling_max_gen_batches": _refills,
    "grpo.batch_multiplier": _batch_multiplier,
    "grpo.async_grpo.enabled": _staleness,
    "grpo.async_grpo.max_trajectory_age_steps": _staleness,
    "ppo.policy_training_start_step": lambda value, source: {"algorithm.critic.warmup_steps": value * source.updates},
    "ppo.critic_ppo_epochs": _critic_passes,
    "ppo.critic_train_epochs": _critic_passes,
    "value.model_name": _critic_model,
    "on_policy_distillation.teacher_model_by_agent_name": _teachers,
    **LOSS_CONVERSIONS,
    "policy.generation.backend": _backend,
    "policy.generation.colocated.enabled": _colocated,
    "env.nemo_gym.config_paths": _gym_configs,
}
"""By the table's keys; by (key, verb) where a verb differs."""
