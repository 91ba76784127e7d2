"""Ranked groups without numbers: somebody says which rollouts of a group are better, and no reward is asked for.

A file has one group a line, of rollouts with their token ids in them, or of keys of the rollouts of another file:

    {"rollouts": [ROW, ROW, ROW], "ranks": [0, 1, 1]}
    {"rollouts": [{"_ng_task_index": 4, "_ng_rollout_index": 0}, ...], "ranks": [0, 1, 1], "rollouts_path": "rollouts.jsonl"}

`ranks[i]` is the rank of `rollouts[i]`: 0 is best, equal numbers are ties; 0, 1, 1, 2 and 0, 1, 1, 3 are the same. The rollouts are
siblings: of one task, begun by one version of the policy. `rollouts_path` is found from the directory of the file itself; the
rollouts need no reward. What trains as reward is the share of the siblings that a rollout beats, a tie counted half.
"""

from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gym_bridge.algorithms.advantages import rank_rewards
from gym_bridge.errors import ConfigError, DataError, nearest
from gym_bridge.io.blocks import RangeReader, open_plain, open_sources
from gym_bridge.io.jsonl import parse_line, read_jsonl
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, Rollout, RolloutKey, Row
from gym_bridge.tokens.rollout_turns import RolloutTurns, token_directory
from gym_bridge.trainers.experience import version_of
from gym_bridge.trainers.group_stream import PlayedGroup
from gym_bridge.trainers.stored_groups import played_group
from gym_bridge.trainers.stored_rollouts import WITHOUT_REWARD, StoredRollouts, read_rollout, rollout_files, told_at

ROLLOUTS, RANKS, ROLLOUTS_PATH = KEYS = ("rollouts", "ranks", "rollouts_path")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranking:
    """One line of a file of groups."""

    members: Sequence[Row]
    """Rows, or with `path` their keys."""
    ranks: Sequence[int]
    path: str | None


class RankedGroups:
    """The groups of one file in the order of its lines. All are checked at first; rows and token ids stay on disk."""

    def __init__(self, path: Path):
        """Raises ConfigError for a file that cannot be read or has no line, DataError with path and line for a group that is wrong
        and for a rollout that cannot train."""
        self.path = path
        self._turns = RolloutTurns(token_directory(path))
        self._rollouts: dict[Path, StoredRollouts] = {}
        self._stack = ExitStack()
        try:
            (self._source,) = self._stack.enter_context(open_sources([path], seekable=True))
            self._lines, self._offsets, self._lengths = self._index()
            self._ranges = self._stack.enter_context(RangeReader())
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, number: int) -> PlayedGroup:
        """One group. Raises DataError where the file has changed since it was opened."""
        text = self._ranges.read(self._source.place, self._offsets.item(number), self._lengths.item(number))
        return self._group(text, self._lines.item(number))

    def close(self) -> None:
        """Let the files go."""
        for one in self._rollouts.values():
            one.close()
        self._stack.close()

    def _index(self) -> np.ndarray:
        """[3, groups] int64: line, offset and length."""
        found, offset = array("q"), 0
        with open_plain(self.path, place=self._source.place) as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    self._group(text, line)
                    found.extend((line, offset, len(text)))
                offset += len(text)
        if not found:
            raise ConfigError(f"{self.path}: the file is empty; expected one group a line")
        return np.array(found, dtype=np.int64).reshape(-1, 3).T

    def _group(self, text: bytes, line: int) -> PlayedGroup:
        with told_at(self.path, line):
            ranking = _ranking(parse_line(text, path=None))
            members = [self._member(row, ranking.path) for row in ranking.members]
            _check_siblings(members)
            rewards = rank_rewards(ranking.ranks)
        rollouts = [replace(one, row={**one.row, "reward": reward}) for one, reward in zip(members, rewards, strict=True)]
        rollouts.sort(key=lambda one: one.key)
        return played_group(tuple(rollouts), version=version_of(rollouts[0]), path=self.path)

    def _member(self, row: Row, path: str | None) -> Rollout:
        if path is None:
            found = read_rollout(row, self._turns, ignored=WITHOUT_REWARD)
            if isinstance(found, str):
                raise DataError(f"a rollout of the group cannot train: {found}; leave it out and rank the others")
            return found
        rollouts, key = self._file(path), _key(row)
        number = rollouts.find(key)
        if number is None:
            raise DataError(
                f"{rollouts.path} has no task {key.task_index}, rollout {key.rollout_index} that can train; leave it out and rank "
                "the others"
            )
        return rollouts.read(number)

    def _file(self, name: str) -> StoredRollouts:
        path = self.path.parent / name
        if path not in self._rollouts:
            self._rollouts[path] = StoredRollouts(path, needs_reward=False)
        return self._rollouts[path]


