"""The files of `data.train` and `data.validation`, read by the reader of a trainer, from the cache where it holds them."""

import hashlib
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gym_bridge.io.digests import digest_file, digest_json
from gym_bridge.schemas.data_settings import OfflineData
from gym_bridge.tokens.rollout_turns import token_directory
from gym_bridge.tokens.sample_cache import FORMAT, SampleCache, digest_code
from gym_bridge.tokens.sample_files import Limits, SampleReader, Samples, Unit, read_samples
from gym_bridge.tokens.tokenizer import digest_tokenizer, vocabulary_size
from gym_bridge.trainers.epochs import Dataset

log = logging.getLogger(__name__)

MADE_BY = ("renderers", "tokenizers")
"""Packages whose versions tell, beside our own code, how a row is rendered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainData:
    """What a trainer reads from files."""

    train: Dataset
    validation: dict[str, list[Unit]]
    """Held-out units by the names of their sets."""
    digests: dict[str, str]
    """Of the tokenizer and of every file, to tell whether a second run is the same run."""


def load_data(settings: OfflineData, reader: SampleReader, *, model: Path, cache: Path | None) -> TrainData:
    """Training files and validation sets as units; what was dropped or cut is logged, a warning for each file and reason.

    `model` is the directory of the model that reads them; `cache` a directory that keeps their tokens, None for none. Raises
    DataError with path and line for a row that is refused, ConfigError for a file that cannot be read or has no row left.
    """
    files = _Files(settings, reader, model=model, cache=cache if settings.cache else None)
    train = [files.load(one.path) for one in settings.files]
    validation = {name: files.load(path).units for name, path in settings.validation.items()}
    dataset = Dataset.of(*(one.units for one in train), weights=[one.weight for one in settings.files])
    return TrainData(train=dataset, validation=validation, digests=_digests(settings, files))


class _Files:
    """Reads each file once."""

    def __init__(self, settings: OfflineData, reader: SampleReader, *, model: Path, cache: Path | None):
        self.reader, self.cache = reader, SampleCache(cache) if cache else None
        self.limits = Limits(max_length=settings.max_length, over_length=settings.over_length, vocab_size=vocabulary_size(model))
        self.tokenizer = digest_tokenizer(model)
        self.digests: dict[Path, str] = {}
        self._loaded: dict[Path, Samples] = {}

    def load(self, path: Path) -> Samples:
        if path not in self._loaded:
            self.digests[path] = _digest_rows(path)
            self._loaded[path] = samples = self._read(path)
            for reason, count in sorted(samples.dropped.items()):
                log.warning("%s: dropped %d rows: %s", path, count, reason)
            if samples.num_cut:
                log.warning("%s: cut %d rows to data.max_length=%d tokens", path, samples.num_cut, self.limits.max_length)
        return self._loaded[path]

    def _read(self, path: Path) -> Samples:
        if self.cache is None:
            return read_samples(path, self.reader, self.limits)
        key = digest_json(self._identity(path))
        samples = self.cache.load(key, path=path)
        if samples is None:
            samples = read_samples(path, self.reader, self.limits)
            self.cache.save(key, samples)
        return samples

    def _identity(self, path: Path) -> dict[str, Any]:
        """All that makes the units of a file what they are."""
        return {
            "format": FORMAT,
            "rows": self.digests[path],
            "tokenizer": self.tokenizer,
            "reader": self.reader.identity,
            "limits": [self.limits.max_length, self.limits.over_length, self.limits.vocab_size],
            "made_by": [digest_code(), *(version(name) for name in MADE_BY)],
        }


def _digest_rows(path: Path) -> str:
    """SHA-256 of a file, with the token arrays that belong to it where it has such."""
    chunks = sorted(token_directory(path).glob("chunk-*.npz"))
    own = digest_file(path)
    return hashlib.sha256("".join([own, *map(digest_file, chunks)]).encode()).hexdigest() if chunks else own


def _digests(settings: OfflineData, files: _Files) -> dict[str, str]:
    train = [files.digests[one.path] for one in settings.files]
    named = {"data": train[0]} if len(train) == 1 else {f"data.{number}": one for number, one in enumerate(train)}
    held_out = {f"validation.{name}": files.digests[path] for name, path in settings.validation.items()}
    return {"tokenizer": files.tokenizer, **named, **held_out}
