"""The only training loop: takes steps from a source, updates the policy, writes metrics and checkpoints."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import orjson

from gym_bridge.io.metrics import MetricsWriter
from gym_bridge.io.progress import Progress
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.schemas.seams import LossFn, Policy, StepSource, WeightSync
from gym_bridge.schemas.settings import TrainerSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training came to."""

    steps: int
    checkpoint: Path | None
    """The last checkpoint, None when no step was taken."""
    metrics: dict[str, float]
    """Numbers of the last step."""
    interrupted: bool = False
    """True when SIGTERM ended the run early."""


def train(
    policy: Policy,
    source: StepSource,
    loss_fn: LossFn,
    *,
    run: RunDirectory,
    settings: TrainerSettings,
    writer: MetricsWriter,
    progress: Progress,
    sync: WeightSync | None = None,
) -> TrainResult:
    """Train until the source ends, `max_steps` is reached or SIGTERM comes; the last step is always saved.

    After each update the source is told the new version, and `sync` brings the weights to the sampler. An error or Ctrl-C saves
    the steps taken so far and is raised again.
    """
    metrics: dict[str, float] = {}
    first = policy.version
    saved = first if run.checkpoint(first).exists() else -1

    def save() -> None:
        nonlocal saved
        if policy.version not in (first, saved):
            save_checkpoint(policy, source, run, keep_last=settings.keep_last)
            saved = policy.version

    with noted(signal.SIGTERM) as stop:
        try:
            while not stop() and (settings.max_steps is None or policy.version < settings.max_steps):
                started = time.perf_counter()
                step = source.next()
                if step is None:
                    break
                waited = time.perf_counter() - started
                with interrupts_deferred():
                    result = policy.step(step.microbatches, loss_fn)
                    source.stepped(policy.version)
                    if sync is not None:
                        sync.push(policy.weights(), policy.version)
                    metrics = {**step.metrics, **result.metrics, "source_s": waited, "step_s": time.perf_counter() - started}
                    writer.write(policy.version, metrics)
                shown = {name: metrics[name] for name in ("loss", "reward", "trained_tokens_per_s") if name in metrics}
                progress.advance(shown)
                if settings.save_every and policy.version % settings.save_every == 0:
                    save()
        finally:
            save()
        return TrainResult(steps=policy.version, checkpoint=run.last_checkpoint(), metrics=metrics, interrupted=stop())


def save_checkpoint(policy: Policy, source: StepSource, run: RunDirectory, *, keep_last: int) -> None:
    """Save policy and source as the checkpoint of the policy's version."""
    directory = run.checkpoint(policy.version)
    policy.save(directory, source_state=source.state_dict())
    run.keep_last(keep_last)
    log.info("saved %s", directory)


def source_state(checkpoint: Path) -> dict:
    """What the step source said when `checkpoint` was saved."""
    return orjson.loads((checkpoint / "trainer" / "state.json").read_bytes())["source"]


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: weights, version, source and metrics change together or not at all."""
    with noted(signal.SIGINT) as interrupted:
        yield
    if interrupted():
        raise KeyboardInterrupt


@contextmanager
def noted(number: signal.Signals) -> Iterator[Callable[[], bool]]:
    """A function that tells whether the signal has come, which does nothing else meanwhile; no effect outside the main thread."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    try:
        before = signal.signal(number, note)
    except ValueError:  # not the main thread, which alone gets signals
        yield lambda: False
        return
    try:
        yield lambda: came
    finally:
        signal.signal(number, before)
