"""Settings of reinforcement learning that have an effect only beside others: two tables, and how they are read. Imports no torch.

A setting that differs from its default and has no effect is refused. One that equals it is not, whoever set it, so that a
resolved config is a config again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Rule:
    """When settings have an effect: where `needs` is set, to one of `values` where these are named; where no `bars` is set.

    Null, 0, false and empty mean not set. A dotted path to a user's own is among all values: it may heed any setting.
    """

    settings: tuple[str, ...]
    needs: str | None = None
    values: tuple[str, ...] = ()
    bars: tuple[str, ...] = ()
    because: str = ""
    """Of `bars`: why there is no effect with them."""


_PLAYED = ("data.rollouts", "data.groups", "data.replay")

OF_ALGORITHM: tuple[Rule, ...] = (
    # What a loss heeds.
    Rule(("algorithm.dual_clip", "algorithm.ratio"), "algorithm.loss", ("clipped",)),
    Rule(("algorithm.clip_low", "algorithm.clip_high"), "algorithm.loss", ("clipped", "cispo")),
    Rule(("algorithm.fixed_length",), "algorithm.normalise_by", ("fixed",)),
    Rule(("algorithm.correction",), "algorithm.old_logprobs", ("trainer",)),
    Rule(("algorithm.kl", "algorithm.kl_in"), "algorithm.beta"),
    # What an estimator heeds.
    Rule(("algorithm.baseline", "algorithm.scale"), "algorithm.estimator", ("group", "components")),
    Rule(("algorithm.credit",), "algorithm.estimator", ("group",)),
    Rule(("algorithm.component_weights",), "algorithm.estimator", ("components",)),
    Rule(("algorithm.critic",), "algorithm.estimator", ("gae",)),
    Rule(("algorithm.teacher_weight",), "algorithm.teacher"),
    # Of the reward as a whole.
    Rule(
        ("algorithm.reward_scale", "algorithm.reward_shaping", "algorithm.truncated_factor", "algorithm.overlong_buffer"),
        "algorithm.estimator",
        ("group", "gae"),
    ),
    Rule(("algorithm.overlong_penalty",), "algorithm.overlong_buffer"),
    # Of groups without a signal.
    Rule(("algorithm.dynamic_sampling",), "algorithm.estimator", ("group", "components")),
    Rule(("algorithm.dynamic_sampling",), bars=("algorithm.teacher",), because="every group has a signal"),
    Rule(("algorithm.max_refills",), "algorithm.dynamic_sampling"),
)
"""Settings of `algorithm` that others of it decide about."""

OF_SECTIONS: tuple[Rule, ...] = (
    # Of playing.
    Rule(
        ("data.validation", "data.curriculum", "data.num_tasks", "overlap.max_staleness", "sampler.kind"),
        bars=_PLAYED,
        because="nothing is played",
    ),
    Rule(("data.num_tasks",), bars=("data.train",), because="no task is made"),
    Rule(("data.validation_repeats",), "data.validation"),
    Rule(("env.agent", "env.policy_address"), bars=("env.server",), because="no agent plays"),
    # Of sampling.
    Rule(("sampler.max_batch", "sampler.lockstep"), "sampler.kind", ("local",)),
    Rule(("sampler.url", "sampler.transfer", "sampler.weights_directory", "sampler.sleep"), "sampler.kind", ("vllm",)),
    Rule(("overlap.in_flight_updates",), "overlap.max_staleness"),
)
"""Settings of the other sections."""


def idle(rules: Sequence[Rule], sections: Mapping[str, BaseModel | None]) -> dict[str, str]:
    """The settings, by dotted names, that differ from their defaults and have no effect, each with a sentence that says why.

    `sections` are those that the rules speak of, by name; one that is None sets nothing.
    """
    found: dict[str, str] = {}
    for rule in rules:
        if (reason := _reason(rule, sections)) is not None:
            changed = [name for name in rule.settings if _differs(name, sections)]
            found |= {name: f"{name} has no effect {reason}" for name in changed if name not in found}
    return found


def check_effects(rules: Sequence[Rule], sections: Mapping[str, BaseModel | None]) -> None:
    """Raises ValueError for settings without effect."""
    if found := idle(rules, sections):
        raise ValueError("; ".join(found.values()))


def taken_back(preset: Mapping[str, Any], given: Mapping[str, Any], values: BaseModel) -> set[str]:
    """The names of a `preset` for which not its value stands but the default, as its own has no effect beside those `given`.

    `values` are the settings of the algorithm with the preset's values below those given.
    """
    gone: set[str] = set()
    own = {f"algorithm.{name}" for name in preset if name not in given}
    while names := {name.partition(".")[2] for name in own & idle(OF_ALGORITHM, {"algorithm": values}).keys()}:
        gone |= names
        values = values.model_copy(update={name: _default(values, name) for name in names})
    return gone


def _reason(rule: Rule, sections: Mapping[str, BaseModel | None]) -> str | None:
    """Why the settings of the rule have no effect; None where they have one."""
    if rule.needs is not None:
        value = _value(rule.needs, sections)
        if not rule.values:
            return None if value else f"without {rule.needs}"
        heeds = value in rule.values or ":" in str(value)
        return None if heeds else f"on {rule.needs}={value}; it is for {', '.join(rule.values)}"
    barring = next((name for name in rule.bars if _value(name, sections)), None)
    return None if barring is None else f"with {barring}: {rule.because}"


def _value(name: str, sections: Mapping[str, BaseModel | None]) -> Any:
    section, _, key = name.partition(".")
    values = sections[section]
    return None if values is None else getattr(values, key)


def _differs(name: str, sections: Mapping[str, BaseModel | None]) -> bool:
    section, _, key = name.partition(".")
    values = sections[section]
    return values is not None and getattr(values, key) != _default(values, key)


def _default(values: BaseModel, key: str) -> Any:
    return type(values).model_fields[key].get_default(call_default_factory=True)
