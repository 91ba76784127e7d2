"""Digests of files, to tell whether a second run is the same run."""

import hashlib
from pathlib import Path
from typing import Any

import orjson

from gym_bridge.errors import ConfigError


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises ConfigError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def digest_weights(model_directory: Path) -> str:
    """SHA-256 over the safetensors files of a Hugging Face directory, in order of their names."""
    total = hashlib.sha256()
    for path in sorted(model_directory.glob("*.safetensors")):
        total.update(bytes.fromhex(digest_file(path)))
    return total.hexdigest()
