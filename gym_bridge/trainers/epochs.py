"""Offline data: rows of a file, read once, in epochs of seeded order."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.policy.packing import plan_microbatches
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.seams import TrainStep
from gym_bridge.schemas.tokens import TrainingSequence

Unit = tuple[TrainingSequence, ...]
"""What one row trains: sequences that stay in one microbatch. All units of a file have as many."""


def read_units(path: Path, read: Callable[[Row], Unit], *, max_length: int) -> tuple[list[Unit], Counter[str]]:
    """What `read` makes of each row of a file, and how many rows were dropped and why.

    Raises DataError with path and line for a row that `read` refuses, ConfigError when no row is left.
    """
    units: list[Unit] = []
    dropped: Counter[str] = Counter()
    for line, row in read_jsonl(path):
        try:
            unit = read(row)
        except DataError as error:
            raise DataError(str(error), path=path, line=line) from error
        if max(len(one.token_ids) for one in unit) > max_length:
            dropped["too_long"] += 1
        else:
            units.append(unit)
    if not units:
        raise ConfigError(f"{path}: every row has more than data.max_length={max_length} tokens; raise it")
    return units, dropped


class EpochSource:
    """Steps over `epochs` passes through the units, each pass in its own seeded order."""

    counted = "num_sequences"
    """Metric that tells how many units a step has."""

    def __init__(self, units: Sequence[Unit], *, batch_size: int, epochs: int, seed: int, microbatch_tokens: int):
        self.units, self.batch_size, self.epochs, self.seed = units, batch_size, epochs, seed
        self.microbatch_tokens = microbatch_tokens
        self.steps_per_epoch = -(-len(units) // batch_size)
        self.total_steps = self.steps_per_epoch * epochs
        self._step = 0

    def next(self) -> TrainStep | None:
        """The next batch; None after the last epoch."""
        chosen = self.batch()
        if not chosen:
            return None
        units = sorted((self.units[index] for index in chosen), key=lambda unit: unit[0].token_ids.tolist())
        microbatches = plan_microbatches(
            [one for unit in units for one in unit], max_tokens=self.microbatch_tokens, together=len(units[0])
        )
        return TrainStep(microbatches=microbatches, metrics={"epoch": self._step / self.steps_per_epoch, self.counted: len(units)})

    def batch(self) -> list[int]:
        """Which units the next step has; none after the last epoch."""
        epoch, place = divmod(self._step, self.steps_per_epoch)
        if epoch >= self.epochs:
            return []
        order = list(range(len(self.units)))
        random.Random(f"{self.seed}-{epoch}").shuffle(order)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def stepped(self, version: int) -> None:
        """The step was taken."""
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Steps taken."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last step of `state`."""
        self._step = int(state["step"])

    def close(self) -> None:
        """Nothing runs in the background."""
