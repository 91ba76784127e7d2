"""Distributed checkpoints of torch (DCP): through their safetensors storage, and pickled ones when the reader trusts them.

A pickled one has a `.metadata` file; reading that runs whatever code its author put into it.
"""

import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gym_bridge.errors import PolicyError

PREFIXES = ("", "model.", "module.", "state_dict.", "app.model.", "_orig_mod.")
"""What trainers put before a weight's own name: NeMo RL and torch's tutorials nest the model under a key."""

log = logging.getLogger(__name__)


def write_distributed(directory: Path, weights: Mapping[str, Tensor], *, max_shard_bytes: int) -> None:
    """Write `weights` as a distributed checkpoint of one process, as safetensors: every tensor with its place in the whole."""
    files = file_numbers(weights, max_bytes=max_shard_bytes)
    writer = HuggingFaceStorageWriter(str(directory), fqn_to_index_mapping=files, save_distributed=True)
    try:
        with _alone():
            save(dict(weights), storage_writer=writer, no_dist=True)
    except CheckpointException as error:
        raise PolicyError(f"cannot write {directory}: {reason(error)}") from error


def file_numbers(weights: Mapping[str, Tensor], *, max_bytes: int) -> dict[str, int]:
    """In which file each weight goes, from 1, so that none of several weights is larger than `max_bytes`."""
    files: dict[str, int] = {}
    number, size = 1, 0
    for name, tensor in weights.items():
        num_bytes = tensor.numel() * tensor.element_size()  # of the whole tensor, where this is a shard
        if size and size + num_bytes > max_bytes:
            number, size = number + 1, 0
        files[name], size = number, size + num_bytes
    return files


def read_distributed(directory: Path, *, pickled: bool = False) -> dict[str, Tensor]:
    """All tensors of a distributed checkpoint, whole, on the CPU; `pickled` reads torch's own format, which unpickles.

    Raises PolicyError when a part of a tensor is missing or a file is damaged.
    """
    reader = FileSystemReader(str(directory)) if pickled else HuggingFaceStorageReader(str(directory))
    try:
        found = reader.read_metadata()
        tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in whole_tensors(directory, found)}
        with _alone():
            load(tensors, storage_reader=reader, no_dist=True)
    except (OSError, SafetensorError, CheckpointException, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise PolicyError(f"{directory}: no whole distributed checkpoint: {reason(error)}") from error
    return tensors


@contextmanager
def _alone() -> Iterator[None]:
    """Without torch's warning that there is one process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def reason(error: BaseException) -> str:
    """The first rank's own error where torch wraps it in tracebacks."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return " ".join(f"{type(error).__name__}: {error}".split())


def whole_tensors(directory: Path, found: Metadata | None = None) -> list[tuple[str, TensorStorageMetadata]]:
    """Names, sizes and parts of the tensors of a distributed checkpoint in safetensors, or of that whose metadata was `found`.

    Raises PolicyError when parts are missing: where they belong, a reader would leave what memory held before.
    """
    found = found or HuggingFaceStorageReader(str(directory)).read_metadata()
    tensors = []
    for name, entry in found.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            log.debug("%s: %s is no tensor and is left out", directory, name)
            continue
        there = sum(prod(chunk.sizes) for chunk in entry.chunks)
        if there != prod(entry.size):
            raise PolicyError(f"{directory}: not whole: {there} of {prod(entry.size)} weights of {name} are there")
        tensors.append((name, entry))
    return tensors


def with_own_names(weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights that a model of the shapes `expected` has, under its own names; what else a checkpoint holds is left out.

    `tied` names of a tensor that is another's are left out too. Raises PolicyError when names are missing or shapes differ.
    """
    needed = {name for name in expected if name not in tied}
    prefix = max(PREFIXES, key=lambda one: sum(one + name in weights for name in needed))  # the first of equals
    if missing := sorted(name for name in needed if prefix + name not in weights):
        raise PolicyError(
            f"{len(missing)} of the model's {len(needed)} weights are missing, such as {missing[0]}; "
            f"the checkpoint has {min(weights, default='none')!r}: is the config of the same model?"
        )
    for name in sorted(needed):
        if weights[prefix + name].shape != expected[name]:
            found, wanted = list(weights[prefix + name].shape), list(expected[name])
            raise PolicyError(f"{name} has the shape {found} where the config expects {wanted}: is it of the same model?")
    for name, other in tied.items():
        if prefix + name in weights and not torch.equal(weights[prefix + name], weights[prefix + other]):
            raise PolicyError(f"{name} differs from {other}, which the config says it is tied to: is it of the same model?")
    return {name: weights[prefix + name] for name in expected if name in needed}
