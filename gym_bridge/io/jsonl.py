"""JSONL files: streamed line by line with line numbers, written aside and renamed."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.blocks import open_plain
from gym_bridge.schemas.rollouts import Row

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (1-based line number, object) of each non-blank line.

    Raises ConfigError for a file that is missing, unreadable or without a line, DataError for a line that is no JSON object.
    """
    found = False
    for number, line in read_lines(path):
        found = True
        yield number, parse_line(line, path=path, line=number)
    if not found:
        raise ConfigError(f"{path}: the file is empty; expected one JSON object a line")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (1-based line number, bytes) of each non-blank line of a plain, gzip or zstd file, with its newline.

    Raises ConfigError when the file cannot be read.
    """
    with open_plain(Path(path)) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def parse_line(text: bytes, *, path: object, line: int | None = None) -> Row:
    """The JSON object of one line; a byte-order mark before it is passed over. Raises DataError with path and line."""
    try:
        value = orjson.loads(text.removeprefix(BYTE_ORDER_MARK))
    except orjson.JSONDecodeError as error:
        raise DataError(f"no JSON: {error.msg} at column {error.colno}", path=path, line=line) from None
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object, found {type(value).__name__}", path=path, line=line)
    return value


def dump_line(row: Any) -> bytes:
    """`row` as one line of JSON with its newline."""
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well and vanishes when it does not."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_path(path.parent)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk: a new file is there after a power failure only when its name is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write `rows` to `path`, whole or not at all; returns how many. Raises ConfigError when the disk refuses."""
    count = 0
    with written_aside(path) as file:
        for row in rows:
            file.write(dump_line(row))
            count += 1
    return count
