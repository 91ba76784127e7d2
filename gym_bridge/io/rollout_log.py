"""The durable log of a collection: `R.jsonl`, `R_failures.jsonl`, `R_materialized_inputs.jsonl`, `R_manifest.json`, `R.tokens/`.

Append-only. Rows are gathered until SYNC_ROWS of them wait, or one comes SYNC_S seconds after the last sync; then their tokens
are synced, then the rows themselves. A torn last line, left by a kill or a full disk, is cut when the log is opened again.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import dump_line, parse_line, read_lines, write_jsonl, written_aside
from gym_bridge.io.token_store import TokenStore
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, FAILURE_CLASS, ROLLOUT_INDEX, TASK_INDEX, Ledger, Rollout, RolloutKey, Row

SYNC_S = 1.0
SYNC_ROWS = 64
FINISHED = ("completed", "truncated")
NOT_ATTEMPTED = "not attempted"

log = logging.getLogger(__name__)


def sibling(output: Path, suffix: str) -> Path:
    """The file that belongs to the rollouts file `output`: sibling("x/R.jsonl", "_failures.jsonl") is x/R_failures.jsonl."""
    return output.with_name(output.stem + suffix)


class RolloutLog:
    """Writes finished rollouts and knows which ones an earlier run of the same command finished."""

    def __init__(self, output: Path, *, identity: Mapping[str, Any], overwrite: bool = False):
        """Open or begin the log. `identity` holds what must not change between runs: tasks digest, model, server, settings.

        Raises ConfigError when the log on disk has another identity and `overwrite` is not set, or cannot be written, DataError
        for a line of it that is no row.
        """
        self.output = output
        self.failures = sibling(output, "_failures.jsonl")
        self.tokens = TokenStore(output.with_name(output.stem + ".tokens"))
        self.outcomes: dict[RolloutKey, str] = {}
        """`completed`, `truncated` or the failure type of every rollout in the log."""
        self.num_failed_attempts: Counter[RolloutKey] = Counter()
        self._next_index: dict[int, int] = {}
        self._pending: list[Rollout] = []
        self._synced_at = time.monotonic()
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self._discard()
            self._check_identity(orjson.loads(orjson.dumps(dict(identity))))
            self._read_back()
        except OSError as error:
            raise ConfigError(f"cannot write {output}: {error.strerror}") from error

    def append(self, rollout: Rollout) -> None:
        """Take one finished rollout; it is on disk after the next sync."""
        self._pending.append(rollout)
        self._note(rollout.row)
        if len(self._pending) >= SYNC_ROWS or time.monotonic() - self._synced_at > SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Bring everything taken so far to the disk. Raises ConfigError when the disk is full."""
        pending, self._pending = self._pending, []
        try:
            self.tokens.append(
                [((one.key.task_index, one.key.rollout_index, one.attempt), one.turns) for one in pending if one.failure is None]
            )
            _append(self.output, (one.row for one in pending if one.failure is None))
            _append(self.failures, (one.row for one in pending if one.failure is not None))
        except OSError as error:
            raise ConfigError(f"cannot write {self.output}: {error.strerror}; what was synced before is whole") from error
        self._synced_at = time.monotonic()

    def write_inputs(self, rows: Iterable[Row]) -> None:
        """Write the rows to be played, as NeMo Gym does, unless an earlier run did."""
        path = sibling(self.output, "_materialized_inputs.jsonl")
        if not path.exists():
            write_jsonl(path, rows)

    def next_rollout_index(self, task_index: int) -> int:
        """The first rollout index of a task that the log does not hold."""
        return self._next_index.get(task_index, 0)

    def is_done(self, key: RolloutKey) -> bool:
        """True when the log holds the rollout with a reward."""
        return self.outcomes.get(key) in FINISHED

    def ledger(self, requested: Iterable[RolloutKey]) -> Ledger:
        """How the `requested` rollouts ended."""
        ended = Counter(self.outcomes.get(key, NOT_ATTEMPTED) for key in requested)
        failed = {name: count for name, count in ended.items() if name not in (*FINISHED, NOT_ATTEMPTED)}
        return Ledger(
            requested=ended.total(),
            completed=ended["completed"],
            truncated=ended["truncated"],
            failed=failed,
            not_attempted=ended[NOT_ATTEMPTED],
        )

    def rows(self) -> Iterable[Row]:
        """The finished rows on disk."""
        if self.output.exists():
            for number, line in read_lines(self.output):
                yield parse_line(line, path=self.output, line=number)

    def _discard(self) -> None:
        for path in (*self._files(), sibling(self.output, "_manifest.json")):
            path.unlink(missing_ok=True)
        for chunk in self.tokens.directory.glob("chunk-*"):
            chunk.unlink()

    def _files(self) -> tuple[Path, ...]:
        return self.output, self.failures, sibling(self.output, "_materialized_inputs.jsonl")

    def _check_identity(self, identity: dict[str, Any]) -> None:
        path = sibling(self.output, "_manifest.json")
        if path.exists():
            before = _identity_in(path)
            differs = sorted(key for key in before | identity if before.get(key) != identity.get(key))
            if differs and self._is_empty():  # the earlier command stopped before its first rollout: nothing is lost
                self._discard()
                self._check_identity(identity)
            elif differs:
                what = "; ".join(f"{key}: {before.get(key)!r} then, {identity.get(key)!r} now" for key in differs)
                raise ConfigError(
                    f"{self.output} was begun by another command ({what}); choose another --output or pass --overwrite"
                )
        elif found := next((one for one in (*self._files(), *self.tokens.directory.glob("chunk-*.npz")) if one.exists()), None):
            raise ConfigError(f"{found} exists and was not begun here; choose another --output or pass --overwrite")
        else:
            with written_aside(path) as file:
                file.write(orjson.dumps({"identity": identity}, option=orjson.OPT_INDENT_2))

    def _is_empty(self) -> bool:
        return not any(path.exists() and path.stat().st_size for path in (self.output, self.failures))

    def _read_back(self) -> None:
        for path in (self.failures, self.output):
            if path.exists():
                _cut_torn_tail(path)
                for number, line in read_lines(path):
                    row = parse_line(line, path=path, line=number)
                    if type(row.get(TASK_INDEX)) is not int or type(row.get(ROLLOUT_INDEX)) is not int:
                        raise DataError(f"no {TASK_INDEX} and {ROLLOUT_INDEX}: not written here", path=path, line=number)
                    self._note(row)

    def _note(self, row: Row) -> None:
        key = RolloutKey(row[TASK_INDEX], row[ROLLOUT_INDEX])
        failure = row.get(FAILURE_CLASS)
        if failure:
            self.num_failed_attempts[key] = max(self.num_failed_attempts[key], row.get(ATTEMPT_INDEX, 0) + 1)
        truncated = (row.get("gym_bridge") or {}).get("truncated")
        self.outcomes[key] = failure or ("truncated" if truncated else "completed")
        self._next_index[key.task_index] = max(self._next_index.get(key.task_index, 0), key.rollout_index + 1)


def _identity_in(manifest: Path) -> Row:
    try:
        found = orjson.loads(manifest.read_bytes())
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("identity"), dict):
        raise ConfigError(f"{manifest} is no manifest of a collection; choose another --output or pass --overwrite")
    return found["identity"]


def _append(path: Path, rows: Iterable[Row]) -> None:
    lines = b"".join(dump_line(row) for row in rows)
    if lines:
        with path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_tail(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep, block = size, 1 << 16
        while keep > 0:
            start = max(0, keep - block)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            keep = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if keep < size:
            log.warning("%s: cut a torn last line of %d bytes", path, size - keep)
            file.truncate(keep)
