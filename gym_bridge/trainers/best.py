"""Which validation was best, and whether better ones may still be hoped for."""

import math
from collections.abc import Mapping
from typing import Any

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.settings import TrainerSettings

PREFIX = "validation/"
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
        if name is None or version == 0:
            return False
        value = metrics[name]
        if math.isfinite(value) and (self.best is None or self._is_better(value, self.best)):
            self.best, self.best_version, self.num_worse = value, version, 0
            return True
        self.num_worse += self._is_regular(version)
        return False

    @property
    def in_vain(self) -> bool:
        """True when `patience` is at its end."""
        return self.settings.patience is not None and self.num_worse >= self.settings.patience

    def watched(self, metrics: Mapping[str, float]) -> str | None:
        """The metric that is watched; None when nothing has to be and there is no loss. Raises ConfigError when it is not there."""
        known = {name.removeprefix(PREFIX): name for name in metrics}
        asked = self.settings.watch
        if asked is None:
            losses = [name for name in known if name == "loss" or name.endswith("/loss")]
            if losses or not (self.settings.keep_best or self.settings.patience):
                return next((known[name] for name in losses), None)
            raise ConfigError(f"trainer.watch: there is no loss to watch; there are {', '.join(known) or 'no metrics'}")
        name = asked.removeprefix(PREFIX)
        if name not in known:
            there = ", ".join(known) or "none"
            raise ConfigError(f"trainer.watch: {asked!r} is no validation metric of this run; there are {there}")
        return known[name]

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

    def _is_better(self, value: float, than: float) -> bool:
        return value < than if self.settings.watch_for == "lowest" else value > than


def check_validation_settings(settings: TrainerSettings, *, validates: bool) -> None:
    """Raises ConfigError for settings that would have no effect: a silent one is an error too."""
    asked = [name for name in NEED_VALIDATION if getattr(settings, name) != TrainerSettings.model_fields[name].default]
    if asked and not validates:
        raise ConfigError(f"trainer.{asked[0]} has no effect without held-out data; set data.validation, or leave it out")
    if settings.patience is not None and settings.validate_every is None:
        raise ConfigError("trainer.patience counts the validations of trainer.validate_every, which is not set; set it too")
