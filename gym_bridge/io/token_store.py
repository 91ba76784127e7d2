"""Token ids and log-probs beside a rollouts file: `R.tokens/chunk-000000.npz`, append-only, no pickle.

A chunk holds the turns of some rollouts: a table with one line a turn, and three flat arrays. Prompts are stored as what they
add to the turn before, so that a long conversation takes room once.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from gym_bridge.errors import DataError
from gym_bridge.io.jsonl import sync_path
from gym_bridge.schemas.tokens import TurnTokens

TokenKey = tuple[int, int, int]
"""task_index, rollout_index, attempt."""

TABLE = ("task_index", "rollout_index", "attempt", "policy_version", "starts_segment", "num_prompt_delta", "num_completion")
ARRAYS = ("table", "prompt_delta_ids", "completion_ids", "logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTurns:
    """The turns of one rollout as a chunk holds them."""

    table: np.ndarray  # [turns, 7] int64, columns as in TABLE
    prompt_delta_ids: np.ndarray  # int32
    completion_ids: np.ndarray  # int32
    logprobs: np.ndarray  # float32


def pack_turns(key: TokenKey, turns: Sequence[TurnTokens]) -> PackedTurns:
    """The turns of a rollout, ready to be written. Raises DataError for turns that would not read back as they are."""
    table: list[tuple[int, ...]] = []
    deltas: list[int] = []
    before: tuple[int, ...] = ()
    for turn in turns:
        _check(key, turn, before)
        delta = turn.prompt_ids if turn.starts_segment else turn.prompt_ids[len(before) :]
        table.append((*key, turn.policy_version, int(turn.starts_segment), len(delta), len(turn.completion_ids)))
        deltas += delta
        before = turn.all_ids
    return PackedTurns(
        table=np.array(table, dtype=np.int64).reshape(-1, len(TABLE)),
        prompt_delta_ids=np.array(deltas, dtype=np.int32),
        completion_ids=np.array([id for turn in turns for id in turn.completion_ids], dtype=np.int32),
        logprobs=np.array([logprob for turn in turns for logprob in turn.logprobs], dtype=np.float32),
    )


class TokenStore:
    """Reads and writes the token arrays of one rollouts file. One process writes, any number may read meanwhile."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._next_number: int | None = None
        self._index = _ChunkIndex(directory)
        self._loaded: tuple[Path, list[np.ndarray]] | None = None
        """The chunk read last: rows come in the order of the chunks."""

    def append(self, rollouts: Sequence[tuple[TokenKey, Sequence[TurnTokens]]]) -> None:
        """Write one chunk and sync it to disk, or leave no trace of it; rollouts without turns are passed over."""
        self.append_packed([pack_turns(key, turns) for key, turns in rollouts])

    def append_packed(self, rollouts: Sequence["PackedTurns"]) -> None:
        """Write one chunk as `append` does. Raises OSError."""
        held = [one for one in rollouts if len(one.table)]
        if not held:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._next_number is None:
            self._next_number = max((_number(path) + 1 for path in self.chunks()), default=0)
        path = self.directory / f"chunk-{self._next_number:06d}.npz"
        aside = path.with_suffix(".tmp")
        try:
            with aside.open("wb") as file:
                np.savez(
                    file,
                    table=np.concatenate([one.table for one in held]),
                    prompt_delta_ids=np.concatenate([one.prompt_delta_ids for one in held]),
                    completion_ids=np.concatenate([one.completion_ids for one in held]),
                    logprobs=np.concatenate([one.logprobs for one in held]),
                )
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            self._next_number += 1
        finally:
            aside.unlink(missing_ok=True)  # on a full disk it would take the room of the next attempt
        sync_path(self.directory)
        self._index.outdate()

    def read(self, key: TokenKey) -> tuple[TurnTokens, ...]:
        """The turns of one rollout. Raises DataError when the store does not hold it."""
        path = self._index.find(key)
        turns = _turns(self._load(path), key) if path else ()
        if not turns:
            raise DataError(f"holds no tokens of task {key[0]}, rollout {key[1]}, attempt {key[2]}", path=self.directory)
        return turns

    def chunks(self) -> list[Path]:
        """The chunks, oldest first."""
        return _chunks(self.directory)

    def discard(self) -> None:
        """Remove every chunk."""
        for path in self.directory.glob("chunk-*"):
            path.unlink()
        self._next_number, self._loaded = None, None
        self._index = _ChunkIndex(self.directory)

    def _load(self, path: Path) -> list[np.ndarray]:
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = path, _load(path, *ARRAYS)
        return self._loaded[1]


