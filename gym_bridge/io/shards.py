"""Shards: the lines of one split in several files, each written aside and renamed, with its count and digest."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from gym_bridge.io.digests import digest_file
from gym_bridge.io.jsonl import written_aside
from gym_bridge.schemas.prep_settings import Shard

ZSTD_LEVEL = 9


def shard_sizes(num_rows: int, num_shards: int) -> list[int]:
    """How many rows each shard gets: 7 rows in 3 shards are 3, 2 and 2; 2 rows make 2 shards at most."""
    num_shards = min(num_shards, num_rows)
    return [num_rows // num_shards + (number < num_rows % num_shards) for number in range(num_shards)]


class ShardWriter:
    """Takes the lines of one split in order; a shard that is finished already is passed over.

    `finished` is called with each shard when it is on the disk. An error leaves whole shards and no part of one.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        sizes: list[int],
        compression: str,
        done: dict[str, Shard],
        finished: Callable[[str, Shard], None],
    ):
        self._directory, self._split, self._sizes, self._compression = directory, split, sizes, compression
        self._done, self._finished = done, finished
        self._number, self._rows = 0, 0
        self._stack = ExitStack()
        self._file: Any = None
        self._skipping = False

    def __enter__(self) -> Self:
        self._stack.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, line: bytes) -> None:
        """Add one line, with its newline, to the shard that is open."""
        if self._rows == 0:
            self._open()
        if not self._skipping:
            self._file.write(line)
        self._rows += 1
        if self._rows == self._sizes[self._number]:
            self._close()

    def _open(self) -> None:
        done = self._done.get(self._name)
        path = self._directory / self._name
        self._skipping = done is not None and path.is_file() and digest_file(path) == done.sha256
        if not self._skipping:
            self._file = self._writer(self._stack.enter_context(written_aside(path)))

    def _writer(self, file: BinaryIO) -> Any:
        if self._compression == "none":
            return file
        import zstandard

        return self._stack.enter_context(zstandard.ZstdCompressor(level=ZSTD_LEVEL).stream_writer(file, closefd=False))

    def _close(self) -> None:
        name, path = self._name, self._directory / self._name
        if self._skipping:
            shard = self._done[name]
        else:
            self._stack.close()
            shard = Shard(path=name, rows=self._rows, bytes=path.stat().st_size, sha256=digest_file(path))
        self._finished(self._split, shard)
        self._number, self._rows = self._number + 1, 0

    @property
    def _name(self) -> str:
        suffix = ".jsonl.zst" if self._compression == "zstd" else ".jsonl"
        return f"{self._split}/shard-{self._number:05d}-of-{len(self._sizes):05d}{suffix}"
