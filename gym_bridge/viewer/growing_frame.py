"""The frame of one file of rows that may still be written: each look takes in the lines that were appended since."""

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import polars as pl

from gym_bridge.errors import ConfigError
from gym_bridge.io.blocks import appended_blocks, open_sources
from gym_bridge.io.progress import Progress
from gym_bridge.transforms.parallel import Processes
from gym_bridge.viewer import frame as frames
from gym_bridge.viewer import stored_frames
from gym_bridge.viewer.frame import SCHEMA, FrameMaker
from gym_bridge.viewer.stored_frames import NOTHING, Extent, keep_frame, load_frame, marks_of

TOLD_FROM_BYTES = 1 << 28
"""Less is read within seconds."""
PROCESSES_FROM_BYTES = 1 << 26
MAX_PROCESSES = 8
PART_BYTES = 1 << 22
"""A block that another process reads."""


class GrowingFrame:
    """The rows of a file by place."""

    def __init__(self, path: Path, *, source: int, stack: ExitStack, quiet: bool = True):
        """Reads nothing yet. `stack` removes the plain copy of a compressed file. Unless `quiet`, a long look is
        told on stderr."""
        self.path, self._source, self._quiet = path, source, quiet
        self._copy = stack.enter_context(ExitStack())
        self.place: Path | None = None
        """The file to read rows from: the path, or a plain copy; None before there is a file."""
        self.frame = pl.DataFrame(schema=SCHEMA)
        self._extent = NOTHING
        self._marks = ""
        self._kept_bytes = 0

    @property
    def changed_ns(self) -> int:
        """When the file had last changed at the last look; 0 without a file."""
        return self._extent.changed_ns

    def look(self) -> bool:
        """Take in what is new, True when there was something. A file that another took the place of is read again.

        A last line that is cut off waits for its end. Raises ConfigError for a file that cannot be read.
        """
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from error
        if self._is_at(now):
            return False
        if self.place != self.path or now.st_size <= self._extent.size or self._was_replaced():
            self._begin()
        if not self._is_at(now):
            self._take(now)
        return True

    def _is_at(self, now: os.stat_result) -> bool:
        return (now.st_mtime_ns, now.st_size) == (self._extent.changed_ns, self._extent.size)

    def _was_replaced(self) -> bool:
        """True where what was read is not what the file begins with."""
        return marks_of(self.path, self._extent.num_bytes) != self._marks

    def _begin(self) -> None:
        self._copy.close()
        (source,) = self._copy.enter_context(open_sources([self.path], seekable=True))
        self.place, self.frame, self._extent, self._kept_bytes = source.place, pl.DataFrame(schema=SCHEMA), NOTHING, 0
        if not source.spooled and (kept := load_frame(self.path)) is not None:
            self.frame, self._extent = kept
            self._kept_bytes = self._extent.num_bytes
            self._marks = marks_of(self.path, self._extent.num_bytes)

    def _take(self, now: os.stat_result) -> None:
        """Read on from where the last look ended."""
        assert self.place is not None, "it was opened"
        end, next_line = self._extent.num_bytes, self._extent.next_line
        waiting = self.place.stat().st_size - end
        num = min(MAX_PROCESSES, os.cpu_count() or 1) if waiting >= PROCESSES_FROM_BYTES else 1
        parts = [self.frame]
        with (
            Processes(num, imports=[frames.__name__]) as workers,
            Progress(
                f"index of {self.path.name}: MiB read", total=waiting >> 20, quiet=self._quiet or waiting < TOLD_FROM_BYTES
            ) as progress,
        ):
            options = {"with_data": True} if num == 1 else {"with_data": False, "size": PART_BYTES}
            blocks = appended_blocks(self.place, offset=end, first_line=next_line, **options)
            for framed in workers.ordered_map(partial(FrameMaker, self._source), blocks):
                parts.append(framed.frame)
                end, next_line = framed.end, framed.next_line
                progress.advance({}, count=((end - self._extent.num_bytes) >> 20) - progress.done)
        self.frame = pl.concat(parts, rechunk=True)
        self._extent = Extent(num_bytes=end, next_line=next_line, size=now.st_size, changed_ns=now.st_mtime_ns)
        if self.place == self.path:
            self._marks = marks_of(self.path, end)
            if end - self._kept_bytes >= stored_frames.KEPT_FROM_BYTES:
                keep_frame(self.path, self.frame, self._extent)
                self._kept_bytes = end
