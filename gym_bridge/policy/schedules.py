"""The learning rate of every update, by transformers' schedules."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gym_bridge.errors import ConfigError, nearest
from gym_bridge.policy.optimizers import hush_bitsandbytes
from gym_bridge.schemas.settings import PolicySettings

ADAPTIVE = ("reduce_lr_on_plateau", "greedy")  # they follow a metric, not the number of the step
GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")  # by us, so no options
COUNTS_FROM_ONE = "cosine_warmup_with_min_lr"


class Schedule:
    """The learning rate as a function of the updates taken so far, and of nothing else: it has no state to save.

    The first of w warm-up updates has lr / (w + 1), where transformers' has 0 and changes nothing; the first after them has lr.
    From there on the rate is transformers', and after the last scheduled update it stays.
    """

    def __init__(self, settings: PolicySettings, *, total_steps: int | None = None):
        """`total_steps`: updates of the whole run, None where nobody knows.

        Raises ConfigError for an unknown schedule or option, one that lacks, and for a falling schedule of unknown length.
        """
        self.lr, self.length, self.offset = settings.lr, None, 1
        if settings.schedule == "constant_with_warmup" and not settings.schedule_options and not settings.schedule_steps:
            # without transformers' schedules, whose import brings all of its trainer and takes seconds
            self._factor = partial(_risen, warmup=settings.warmup_steps)
            return
        functions = _functions()
        if settings.schedule not in functions:
            hint = nearest(settings.schedule, functions)
            raise ConfigError(f"policy.schedule={settings.schedule}: no schedule of this name{hint}")
        parameters = inspect.signature(functions[settings.schedule]).parameters
        _check_options(settings, {name: one for name, one in parameters.items() if name not in GIVEN})
        self.length = _length(settings, parameters, total_steps)
        self.offset = 0 if settings.schedule == COUNTS_FROM_ONE else 1
        self._factor = self._built(settings, rises="num_warmup_steps" in parameters)

    def __call__(self, version: int) -> float:
        """The learning rate of the update that follows on `version` updates."""
        counted = version if self.length is None else min(version, self.length)
        return self.lr * self._factor(counted + self.offset)

    def _built(self, settings: PolicySettings, *, rises: bool) -> Callable[[int], float]:
        from transformers import get_scheduler

        warmup, options = settings.warmup_steps, dict(settings.schedule_options)
        if warmup and not rises:
            raise ConfigError(f"policy.warmup_steps has no effect on policy.schedule={settings.schedule}; use constant_with_warmup")
        if settings.schedule == "inverse_sqrt":
            options.setdefault("timescale", warmup or 10_000)  # transformers' default for the warm-up as it was set
        weight = torch.zeros(1, requires_grad=True)
        try:
            scheduler: Any = get_scheduler(
                settings.schedule,
                torch.optim.SGD([weight], lr=settings.lr),
                num_warmup_steps=warmup + self.offset,
                num_training_steps=None if self.length is None else self.length + self.offset,
                scheduler_specific_kwargs=options,
            )
            factor = scheduler.lr_lambdas[0]
            for version in (0, warmup, self.length or warmup):
                float(factor(version + self.offset))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(f"policy.schedule={settings.schedule} with policy.schedule_options={options}: {error}") from error
        return factor


def _risen(counted: int, *, warmup: int) -> float:
    return min(1.0, counted / (warmup + 1))


def _functions() -> dict[str, Callable[..., Any]]:
    """transformers' schedules by name."""
    hush_bitsandbytes()  # which this imports where it is installed
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    return {kind.value: function for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items() if kind.value not in ADAPTIVE}


def _check_options(settings: PolicySettings, known: dict[str, inspect.Parameter]) -> None:
    for name in settings.schedule_options:
        if name not in known:
            hint = nearest(name, known) or "; it takes none"
            raise ConfigError(f"policy.schedule_options.{name}: no option of policy.schedule={settings.schedule}{hint}")
    for name, one in known.items():
        if one.default is inspect.Parameter.empty and name not in settings.schedule_options:
            raise ConfigError(f"policy.schedule={settings.schedule} needs policy.schedule_options.{name}")


def _length(settings: PolicySettings, parameters: Any, total_steps: int | None) -> int | None:
    """Updates over which the schedule falls; None for one that does not end."""
    if "num_training_steps" not in parameters or settings.schedule_options.get("num_stable_steps") is not None:
        if settings.schedule_steps:
            raise ConfigError(f"policy.schedule_steps has no effect on policy.schedule={settings.schedule}; leave it out")
        return None
    length = settings.schedule_steps or total_steps
    if length is None:
        raise ConfigError(
            f"policy.schedule={settings.schedule} falls to the end of the run, which is not known; "
            "set trainer.max_steps or policy.schedule_steps"
        )
    return length
