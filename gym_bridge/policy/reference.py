"""Log-probs of the frozen reference, computed once and kept on disk."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gym_bridge.errors import PolicyError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.schemas.tokens import TrainingSequence

log = logging.getLogger(__name__)


def with_ref_logprobs(
    sequences: Sequence[TrainingSequence],
    *,
    directory: Path,
    model: str,
    compute: Callable[[Sequence[TrainingSequence]], list[Tensor]],
) -> list[TrainingSequence]:
    """The sequences with the log-probs that `compute` gives, or that it gave before: `directory` keeps them by the digest of the
    sequences and of `model`, a text that tells one reference from another. Raises PolicyError when the disk refuses.
    """
    file = directory / f"{_digest(sequences, model)}.safetensors"
    lengths = [one.num_trained for one in sequences]
    logprobs = _read(file, sum(lengths))
    if logprobs is None:
        log.info("computing the reference's log-probs of %d sequences", len(sequences))
        logprobs = torch.cat(compute(sequences))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with written_aside(file) as opened:
                opened.write(save({"logprobs": logprobs}))
        except OSError as error:
            raise PolicyError(f"cannot write {file}: {error.strerror}") from error
    parts = logprobs.split(lengths)
    return [replace(one, ref_logprobs=placed(one, part)) for one, part in zip(sequences, parts, strict=True)]


def _read(file: Path, count: int) -> Tensor | None:
    """The [count] log-probs of `file`; None where it is missing or torn."""
    try:
        logprobs = load(file.read_bytes())["logprobs"]
    except (OSError, KeyError, SafetensorError):
        return None
    return logprobs if logprobs.shape == (count,) else None


def placed(sequence: TrainingSequence, values: Tensor) -> np.ndarray:
    """[T] float32 of a sequence's T tokens: `values` [n] at its trained ones, NaN elsewhere."""
    column = np.full(len(sequence.token_ids), np.nan, dtype=np.float32)
    column[sequence.train_mask] = values.numpy()
    return column


def _digest(sequences: Sequence[TrainingSequence], model: str) -> str:
    total = hashlib.sha256(model.encode())
    for one in sequences:
        total.update(len(one.token_ids).to_bytes(8, "little") + one.token_ids.tobytes() + one.train_mask.tobytes())
    return total.hexdigest()
