"""Files of lines, read in blocks: plain, gzip and zstd files, and stdin; each block knows the number of its first line.

A file that a second pass must find its way back into has to be seekable: one that is not is spooled, whole and plain, to a
temporary file.
"""

import gzip
import io
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from gym_bridge.errors import ConfigError

BLOCK_BYTES = 1 << 20
"""A block ends with the line that passes this size."""
COUNTED_BYTES = 1 << 18
NEWLINE = ord("\n")
STDIN = Path("-")
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One input. `path` is what the user named; `place` is the file to read, another one when it was spooled."""

    path: Path
    place: Path
    compression: str | None = None
    """gzip or zstd, told by the first bytes; such a file is read in order only."""

    @property
    def spooled(self) -> bool:
        """True when `place` is a temporary copy."""
        return self.place != self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Whole lines of one source. `data` is left out where the bytes can be read again from `place`."""

    source: int
    first_line: int
    """1-based number of the first line."""
    offset: int
    """Where the block begins in the plain text of the source."""
    length: int
    place: Path
    data: bytes | None

    def read(self) -> bytes:
        """The lines, each with its newline but perhaps the file's last."""
        return self.data if self.data is not None else read_range(self.place, self.offset, self.length)


def read_range(place: Path, offset: int, length: int) -> bytes:
    """`length` bytes of a plain file, from `offset`. Raises ConfigError for a file that cannot be read any more."""
    with RangeReader() as ranges:
        return ranges.read(place, offset, length)


class RangeReader:
    """Reads pieces of plain files, each of which it keeps open until it is closed itself: a `with` block closes it."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def read(self, place: Path, offset: int, length: int) -> bytes:
        """`length` bytes of `place`, from `offset`; fewer where it ends. Raises ConfigError for a file that cannot be read."""
        try:
            if place not in self._files:
                self._files[place] = place.open("rb")
            return os.pread(self._files[place].fileno(), length, offset)
        except OSError as error:
            raise ConfigError(f"{place}: {error.strerror or error}") from error


@contextmanager
def open_sources(paths: Sequence[Path], *, seekable: bool) -> Iterator[list[Source]]:
    """The inputs, `-` for stdin. Spooled are stdin and, where they must be `seekable`, compressed files.

    Raises ConfigError for a file that is missing, a directory, unreadable or damaged.
    """
    with ExitStack() as stack:
        yield [_opened(path, stack, seekable=seekable) for path in paths]


def blocks(sources: Sequence[Source], *, size: int = BLOCK_BYTES, with_data: bool = True) -> Iterator[Block]:
    """All lines of all sources, in order. Without `with_data`, blocks of plain files leave their bytes to be read again."""
    for number, source in enumerate(sources):
        begin = Block(source=number, first_line=1, offset=0, length=0, place=source.place, data=None)
        with open_plain(source.path, place=source.place) as file:
            yield from _blocks_from(begin, file, size=size, with_data=with_data or source.compression is not None)


def appended_blocks(
    place: Path, *, offset: int, first_line: int, size: int = BLOCK_BYTES, with_data: bool = True
) -> Iterator[Block]:
    """The lines of a plain file from `offset` on, where the line `first_line` begins. Raises ConfigError for a file that cannot be
    read."""
    begin = Block(source=0, first_line=first_line, offset=offset, length=0, place=place, data=None)
    with open_plain(place) as file:
        file.seek(offset)
        yield from _blocks_from(begin, file, size=size, with_data=with_data)


def _blocks_from(begin: Block, file: BinaryIO, *, size: int, with_data: bool) -> Iterator[Block]:
    """The blocks of `file`, read from where it stands: where `begin` does."""
    line, offset = begin.first_line, begin.offset
    for data, length, num_lines in _read_blocks(file, size) if with_data else _counted_blocks(file, size):
        yield replace(begin, first_line=line, offset=offset, length=length, data=data)
        line += num_lines
        offset += length


def _read_blocks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Bytes, length and number of newlines of every block."""
    while data := file.read(size):
        data += b"" if data.endswith(b"\n") else file.readline()
        yield data, len(data), data.count(b"\n")


