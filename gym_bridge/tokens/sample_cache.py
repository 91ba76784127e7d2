"""Units of training sequences on disk, by the digest of all that made them: `DIGEST.npz`, no pickle.

Token ids, masks and log-probs stand one sequence after the other in flat arrays; a table tells where each begins and ends.
"""

import hashlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import orjson

from gym_bridge.errors import ConfigError
from gym_bridge.io.digests import digest_file
from gym_bridge.io.jsonl import written_aside
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.sample_files import Samples, Unit

log = logging.getLogger(__name__)

FORMAT = 1
"""Of these files."""


def digest_code() -> str:
    """SHA-256 over the code of this room, which tells what becomes of a row: files that older code made are not used."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(bytes.fromhex(digest_file(path)))
    return total.hexdigest()


class SampleCache:
    """Keeps what was read of a file. Any number of processes may use one directory."""

    def __init__(self, directory: Path):
        self.directory = directory

    def load(self, key: str, *, path: Path) -> Samples | None:
        """What was saved under `key`, a digest; None for nothing, and for a file that is torn or not ours.

        `path` is where the rows stand now.
        """
        try:
            with self._file(key).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return _unpacked(arrays, key, path)
        except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
            return None

    def save(self, key: str, samples: Samples) -> None:
        """Keep `samples`. A disk that refuses is logged: what is not kept is read again."""
        try:
            with written_aside(self._file(key)) as file:
                np.savez(file, allow_pickle=False, **_packed(samples, key))
        except ConfigError as error:
            log.warning("the tokens are not kept: %s", error)

    def _file(self, key: str) -> Path:
        return self.directory / f"{key}.npz"


def _packed(samples: Samples, key: str) -> dict[str, np.ndarray]:
    sequences = [one for unit in samples.units for one in unit]
    told = {"format": FORMAT, "key": key, "dropped": samples.dropped, "num_cut": samples.num_cut}
    logprobs = [one.rollout_logprobs for one in sequences if one.rollout_logprobs is not None]
    return {
        "told": np.frombuffer(orjson.dumps(told), dtype=np.uint8),
        "units": np.array([(line, len(unit)) for line, unit in zip(samples.lines, samples.units, strict=True)], dtype=np.int64),
        "lengths": np.array([len(one.token_ids) for one in sequences], dtype=np.int64),
        "sampled": np.array([one.rollout_logprobs is not None for one in sequences], dtype=bool),
        "numbers": np.array([(one.advantage, one.weight, one.margin) for one in sequences], dtype=np.float64),
        "token_ids": np.concatenate([one.token_ids for one in sequences]),
        "train_mask": np.packbits(np.concatenate([one.train_mask for one in sequences])),
        "rollout_logprobs": np.concatenate([*logprobs, np.empty(0, dtype=np.float32)]),
    }


def _unpacked(arrays: dict[str, np.ndarray], key: str, path: Path) -> Samples:
    """Raises ValueError, LookupError or TypeError for what `_packed` did not make."""
    told: Any = orjson.loads(arrays["told"].tobytes())
    if (told["format"], told["key"]) != (FORMAT, key):
        raise ValueError("of another format, or of other rows")
    table = arrays["units"].tolist()
    sequences = _sequences(arrays, [f"{path}:{line}" for line, count in table for _ in range(count)])
    units: list[Unit] = []
    first = 0
    for _, count in table:
        units.append(tuple(sequences[first : first + count]))
        first += count
    lines = [line for line, _ in table]
    return Samples(units=units, lines=lines, dropped=Counter(told["dropped"]), num_cut=told["num_cut"])


def _sequences(arrays: dict[str, np.ndarray], origins: list[str]) -> list[TrainingSequence]:
    ids, mask = arrays["token_ids"], np.unpackbits(arrays["train_mask"], count=len(arrays["token_ids"])).view(bool)
    ends = arrays["lengths"].cumsum().tolist()
    rows = zip(origins, ends, arrays["lengths"].tolist(), arrays["sampled"].tolist(), arrays["numbers"].tolist(), strict=True)
    found: list[TrainingSequence] = []
    read = 0
    for origin, end, length, sampled, (advantage, weight, margin) in rows:
        read += length if sampled else 0
        found.append(
            TrainingSequence(
                token_ids=ids[end - length : end],
                train_mask=mask[end - length : end],
                rollout_logprobs=arrays["rollout_logprobs"][read - length : read] if sampled else None,
                advantage=advantage,
                weight=weight,
                margin=margin,
                origin=origin,
            )
        )
    if ends[-1] != len(ids) or read != len(arrays["rollout_logprobs"]):
        raise ValueError("the lengths do not add up")
    return found
