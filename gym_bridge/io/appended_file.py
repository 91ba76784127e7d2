"""A file that grows by whole lines: a write that the disk or a signal cuts short is taken back, and may be tried again."""

import logging
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import sync_path
from gym_bridge.io.locks import lock

BLOCK = 1 << 16

log = logging.getLogger(__name__)


class AppendedFile:
    """Lines wait in memory until `sync` brings them to the disk in one write, all or none of them."""

    def __init__(self, path: Path):
        self.path = path
        self.size = 0
        """Length of what is whole, in bytes."""
        self._file: FileIO | None = None
        self._waiting: list[bytes] = []
        self._is_torn = False
        """What stands behind `size` was never synced."""

    def open(self, *, exclusive: bool = False) -> None:
        """Open or make the file; one that is not opened is made by the first sync.

        `exclusive` locks it for as long as it is open. Raises OSError, or ConfigError when somebody else holds the lock.
        """
        is_new = not self.path.exists()
        file = FileIO(self.path, "a+")
        try:
            if exclusive:
                lock(file.fileno(), self.path)
            self.size = os.fstat(file.fileno()).st_size
            if is_new:
                sync_path(self.path.parent)
        except BaseException:
            file.close()
            raise
        self._file = file

    def cut_torn_tail(self) -> None:
        """Cut what follows the last newline: a kill left it there."""
        size = _whole_size(self._descriptor, self.size)
        if size < self.size:
            log.warning("%s: cut a torn last line of %d bytes", self.path, self.size - size)
            os.ftruncate(self._descriptor, size)
            self.size = size

    def add(self, line: bytes) -> None:
        """Take a line, its newline included; it is on the disk after the next sync that ends well."""
        self._waiting.append(line)

    def sync(self) -> None:
        """Write what waits and bring it to the disk.

        Raises OSError when the disk refuses: the file is then as before, and what waits waits still. Raises ConfigError when
        another program has written, replaced or removed the file.
        """
        if not self._waiting:
            return
        if self._file is None:
            self.open()
        if self._is_torn:
            self._take_back()
        self._check_ours()
        lines = b"".join(self._waiting)
        size = self.size + len(lines)
        self._is_torn = True
        try:
            self._write(lines)
            self.size, self._waiting, self._is_torn = size, [], False
        except BaseException:  # Ctrl-C too: the next sync would write the lines a second time
            with suppress(OSError):
                self._take_back()
            raise

    def clear(self) -> None:
        """Empty the file."""
        os.ftruncate(self._descriptor, 0)
        self.size = 0

    def close(self) -> None:
        """Release the file and its lock; what waits is lost."""
        if self._file:
            self._file.close()

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._file is not None and self._file.closed

    @property
    def _descriptor(self) -> int:
        if self._file is None:
            raise ValueError(f"{self.path} is not open")
        return self._file.fileno()

    def _write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)

    def _take_back(self) -> None:
        os.ftruncate(self._descriptor, self.size)
        self._is_torn = False

    def _check_ours(self) -> None:
        own = os.fstat(self._descriptor)
        try:
            same = os.path.samestat(own, self.path.stat())
        except FileNotFoundError:
            same = False
        if not same or own.st_size != self.size:
            found = f"{own.st_size} bytes, expected {self.size}" if same else "another file, or none"
            raise ConfigError(f"{self.path} was changed by another program while it was being written: found {found}")


def _whole_size(descriptor: int, size: int) -> int:
    """Length up to and with the last newline of a file of `size` bytes."""
    while size > 0:
        start = max(0, size - BLOCK)
        newline = os.pread(descriptor, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0