def _counted_blocks(file: Any, size: int) -> Iterator[tuple[None, int, int]]:
    """The same without the bytes, which are looked at in pieces that stay in the processor's cache."""
    buffer = bytearray(min(size, COUNTED_BYTES))
    length, num_lines, last = 0, 0, 0
    while count := file.readinto(buffer):
        length, num_lines, last = length + count, num_lines + buffer.count(b"\n", 0, count), buffer[count - 1]
        if length >= size:
            rest = b"" if last == NEWLINE else file.readline()
            yield None, length + len(rest), num_lines + rest.count(b"\n")
            length, num_lines = 0, 0
    if length:
        yield None, length, num_lines


@contextmanager
def open_plain(path: Path, *, place: Path | None = None) -> Iterator[BinaryIO]:
    """The plain bytes of a plain, gzip or zstd file. It is opened once and read in order, so that a pipe will do.

    `place` is the file to read when it is not `path`. Raises ConfigError, which names `path`, for a file that is missing, a
    directory, unreadable or damaged.
    """
    import zstandard

    compression = None
    try:
        with (place or path).open("rb") as file:
            compression = _compression_of(file)
            if compression == "gzip":
                yield io.BufferedReader(gzip.GzipFile(fileobj=file), BLOCK_BYTES)  # pyright: ignore[reportArgumentType]
            elif compression == "zstd":
                yield io.BufferedReader(_ZstdFile(file), BLOCK_BYTES)
            else:
                yield file
    except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: the {compression} file is damaged or cut off: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def _compression_of(file: io.BufferedReader) -> str | None:
    """gzip or zstd, told by the first bytes, which stay to be read."""
    magic = file.peek(4)
    return next((kind for start, kind in MAGIC.items() if magic.startswith(start)), None)


class _ZstdFile(io.RawIOBase):
    """The plain bytes of a zstd file of any number of frames. Raises EOFError where the last one is cut off, as gzip does."""

    def __init__(self, file: BinaryIO):
        self._file, self._waiting = file, memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the next piece goes."""
        while not self._waiting:
            piece = self._file.read(BLOCK_BYTES >> 3)
            if not piece:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._waiting = memoryview(self._plain(piece))
        count = min(len(buffer), len(self._waiting))
        buffer[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count

    def _plain(self, piece: bytes) -> bytes:
        import zstandard

        plain = []
        while piece:
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            plain.append(self._frame.decompress(piece))
            piece = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        return b"".join(plain)


def _opened(path: Path, stack: ExitStack, *, seekable: bool) -> Source:
    place = _spooled_stdin(stack) if path == STDIN else path
    try:
        if path != STDIN and (path.is_fifo() or path.is_char_device()):  # it gives its bytes but once
            with path.open("rb") as pipe:
                place = _spooled(pipe, stack)
        with place.open("rb") as file:
            compression = _compression_of(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if compression is None or not seekable:
        return Source(path=path, place=place, compression=compression)
    with open_plain(path, place=place) as plain:
        return Source(path=path, place=_spooled(plain, stack))


def _spooled_stdin(stack: ExitStack) -> Path:
    """Raises ConfigError when there is no stdin to read from."""
    if sys.stdin is None:
        raise ConfigError("-: stdin is closed; name a file, or pipe one in")
    try:
        return _spooled(sys.stdin.buffer, stack)
    except OSError as error:
        raise ConfigError(f"-: stdin cannot be read: {error.strerror or error}") from error


def _spooled(file: BinaryIO, stack: ExitStack) -> Path:
    """A temporary copy of `file`, removed when `stack` ends. Raises ConfigError when there is no room for it, and what reading
    `file` raises."""
    with told_as_spooling():
        spool = tempfile.NamedTemporaryFile(prefix="gym-bridge-", suffix=".jsonl")  # noqa: SIM115 - closed by the stack
    stack.callback(_removed, spool)
    while piece := file.read(BLOCK_BYTES):
        with told_as_spooling():
            spool.write(piece)
    with told_as_spooling():
        spool.flush()
    return Path(spool.name)


@contextmanager
def told_as_spooling() -> Iterator[None]:
    """Raises ConfigError in place of what a temporary file raises when there is no room for it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot spool to {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a place with room") from error


def _removed(spool: Any) -> None:
    """Closing removes the file, even where what it still holds cannot be written."""
    with suppress(OSError):
        spool.close()
