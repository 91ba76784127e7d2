"""The settings of `gym-bridge eval --config`: several policies on several task sets."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from gym_bridge.config import JsonObject, StrictModel, validate
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.play_settings import EvalSettings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Of a set or a policy: it names a file."""
PLACED = frozenset({"output", "overwrite"})
"""Settings of an evaluation that a suite gives itself."""


class SuiteSettings(StrictModel):
    """`gym-bridge eval --config suite.yaml`. The rollouts of a policy on a set go to OUTPUT/POLICY/SET.jsonl."""

    output: Path
    """Directory of all that is written."""
    play: JsonObject = Field(default_factory=dict)
    """Settings of the verb eval, for all sets and policies."""
    sets: dict[str, JsonObject] = Field(min_length=1)
    """By name what a set has of its own: `input`, and perhaps `server`, `num_repeats` and others."""
    policies: dict[str, JsonObject] = Field(min_length=1)
    """By name what a policy has of its own: `model`, and perhaps `model_url`, `model_api` and others."""
    baseline: str | None = None
    """What the others are compared with: one of the policies, or the directory that an earlier suite wrote for one."""
    max_regression: NonNegativeFloat | None = None
    """How much reward a policy may have lost against the baseline on a set, by the lower end of the difference's 95 % interval."""
    measure_kl: bool = False
    """Tell too how far each policy has gone from the baseline, one of the policies: the KL at the tokens that it sampled."""
    ks: tuple[PositiveInt, ...] = ()
    """Of pass@k and its kin. Left out: 1, 2, 4, ... up to the attempts."""

    @model_validator(mode="after")
    def _consistent(self) -> "SuiteSettings":
        for name in (*self.sets, *self.policies):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} names files: expected letters, digits, '_', '-' and '.'")
        if self.max_regression is not None and not self.compared:
            raise ValueError("max_regression needs a baseline, and a policy besides it")
        if self.measure_kl and not (self.compared and self.baseline in self.policies):
            raise ValueError("measure_kl needs a baseline among the policies, and a policy besides it")
        return self

    @property
    def compared(self) -> list[str]:
        """The policies that are compared with the baseline."""
        return [] if self.baseline is None else [name for name in self.policies if name != self.baseline]

    def rollouts(self, policy: str, task_set: str) -> Path:
        """Where the rollouts of a policy on a set are; `policy` may be the baseline."""
        directory = self.output / policy if policy in self.policies else Path(policy)
        return directory / f"{task_set}.jsonl"

    def evaluations(self) -> dict[tuple[str, str], EvalSettings]:
        """What is to be played, by policy and set. Raises ConfigError that names the set or the policy of a wrong setting."""
        for where, values in {"play": self.play, **_named("sets", self.sets), **_named("policies", self.policies)}.items():
            if wrong := PLACED & values.keys():
                raise ConfigError(f"{where}.{min(wrong)}: a suite writes to its own output")
        return {(policy, task_set): self._evaluation(policy, task_set) for task_set in self.sets for policy in self.policies}

    def _evaluation(self, policy: str, task_set: str) -> EvalSettings:
        own = {**self.play, **self.sets[task_set], **self.policies[policy], "output": self.rollouts(policy, task_set)}
        try:
            return validate(EvalSettings, own)
        except ConfigError as error:
            raise ConfigError(f"sets.{task_set} with policies.{policy}: {error}") from error


def _named(section: str, values: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {f"{section}.{name}": one for name, one in values.items()}
