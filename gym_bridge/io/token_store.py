"""Token ids and log-probs beside a rollouts file: `R.tokens/chunk-000000.npz`, append-only, no pickle.

A chunk holds the turns of some rollouts: a table with one line a turn, and three flat arrays. Prompts are stored as what they
add to the turn before, so that a long conversation takes room once.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from gym_bridge.errors import DataError
from gym_bridge.schemas.tokens import TurnTokens

TokenKey = tuple[int, int, int]
"""task_index, rollout_index, attempt."""

TABLE = ("task_index", "rollout_index", "attempt", "policy_version", "starts_segment", "num_prompt_delta", "num_completion")


class TokenStore:
    """Reads and writes the token arrays of one rollouts file."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._index: dict[TokenKey, Path] | None = None

    def append(self, rollouts: Sequence[tuple[TokenKey, Sequence[TurnTokens]]]) -> None:
        """Write one chunk and sync it to disk; rollouts without turns are passed over."""
        table: list[tuple[int, ...]] = []
        deltas: list[int] = []
        completions: list[int] = []
        logprobs: list[float] = []
        for key, turns in rollouts:
            before: tuple[int, ...] = ()
            for turn in turns:
                _check(key, turn, before)
                delta = turn.prompt_ids if turn.starts_segment else turn.prompt_ids[len(before) :]
                table.append((*key, turn.policy_version, int(turn.starts_segment), len(delta), len(turn.completion_ids)))
                deltas += delta
                completions += turn.completion_ids
                logprobs += turn.logprobs
                before = turn.all_ids
        if table:
            self._write(np.array(table, dtype=np.int64), deltas, completions, logprobs)

    def read(self, key: TokenKey) -> tuple[TurnTokens, ...]:
        """The turns of one rollout. Raises DataError when the store does not hold it."""
        path = self._locate().get(key)
        if path is None:
            raise DataError(f"holds no tokens of task {key[0]}, rollout {key[1]}, attempt {key[2]}", path=self.directory)
        return _turns(path, key)

    def _write(self, table: np.ndarray, deltas: list[int], completions: list[int], logprobs: list[float]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        last = max(self.directory.glob("chunk-*.npz"), default=None)
        path = self.directory / f"chunk-{int(last.stem.removeprefix('chunk-')) + 1 if last else 0:06d}.npz"
        aside = path.with_suffix(".tmp")
        with aside.open("wb") as file:
            np.savez(
                file,
                table=table,
                prompt_delta_ids=np.array(deltas, dtype=np.int32),
                completion_ids=np.array(completions, dtype=np.int32),
                logprobs=np.array(logprobs, dtype=np.float32),
            )
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_directory(self.directory)
        self._index = None

    def _locate(self) -> dict[TokenKey, Path]:
        if self._index is None:
            self._index = {}
            for path in sorted(self.directory.glob("chunk-*.npz")):
                (table,) = _load(path, "table")
                self._index |= {(int(a), int(b), int(c)): path for a, b, c in table[:, :3]}
        return self._index


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


def _sync_directory(directory: Path) -> None:
    """A new file's name is on disk only when its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _turns(path: Path, key: TokenKey) -> tuple[TurnTokens, ...]:
    turns: list[TurnTokens] = []
    table, deltas, completions, logprobs = _load(path, "table", "prompt_delta_ids", "completion_ids", "logprobs")
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