def ranked_files(path: Path) -> list[Path]:
    """All files that the groups of `path` are made of: itself, and the rollouts files that it names with their token stores.

    Raises ConfigError for a file that cannot be read, DataError for a line that is no JSON object.
    """
    names = dict.fromkeys(name for _, row in read_jsonl(path) if isinstance(name := row.get(ROLLOUTS_PATH), str))
    return [*rollout_files(path), *(file for name in names for file in rollout_files(path.parent / name))]


def _ranking(line: Row) -> _Ranking:
    """Raises DataError, without path and line, for anything but one of the two forms."""
    if unknown := sorted(set(line) - set(KEYS)):
        raise DataError(f"unknown key {unknown[0]!r}{nearest(unknown[0], KEYS)}; a group has {', '.join(KEYS)}")
    members, ranks, path = line.get(ROLLOUTS), line.get(RANKS), line.get(ROLLOUTS_PATH)
    if not isinstance(members, list) or not members or not all(isinstance(one, dict) for one in members):
        raise DataError(f"{ROLLOUTS!r} must be a list of one rollout at least: rows, or keys with {ROLLOUTS_PATH!r}")
    if not isinstance(ranks, list) or len(ranks) != len(members):
        raise DataError(f"{RANKS!r} must be a list of {len(members)} ranks, one for each of {ROLLOUTS!r}")
    if not all(type(one) is int and 0 <= one < len(ranks) for one in ranks) or 0 not in ranks:
        raise DataError(
            f"{RANKS!r} is {ranks}; expected whole numbers from 0, which is best and must be there, to {len(ranks) - 1}"
        )
    if path is not None and not isinstance(path, str):
        raise DataError(f"{ROLLOUTS_PATH!r} is {path!r}; expected the path of a rollouts file")
    if path is None and any(_is_key(one) for one in members):
        raise DataError(f"a rollout is told by its key alone, and there is no {ROLLOUTS_PATH!r} to find it in")
    return _Ranking(members=members, ranks=ranks, path=path)


def _check_siblings(members: Sequence[Rollout]) -> None:
    """Raises DataError, without path and line, for rollouts that do not make a group."""
    for name, values in (
        ("tasks", {one.key.task_index for one in members}),
        ("policy versions", {version_of(one) for one in members}),
    ):
        if len(values) > 1:
            raise DataError(f"the rollouts are of {name} {', '.join(map(str, sorted(values)))}; a group has but one")
    if len({one.key for one in members}) < len(members):
        raise DataError("a rollout stands twice in the group; rank it once")


def _is_key(row: Row) -> bool:
    return set(row) <= {TASK_INDEX, ROLLOUT_INDEX}


def _key(row: Row) -> RolloutKey:
    values: list[Any] = [row.get(TASK_INDEX), row.get(ROLLOUT_INDEX)]
    if not _is_key(row) or not all(type(one) is int for one in values):
        raise DataError(f"with {ROLLOUTS_PATH!r} a rollout is told by its {TASK_INDEX} and {ROLLOUT_INDEX} alone")
    return RolloutKey(*values)
