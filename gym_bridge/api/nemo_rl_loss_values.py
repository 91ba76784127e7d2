"""Values of NeMo RL's `loss_fn` as values of `algorithm`: losses, ratios, what corrects for the sampler, the KL."""

from collections.abc import Callable
from typing import Any

from gym_bridge.api.nemo_rl_source import CORRECTIONS, UNTRUNCATED, NoCounterpartError, NoEffectError, Source

Conversion = Callable[[Any, Source], dict[str, Any]]
"""(their value, the config) -> our dotted keys and values."""

NO_BOUND = 1e6
"""As `correction_high`: no token comes near it."""


def always_on_policy(source: Source) -> bool:
    """Whether nothing is compared with the policy before the update: one forward pass less."""
    return bool(source.get("loss_fn.force_on_policy_ratio")) and not source.get("loss_fn.use_importance_sampling_correction")


def refuse_off(value: Any) -> None:
    """Raises NoEffectError for false."""
    if not value:
        raise NoEffectError("it is off")


def _named_loss(name: str) -> Conversion:
    def conversion(value: Any, source: Source) -> dict[str, Any]:
        refuse_off(value)
        return {"algorithm.loss": name}

    return conversion


def _clip(ours: str) -> Conversion:
    def conversion(value: Any, source: Source) -> dict[str, Any]:
        if source.loss == "reinforce":
            raise NoEffectError("there is no ratio to clip")
        return {ours: value}

    return conversion


def _dual_clip(value: Any, source: Source) -> dict[str, Any]:
    if value is None or source.get("loss_fn.force_on_policy_ratio"):
        return {}
    if source.loss != "clipped":
        raise NoCounterpartError(f"algorithm.dual_clip is not for algorithm.loss={source.loss}")
    return {"algorithm.dual_clip": value}


def _ratio(value: Any, source: Source) -> dict[str, Any]:
    refuse_off(value)
    if source.loss == "reinforce":
        raise NoEffectError("there is no ratio")
    return {"algorithm.ratio": "sequence"}


def _correction(value: Any, source: Source) -> dict[str, Any]:
    if not value:
        return {} if always_on_policy(source) else {"algorithm.old_logprobs": "trainer"}
    kind = source.correction
    if kind == UNTRUNCATED:
        bounds = {"algorithm.correction": "tis", "algorithm.correction_high": NO_BOUND}
    else:
        bounds = {"algorithm.correction": kind}
    return {"algorithm.old_logprobs": "trainer", **bounds}


def _correction_kind(value: Any, source: Source) -> dict[str, Any]:
    if value is None or source.correction in ("none", UNTRUNCATED):
        return {}
    return {"algorithm.correction": CORRECTIONS[value]}


def _correction_high(value: Any, source: Source) -> dict[str, Any]:
    if value is None or source.correction in ("none", UNTRUNCATED):
        return {}
    return {"algorithm.correction_high": value}


def _correction_low(value: Any, source: Source) -> dict[str, Any]:
    if not value or source.correction in ("none", UNTRUNCATED):
        return {}
    if source.correction == "tis":
        raise NoCounterpartError("algorithm.correction=tis has no lower bound")
    return {"algorithm.correction_low": value}


def _beta(value: Any, source: Source) -> dict[str, Any]:
    if value and not source.has_kl:
        raise NoEffectError(f"the KL is in the reward, from which {source.estimator} does not take it off")
    return {"algorithm.beta": value}


def _kl_in_reward(value: Any, source: Source) -> dict[str, Any]:
    refuse_off(value)
    return {"algorithm.kl_in": "reward"}


def _with_kl(conversion: Conversion) -> Conversion:
    def only_with_kl(value: Any, source: Source) -> dict[str, Any]:
        if not source.has_kl:
            raise NoEffectError("there is no KL term")
        return conversion(value, source)

    return only_with_kl


def _lossless(values: tuple[Any, ...], reason: str) -> Conversion:
    def conversion(value: Any, source: Source) -> dict[str, Any]:
        if value in values:
            return {}
        raise NoCounterpartError(reason)

    return conversion


def _kl_weights(value: Any, source: Source) -> dict[str, Any]:
    if not value and source.updates == 1:
        return {}
    raise NoCounterpartError(
        "the KL of a token is weighed by its ratio to the policy before the batch's first update, "
        + ("there to the sampler's" if value else "which later updates move")
    )


def _mixed_weight(value: Any, source: Source) -> dict[str, Any]:
    if source.get("loss_fn.kl_type") != "mixed":
        return {}
    raise NoCounterpartError("the KL to the teacher is the reverse one")


LOSS_CONVERSIONS: dict[str | tuple[str, str], Conversion] = {
    "loss_fn.ratio_clip_min": _clip("algorithm.clip_low"),
    "loss_fn.ratio_clip_max": _clip("algorithm.clip_high"),
    "loss_fn.ratio_clip_c": _dual_clip,
    "loss_fn.disable_ppo_ratio": _named_loss("reinforce"),
    "loss_fn.force_on_policy_ratio": _named_loss("reinforce"),
    "loss_fn.use_cispo": _named_loss("cispo"),
    "loss_fn.sequence_level_importance_ratios": _ratio,
    "loss_fn.token_level_loss": lambda value, _: {"algorithm.normalise_by": "tokens" if value else "sequences"},
    "loss_fn.use_importance_sampling_correction": _correction,
    "loss_fn.truncated_importance_sampling_type": _correction_kind,
    "loss_fn.truncated_importance_sampling_ratio": _correction_high,
    "loss_fn.truncated_importance_sampling_ratio_min": _correction_low,
    "loss_fn.reference_policy_kl_penalty": _beta,
    "loss_fn.reference_policy_kl_type": _with_kl(lambda value, _: {"algorithm.kl": value}),
    "loss_fn.use_kl_in_reward": _with_kl(_kl_in_reward),
    "loss_fn.kl_input_clamp_value": _with_kl(_lossless((20, None), "exponents of log-ratios are at most 20")),
    "loss_fn.kl_output_clamp_value": _with_kl(_lossless((None,), "a token's KL has no bound")),
    "loss_fn.use_on_policy_kl_approximation": _with_kl(_kl_weights),
    "loss_fn.mixed_kl_weight": _mixed_weight,
}
