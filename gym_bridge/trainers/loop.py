"""The only training loop: takes steps from a source, updates the policy, validates, writes metrics and checkpoints."""

import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import orjson

from gym_bridge.io.metrics import MetricsWriter
from gym_bridge.io.progress import Progress
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.io.signals import done_unless, interrupts_deferred, noted
from gym_bridge.schemas.seams import LossFn, Policy, StepSource, Validation
from gym_bridge.schemas.settings import TrainerSettings
from gym_bridge.trainers.best import Watch, check_validation_settings
from gym_bridge.trainers.nan_batch import non_finite_batch_saved

log = logging.getLogger(__name__)

Stopped = Literal["data", "max_steps", "time", "signal", "patience"]
"""Why a training ended: no more data, a setting of the trainer's, or SIGTERM."""
WATCH = "watch"  # beside the source's own state in a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training came to."""

    steps: int
    checkpoint: Path | None
    """The last checkpoint, None when no step was taken."""
    metrics: dict[str, float]
    """The last of each number, of steps and validations."""
    stopped: Stopped
    """Why it ended."""


def train(
    policy: Policy,
    source: StepSource,
    loss_fn: LossFn,
    *,
    run: RunDirectory,
    settings: TrainerSettings,
    writer: MetricsWriter,
    progress: Progress,
    validation: Validation | None = None,
) -> TrainResult:
    """Train until the source ends, a limit of the settings is reached or SIGTERM comes; the last step is always saved.

    SIGTERM ends a step after it is taken, and at once what comes before it: gathering its data, and a validation.

    After each update the source is told the new version. `validation` runs before
    the first step, every `validate_every` steps, and where the run ends with its data or at `max_steps`; what SIGTERM or the time
    budget kept from being validated is validated when the run goes on. An error or Ctrl-C saves the steps taken so far and is
    raised again.
    """
    check_validation_settings(settings, validates=validation is not None)
    saver = _Saver(policy, source, run, settings, None if validation is None else Watch(settings))
    display = _Display(progress)
    checks = _Checks(validation, saver, writer=writer, display=display)
    metrics: dict[str, float] = {}
    with noted(signal.SIGTERM) as signalled:
        limits = _Limits(saver, signalled)
        try:
            while (stopped := limits.reached()) is None:
                if checks.due():
                    metrics |= checks.run(signalled)
                    continue
                if settings.save_every and policy.version % settings.save_every == 0:
                    saver.save()
                saved = saver.taken_s()
                started = time.perf_counter()
                step = done_unless(signal.SIGTERM, signalled, source.next)
                if signalled():
                    continue
                if step is None:
                    stopped = "data"
                    break
                waited = time.perf_counter() - started
                with interrupts_deferred(), non_finite_batch_saved(run.path, step=policy.version + 1):
                    result = policy.step(step.microbatches, loss_fn)
                    source.stepped(policy.version)
                    took = {"source_s": waited, "step_s": time.perf_counter() - started, **saved}
                    found = {**step.metrics, **result.metrics, **took}
                    writer.write(policy.version, found)
                metrics |= found
                display.stepped(found)
            if stopped in ("data", "max_steps") and checks.due(at_the_end=True):
                metrics |= checks.run(signalled)
        finally:
            saver.save()
        return TrainResult(steps=policy.version, checkpoint=run.last_checkpoint(), metrics=metrics, stopped=stopped)


