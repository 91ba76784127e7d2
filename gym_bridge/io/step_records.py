"""Training steps on disk, whole: `steps/step_00000001.npz`, no pickle. What is read back equals what was written, bit for bit.

A file holds each column of all sequences, one after the other, as an array for each dtype in which sequences have it; one array
of numbers, a line a sequence; and as JSON, in an array of bytes, what is neither.
"""

import json
from collections.abc import Container, Iterator, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.schemas.seams import TrainStep
from gym_bridge.schemas.tokens import TrainingSequence

STEPS = "steps"
"""The directory of a run that holds its steps."""
COLUMNS = (
    *("token_ids", "train_mask", "rollout_logprobs", "old_logprobs", "ref_logprobs"),
    *("advantages", "returns", "old_values"),
)
"""[T] of a sequence, or None."""
NUMBERS = ("advantage", "weight", "margin")
FORMAT = 1


def write_step(directory: Path, number: int, step: TrainStep) -> None:
    """Write a step, in place of an earlier one of its number; it is on the disk, and whole, or as before.

    `number` is the version that its update gives, from 1. Raises ConfigError when the disk refuses.
    """
    sequences = [one for batch in step.microbatches for one in batch]
    arrays: dict[str, list[np.ndarray]] = {}
    dtypes = {name: [_note(arrays, name, one) for one in sequences] for name in COLUMNS}
    described = {
        "format": FORMAT,
        "microbatches": [len(batch) for batch in step.microbatches],
        "metrics": step.metrics,
        "origins": [one.origin for one in sequences],
        "dtypes": dtypes,
    }
    text = json.dumps(described, default=_plain).encode()  # which knows NaN and infinities, as metrics may be
    with written_aside(_place(directory, number)) as file:
        np.savez(
            file,
            allow_pickle=False,
            described=np.frombuffer(text, dtype=np.uint8),
            lengths=np.array([len(one.token_ids) for one in sequences], dtype=np.int64),
            numbers=np.array([[getattr(one, name) for name in NUMBERS] for one in sequences], dtype=np.float64),
            **{name: np.concatenate(parts) for name, parts in arrays.items()},
        )


def read_step(directory: Path, number: int) -> TrainStep:
    """The step of this number. Raises DataError when it is not there, or is no record of a step."""
    path = _place(directory, number)
    try:
        with np.load(path, allow_pickle=False) as stored:
            held = {name: stored[name] for name in stored.files}
        described = json.loads(held["described"].tobytes())
        if described["format"] != FORMAT:
            raise DataError(f"is of format {described['format']}, this version reads {FORMAT}; record the steps again", path=path)
        sequences, ends = list(_sequences(held, described)), list(accumulate(described["microbatches"]))
        microbatches = [sequences[start:end] for start, end in pairwise((0, *ends))]
        return TrainStep(microbatches=microbatches, metrics=described["metrics"])
    except FileNotFoundError:
        raise DataError(f"step {number} is not recorded", path=path) from None
    except DataError:
        raise
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(f"no record of a step: {error!r}", path=path) from error


def recorded_origins(directory: Path, number: int) -> list[str]:
    """Where the sequences of a recorded step come from, without reading their tokens. Raises DataError as `read_step` does."""
    path = _place(directory, number)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return json.loads(stored["described"].tobytes())["origins"]
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(f"no record of a step: {error!r}", path=path) from error


def recorded_steps(directory: Path) -> list[int]:
    """Numbers of the steps that are recorded, ascending; none where there is no such directory."""
    names = (path.stem.removeprefix("step_") for path in directory.glob("step_*.npz"))
    return sorted(int(one) for one in names if one.isdecimal())


def keep_steps(directory: Path, numbers: Container[int]) -> None:
    """Remove all steps but these, and what kills left of steps half written. Raises ConfigError."""
    doomed = [_place(directory, number) for number in recorded_steps(directory) if number not in numbers]
    try:
        for path in [*doomed, *directory.glob(".step_*.tmp")]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot remove recorded steps of {directory}: {error.strerror}") from error


def _place(directory: Path, number: int) -> Path:
    return directory / f"step_{number:08d}.npz"


def _note(arrays: dict[str, list[np.ndarray]], name: str, sequence: TrainingSequence) -> str | None:
    """Add a column to those of its dtype; the dtype's name, None for a column that is not there."""
    column = getattr(sequence, name)
    if column is None:
        return None
    assert column.shape == sequence.token_ids.shape, f"{name} is {column.shape}, its sequence {sequence.token_ids.shape}"
    arrays.setdefault(f"{name}.{column.dtype.name}", []).append(column)
    return column.dtype.name


def _sequences(held: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> Iterator[TrainingSequence]:
    lengths, numbers, dtypes = held["lengths"].tolist(), held["numbers"].tolist(), described["dtypes"]
    read = dict.fromkeys(held, 0)
    for index, length in enumerate(lengths):
        columns: dict[str, Any] = {}
        for name in COLUMNS:
            dtype = dtypes[name][index]
            if dtype is not None:
                key = f"{name}.{dtype}"
                columns[name] = held[key][read[key] : read[key] + length]
                read[key] += length
        values = dict(zip(NUMBERS, numbers[index], strict=True))
        yield TrainingSequence(**columns, **values, origin=described["origins"][index])


def _plain(value: Any) -> Any:
    """A numpy scalar as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} in a step's metrics; expected numbers")
