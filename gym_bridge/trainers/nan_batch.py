"""The batch that gave a loss or gradient that is no finite number, kept for whoever looks for the cause."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson

from gym_bridge.errors import NonFiniteLossError
from gym_bridge.schemas.tokens import TrainingSequence

COLUMNS = {
    **{name: name for name in ("rollout_logprobs", "old_logprobs", "ref_logprobs", "returns", "old_values")},
    "token_advantages": "advantages",  # each token's own, beside one number a sequence
}


@contextmanager
def non_finite_batch_saved(run: Path, *, step: int) -> Iterator[None]:
    """Saves the sequences of a NonFiniteLossError to `run/nan_batch_step_00000012` and raises it again, saying so."""
    try:
        yield
    except NonFiniteLossError as error:
        sequences = [one for one in error.sequences if isinstance(one, TrainingSequence)]
        directory = run / f"nan_batch_step_{step:08d}"
        try:
            save_batch(directory, sequences)
            place = f"the batch is saved in {directory}"
        except OSError as refused:
            place = f"the batch could not be saved in {directory}: {refused.strerror}"
        raise NonFiniteLossError(f"{error}; {place}", sequences=error.sequences) from error


def save_batch(directory: Path, sequences: Sequence[TrainingSequence]) -> None:
    """Write `sequences.npz`, loaded without pickle, and `rows.json`, one object a sequence with its origin, to `directory`.

    Tokens stand sequence after sequence in `token_ids`, `train_mask`, and the columns of COLUMNS (NaN where there is none);
    `lengths`, `advantages`, `weights` and `margins` have one number a sequence. Raises OSError when the disk refuses.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    read = {"token_ids": "token_ids", "train_mask": "train_mask", **COLUMNS}
    columns = {name: _joined([_column(one, column) for one in sequences]) for name, column in read.items()}
    numbers = {f"{name}s": np.array([getattr(one, name) for one in sequences]) for name in ("advantage", "weight", "margin")}
    lengths = np.array([len(one.token_ids) for one in sequences], dtype=np.int64)
    np.savez(directory / "sequences.npz", allow_pickle=False, lengths=lengths, **columns, **numbers)
    rows = [{"origin": one.origin, "num_tokens": len(one.token_ids), "num_trained": one.num_trained} for one in sequences]
    (directory / "rows.json").write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))


def _column(sequence: TrainingSequence, name: str) -> np.ndarray:
    column = getattr(sequence, name)
    return np.full(len(sequence.token_ids), np.nan, dtype=np.float32) if column is None else column


def _joined(columns: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(columns) if columns else np.empty(0)
