"""Frames of large files, kept in the cache: the second time such a file is opened, only what was appended is read."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from gym_bridge.config import cache_directory
from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.viewer.frame import SCHEMA

KEPT_FROM_BYTES = 1 << 25
"""So much more to read is worth keeping a frame for: less is read again in less time than anybody notices."""
LOOKED_AT_BYTES = 1 << 16
"""Of the beginning and of the end of what was read: a file that differs there is another file."""
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How far a file was read."""

    num_bytes: int
    next_line: int
    """Number of the line that comes next."""
    size: int
    """Of the file then; larger than `num_bytes` where its last line was cut off."""
    changed_ns: int
    """When the file had last changed."""


NOTHING = Extent(num_bytes=0, next_line=1, size=0, changed_ns=0)


def load_frame(path: Path) -> tuple[pl.DataFrame, Extent] | None:
    """The frame of a file as far as an earlier process read it; None where there is none, or the file is another one since."""
    described, stored = _places(path)
    try:
        told = json.loads(described.read_bytes())
        if told["format"] != FORMAT or told["marks"] != marks_of(path, told["extent"]["num_bytes"]):
            return None
        extent = Extent(**told["extent"])
        now = path.stat()
        if now.st_size == extent.size and now.st_mtime_ns != extent.changed_ns:
            return None
        frame = pl.read_ipc(stored)
    except (OSError, ValueError, KeyError, TypeError, PolarsError):
        return None
    return (frame, extent) if frame.schema == pl.Schema(SCHEMA) else None


def keep_frame(path: Path, frame: pl.DataFrame, extent: Extent) -> None:
    """Keep it for the next process. Where the cache cannot be written, nothing is kept."""
    described, stored = _places(path)
    told: Mapping[str, Any] = {"format": FORMAT, "marks": marks_of(path, extent.num_bytes), "extent": asdict(extent)}
    try:
        described.unlink(missing_ok=True)
        with written_aside(stored) as file:
            frame.write_ipc(file, compression="zstd")
        with written_aside(described) as file:
            file.write(json.dumps(told).encode())
    except (OSError, ConfigError):
        return


def _places(path: Path) -> tuple[Path, Path]:
    name = sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    directory = cache_directory() / "view"
    return directory / f"{name}.json", directory / f"{name}.arrow"


def marks_of(path: Path, num_bytes: int) -> str:
    """Tells a file that was only appended to from another one."""
    with path.open("rb") as file:
        head = file.read(min(LOOKED_AT_BYTES, num_bytes))
        file.seek(max(0, num_bytes - LOOKED_AT_BYTES))
        return sha256(head + file.read(min(LOOKED_AT_BYTES, num_bytes))).hexdigest()