class _Saver:
    """Saves policy, source and what validation found so far, each version once, and keeps as many checkpoints as wanted."""

    def __init__(self, policy: Policy, source: StepSource, run: RunDirectory, settings: TrainerSettings, watch: Watch | None):
        self.policy, self.source, self.run, self.settings, self.watch = policy, source, run, settings, watch
        self.first = policy.version  # stands in the checkpoint it was loaded from, or is the model before training
        self._saved = self.first
        self._took_s = 0.0
        before = run.checkpoint(self.first)
        if watch is not None and before.exists() and (state := _state(before).get(WATCH)):
            watch.load_state_dict(state)
            self.mark_best()  # a kill may have come between checkpoint and link

    def save(self) -> None:
        """Save the policy's version, unless it is saved."""
        version = self.policy.version
        if version == self._saved:
            return
        started = time.perf_counter()
        directory = self.run.checkpoint(version)
        watched = {} if self.watch is None else {WATCH: self.watch.state_dict()}
        self.policy.save(directory, source_state={**self.source.state_dict(), **watched})
        self._saved = version
        self.run.keep_last(self.settings.keep_last)
        self._took_s += time.perf_counter() - started
        log.info("saved %s", directory)

    def taken_s(self) -> dict[str, float]:
        """`save_s`: seconds of what was saved since the last call; nothing where nothing was."""
        took, self._took_s = self._took_s, 0.0
        return {"save_s": took} if took else {}

    def mark_best(self) -> None:
        """Let `checkpoints/best` lead to the checkpoint of the best version, where it is wanted and saved."""
        best = self.watch.best_version if self.watch is not None and self.settings.keep_best else None
        if best is not None and self.run.checkpoint(best).exists():
            self.run.mark_best(best)
            self.run.keep_last(self.settings.keep_last)


class _Limits:
    """Tells when the run is to end, at its steps' borders."""

    def __init__(self, saver: _Saver, signalled: Callable[[], bool]):
        self._saver, self._signalled = saver, signalled
        self._started = time.monotonic()

    def reached(self) -> Stopped | None:
        """Why the run ends now, None when it goes on. A start takes at least one step before its time is up."""
        settings, version = self._saver.settings, self._saver.policy.version
        if self._signalled():
            return "signal"
        if self._saver.watch is not None and self._saver.watch.in_vain:
            return "patience"
        if settings.max_steps is not None and version >= settings.max_steps:
            return "max_steps"
        spent = time.monotonic() - self._started
        return "time" if settings.max_time_s is not None and version > self._saver.first and spent >= settings.max_time_s else None


class _Checks:
    """Validates, records what was found, and has the best version saved. Without held-out data it is never due."""

    def __init__(self, validation: Validation | None, saver: _Saver, *, writer: MetricsWriter, display: "_Display"):
        self._validation, self._saver, self._writer, self._display = validation, saver, writer, display

    def due(self, *, at_the_end: bool = False) -> bool:
        """True when the policy is to be validated before the next step, or as the last one of its run."""
        watch, version = self._saver.watch, self._saver.policy.version
        return watch is not None and (watch.validated != version if at_the_end else watch.due(version))

    def run(self, signalled: Callable[[], bool]) -> dict[str, float]:
        """What the validation of the policy's version found; nothing where SIGTERM came meanwhile."""
        saver, watch, version = self._saver, self._saver.watch, self._saver.policy.version
        assert self._validation is not None, "only then it is due"
        assert watch is not None, "it comes with the validation"
        started = time.perf_counter()
        with non_finite_batch_saved(saver.run.path, step=version):
            metrics = done_unless(signal.SIGTERM, signalled, partial(self._validation.run, saver.policy))
        if metrics is None:
            return {}
        found = {**metrics, "validation_s": time.perf_counter() - started}
        with interrupts_deferred():
            is_best = watch.note(found, version=version)
            self._writer.write(version, found)
        if (name := watch.watched(found)) is not None:
            self._display.validated({name: found[name]})
        if is_best and saver.settings.keep_best:
            saver.save()
            saver.mark_best()
        return found


class _Display:
    """Keeps the numbers of the last step, and of the last validation, in sight."""

    NAMES: ClassVar = {"loss": "loss", "reward": "reward", "trained_tokens_per_s": "tokens/s"}

    def __init__(self, progress: Progress):
        self._progress = progress
        self._numbers: dict[str, float] = {}

    def stepped(self, metrics: Mapping[str, float]) -> None:
        """A step was taken."""
        self._numbers |= {word: metrics[name] for name, word in self.NAMES.items() if name in metrics}
        self._progress.advance(self._numbers)

    def validated(self, found: Mapping[str, float]) -> None:
        """A validation found the numbers to be shown from now on."""
        self._numbers |= found
        self._progress.show(self._numbers)


def source_state(checkpoint: Path) -> dict[str, Any]:
    """What the step source said when `checkpoint` was saved."""
    return {name: value for name, value in _state(checkpoint).items() if name != WATCH}


def _state(checkpoint: Path) -> dict[str, Any]:
    return orjson.loads((checkpoint / "trainer" / "state.json").read_bytes())["source"]
