"""Which validation was best, and whether better ones may still be hoped for."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.settings import TrainerSettings

PREFIX = "validation/"
HIGHEST = ("reward", "reward_low", "reward_high", "reward_greedy", "solved", "accuracy")
"""Metrics of which the highest value is best, unless trainer.watch_for says otherwise."""
NEED_VALIDATION = ("validate_every", "watch", "watch_for", "keep_best", "patience")


class Watch:
    """Follows one validation metric over a run: when the next validation is due, the best value, how many since were no better.

    Only trained versions compete: of the model before the first step there is no checkpoint. A validation between those of
    `validate_every`, which ends a run at its last step, may be best but is no sign of waiting in vain, so that a run that goes on
    after it stops where an uninterrupted one does, unless that validation was the best.
    """

    def __init__(self, settings: TrainerSettings):
        self.settings = settings
        self.best: float | None = None
        """The best value so far, None before the first finite one."""
        self.best_version: int | None = None
        """The policy's version that had it."""
        self.num_worse = 0
        """Validations since then, of those that `validate_every` asks for."""
        self.validated: int | None = None
        """The version that was validated last."""

    def due(self, version: int) -> bool:
        """True when `version` is to be validated before the run goes on: at its start, and regularly."""
        return version != self.validated and (self.validated is None or self._is_regular(version))

    def note(self, metrics: Mapping[str, float], *, version: int) -> bool:
        """Take in what the validation of `version` found; True when it is the best of a trained version.

        Raises ConfigError when trainer.watch names none of the metrics.
        """
        name = self.watched(metrics)
        self.validated = version
        if version == 0:
            return False
        value = math.nan if name is None else metrics[name]
        if name is not None and math.isfinite(value) and (self.best is None or self._is_better(name, value, self.best)):
            self.best, self.best_version, self.num_worse = value, version, 0
            return True
        self.num_worse += self._is_regular(version)
        return False

    @property
    def in_vain(self) -> bool:
        """True when `patience` is at its end."""
        return self.settings.patience is not None and self.num_worse >= self.settings.patience

    def watched(self, metrics: Mapping[str, float]) -> str | None:
        """The metric that is watched: the one that is asked for, else the first set's loss, or its reward where tasks are played.

        None when nothing has to be watched, and when all rollouts of the set failed, so that it has no reward this time. Raises
        ConfigError when the metric is not there.
        """
        known = {name.removeprefix(PREFIX): name for name in metrics}
        first_set = next(iter(known), "").rpartition("/")[0]
        asked = self.settings.watch
        if asked is None:
            losses = [name for name in known if name == "loss" or name.endswith("/loss")]
            name = next(iter(losses), f"{first_set}/reward")
        else:
            name = asked.removeprefix(PREFIX)
        if name in known or _all_failed(known, name.rpartition("/")[0]):
            return known.get(name)
        there = ", ".join(known) or "none"
        if asked is not None:
            raise ConfigError(f"trainer.watch: {asked!r} is no validation metric of this run; there are {there}")
        if self.settings.keep_best or self.settings.patience:
            raise ConfigError(f"trainer.watch: there is no loss or reward to watch; name one of {there}")
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which `load_state_dict` continues."""
        names = ("best", "best_version", "num_worse", "validated")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the validations of `state`."""
        self.best, self.best_version = state["best"], state["best_version"]
        self.num_worse, self.validated = state["num_worse"], state["validated"]

    def _is_regular(self, version: int) -> bool:
        every = self.settings.validate_every
        return every is not None and version > 0 and version % every == 0

    def _is_better(self, name: str, value: float, than: float) -> bool:
        by_nature = "highest" if name.rpartition("/")[2] in HIGHEST else "lowest"
        return value > than if (self.settings.watch_for or by_nature) == "highest" else value < than


def _all_failed(known: Collection[str], name: str) -> bool:
    """Whether the tasks of the set `name` were played and none of their rollouts has a reward."""
    return f"{name}/num_failed" in known and f"{name}/reward" not in known


def check_validation_settings(settings: TrainerSettings, *, validates: bool) -> None:
    """Raises ConfigError for settings that would have no effect: a silent one is an error too."""
    asked = [name for name in NEED_VALIDATION if getattr(settings, name) != TrainerSettings.model_fields[name].default]
    if asked and not validates:
        raise ConfigError(f"trainer.{asked[0]} has no effect without held-out data; set data.validation, or leave it out")
    if settings.patience is not None and settings.validate_every is None:
        raise ConfigError("trainer.patience counts the validations of trainer.validate_every, which is not set; set it too")