class _ChunkIndex:
    """Which chunk holds a rollout: four sorted columns of integers, 32 bytes a rollout. New chunks are taken in as they come."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._columns = np.empty((4, 0), dtype=np.int64)  # task_index, rollout_index, attempt, number of the chunk
        self._paths: dict[int, Path] = {}
        self._changed_at = -1

    def find(self, key: TokenKey) -> Path | None:
        """The newest chunk with the rollout: what an older one has was never synced together with its row."""
        self._refresh()
        found = self._newest(key)
        if found is None:  # the clock of a directory is too coarse to show every change
            self.outdate()
            self._refresh()
            found = self._newest(key)
        return found

    def outdate(self) -> None:
        """The next look-up reads the directory again."""
        self._changed_at = -1

    def _newest(self, key: TokenKey) -> Path | None:
        low, high = 0, self._columns.shape[1]
        for column, wanted in zip(self._columns[:3], key, strict=True):
            part = column[low:high]
            low, high = low + int(part.searchsorted(wanted)), low + int(part.searchsorted(wanted, side="right"))
        return self._paths[self._columns[3].item(high - 1)] if low < high else None

    def _refresh(self) -> None:
        try:
            changed_at = self.directory.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_at == self._changed_at:
            return
        added = [self._columns]
        for path in _chunks(self.directory):
            number = _number(path)
            if number not in self._paths:
                added.append(_keys(path, number))
                self._paths[number] = path
        columns = np.concatenate(added, axis=1)
        self._columns = np.ascontiguousarray(columns[:, np.lexsort(columns[::-1])])
        self._changed_at = changed_at


def _keys(path: Path, number: int) -> np.ndarray:
    """[4, rollouts of a chunk]: their keys and the chunk's number."""
    (table,) = _load(path, "table")
    keys = table[:, :3]
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return np.vstack([keys[is_first].T, np.full(int(is_first.sum()), number)])


def _chunks(directory: Path) -> list[Path]:
    return sorted(directory.glob("chunk-*.npz"), key=_number)


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("chunk-")
    if not digits.isdecimal():
        raise DataError("no chunk of token arrays: its name has no number", path=path)
    return int(digits)


def _check(key: TokenKey, turn: TurnTokens, before: tuple[int, ...]) -> None:
    """Raises DataError for a turn that would not read back as it is."""
    if len(turn.logprobs) != len(turn.completion_ids):
        raise DataError(f"rollout {key}: {len(turn.completion_ids)} sampled tokens with {len(turn.logprobs)} log-probs")
    if not turn.starts_segment and turn.prompt_ids[: len(before)] != before:
        raise DataError(f"rollout {key}: a prompt that does not begin with the turn before starts no segment")


def _load(path: Path, *names: str) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as chunk:
            return [chunk[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"no chunk of token arrays: {error}", path=path) from error


def _turns(chunk: list[np.ndarray], key: TokenKey) -> tuple[TurnTokens, ...]:
    turns: list[TurnTokens] = []
    table, deltas, completions, logprobs = chunk
    delta_ends, completion_ends = table[:, 5].cumsum(), table[:, 6].cumsum()
    for line in np.flatnonzero((table[:, :3] == key).all(axis=1)):
        starts = bool(table[line, 4])
        delta = deltas[delta_ends[line] - table[line, 5] : delta_ends[line]].tolist()
        own = slice(completion_ends[line] - table[line, 6], completion_ends[line])
        turns.append(
            TurnTokens(
                prompt_ids=(() if starts or not turns else turns[-1].all_ids) + tuple(delta),
                completion_ids=tuple(completions[own].tolist()),
                logprobs=tuple(logprobs[own].tolist()),
                policy_version=int(table[line, 3]),
                starts_segment=starts,
            )
        )
    return tuple(turns)
