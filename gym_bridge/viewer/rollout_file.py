"""A rollouts file with what stands beside it: failures, the tasks as played, token ids, the manifest."""

import itertools
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from gym_bridge.errors import ConfigError
from gym_bridge.io.blocks import read_range
from gym_bridge.io.collection_manifest import CollectionManifest
from gym_bridge.io.jsonl import parse_line
from gym_bridge.io.rollout_log import sibling
from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.io.task_inputs import materialized_inputs_beside, materialized_inputs_of
from gym_bridge.schemas.rollouts import Ledger, Row
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.tokens.rollout_turns import RolloutTurns, token_directory
from gym_bridge.viewer.frame import FAILURES, ROLLOUTS
from gym_bridge.viewer.growing_frame import GrowingFrame
from gym_bridge.viewer.outcomes import failures_of, groups_of, ledger_of, with_outcomes

MAX_DIGITS = 10
"""More than a line's number has."""
_GENERATIONS = itertools.count()
FAILURE_MARK = "f"
"""Before the line of a place in the failures file."""


@dataclass(frozen=True)
class Rows:
    """The rows of a rollouts file as they stood at one look."""

    frame: pl.DataFrame
    """`gym_bridge.viewer.frame.SCHEMA` and the columns of `with_outcomes`; row `n` has the number `n`."""
    requested: int | None
    """How many rollouts were asked for, where a manifest or the tasks as played tell."""
    generation: int
    """No two looks that found something new have the same."""

    @cached_property
    def groups(self) -> pl.DataFrame:
        """See `groups_of`."""
        return groups_of(self.frame)

    @cached_property
    def ledger(self) -> Ledger:
        """How the requested rollouts ended."""
        return ledger_of(self.frame, self.requested)

    @cached_property
    def failures(self) -> pl.DataFrame:
        """See `failures_of`."""
        return failures_of(self.frame)

    def place(self, number: int) -> str:
        """The place of a row, by which it stays known while the file grows: its line, or f and its line among the failures."""
        source, line = self.frame.item(number, "source"), self.frame.item(number, "line")
        return f"{FAILURE_MARK if source == FAILURES else ''}{line}"

    def number(self, place: str) -> int:
        """The number of the row at a place. Raises ConfigError where there is none."""
        source = FAILURES if place.startswith(FAILURE_MARK) else ROLLOUTS
        line = place.removeprefix(FAILURE_MARK)
        if line.isdecimal() and len(line) < MAX_DIGITS:
            found = self.frame.filter((pl.col("source") == source) & (pl.col("line") == int(line)))["number"]
            if len(found):
                return found.item()
        raise ConfigError(f"there is no rollout at {place!r}")

    def group(self, number: int) -> pl.DataFrame:
        """The rollouts of a row's group, retried attempts included, by rollout index and attempt."""
        own = self.frame.item(number, "group")
        if own is None:
            return self.frame.filter(pl.col("number") == number)
        return self.frame.filter(pl.col("group") == own).sort("rollout_index", "attempt", "number")


class RolloutFile:
    """One rollouts file, which may still be written."""

    def __init__(self, path: Path, *, name: str, stack: ExitStack, quiet: bool = True):
        """`name` is what the page calls it. Reads nothing yet; `stack` lets go what is opened later."""
        self.path, self.name = path, name
        self.failures = sibling(path, "_failures.jsonl")
        self._parts = [
            GrowingFrame(path, source=ROLLOUTS, stack=stack, quiet=quiet),
            GrowingFrame(self.failures, source=FAILURES, stack=stack, quiet=quiet),
        ]
        self._lock = threading.Lock()
        self._turns: RolloutTurns | None = None
        self._rows: Rows | None = None
        self._told_at: list[int] = []

    @property
    def inputs(self) -> Path | None:
        """The tasks as they were played, where they stand beside it."""
        return materialized_inputs_of(self.path)

    @property
    def tellers(self) -> list[Path]:
        """The files that tell how many rollouts were asked for."""
        return [sibling(self.path, "_manifest.json"), materialized_inputs_beside(self.path)]

    @property
    def changed_ns(self) -> int:
        """When one of its files had last changed, at the last look."""
        return max(part.changed_ns for part in self._parts)

    def look(self) -> Rows:
        """Its rows as they stand now. Raises ConfigError for a file that cannot be read."""
        with self._lock:
            grown, told_at = [part.look() for part in self._parts], changed_at(self.tellers)
            if self._rows is None or any(grown) or told_at != self._told_at:
                parts = [part.frame for part in self._parts]
                frame = with_outcomes(pl.concat(parts)) if self._rows is None or any(grown) else self._rows.frame
                self._rows = Rows(frame, self._requested(), next(_GENERATIONS))
                self._told_at = told_at
            return self._rows

    def text(self, rows: Rows, number: int) -> bytes:
        """The line of a row. Raises ConfigError for a file that cannot be read any more."""
        return self.read(*(rows.frame.item(number, name) for name in ("source", "offset", "length")))

    def read(self, source: int, offset: int, length: int) -> bytes:
        """Bytes of the rollouts or the failures, by where a row stands. Raises ConfigError as `text` does."""
        part = self._parts[source]
        with self._lock:
            return read_range(part.place or part.path, offset, length)

    def row(self, rows: Rows, number: int) -> Row:
        """A row whole. Raises DataError with path and line for one that is no JSON object."""
        path = self._parts[rows.frame.item(number, "source")].path
        return parse_line(self.text(rows, number), path=path, line=rows.frame.item(number, "line"))

    def turns(self, row: Row, view: RolloutView) -> tuple[TurnTokens, ...]:
        """The model calls of a rollout in token ids; none where nobody reported them. Raises DataError for damaged ones."""
        with self._lock:
            directory = token_directory(self.path)
            if self._turns is None or (directory.is_dir() and not self._turns.files):
                self._turns = RolloutTurns(directory)
            return self._turns.of(row, view)

    def _requested(self) -> int | None:
        """As the manifest of a collection that ended says, else as many as the tasks as played."""
        try:
            manifest = CollectionManifest(self.tellers[0]).read() or {}
        except (ConfigError, OSError):
            manifest = {}
        ledger = manifest.get("ledger")
        if isinstance(ledger, dict) and isinstance(ledger.get("requested"), int):
            return ledger["requested"]
        if self.inputs is None:
            return None
        try:
            with self.inputs.open("rb") as file:
                return sum(1 for line in file if line.strip())
        except OSError:
            return None


def changed_at(paths: Iterable[Path]) -> list[int]:
    """Changes when one of the files does; told without reading them."""
    return list(map(_changed, paths))


def _changed(path: Path) -> int:
    try:
        now = path.stat()
    except OSError:
        return 0
    return now.st_mtime_ns + now.st_size
