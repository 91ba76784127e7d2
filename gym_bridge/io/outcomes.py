"""How every rollout of a log ended, in 16 bytes each: a million rollouts are known in some 20 MB."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from gym_bridge.schemas.rollouts import Ledger, RolloutKey

COMPLETED, TRUNCATED = "completed", "truncated"
NOT_ATTEMPTED = "not attempted"
MAX_RECENT = 16_384

# A rollout's number: how often it failed, two flags, and the code of its outcome's name.
_ATTEMPTS = (1 << 32) - 1
_TERMINAL, _WRITTEN = 1 << 32, 1 << 33
_CODE = 34


class Outcomes(Mapping[RolloutKey, str]):
    """Maps each rollout of a log to `completed`, `truncated` or its failure type."""

    def __init__(self):
        self._values = _Values()
        self._names = [COMPLETED, TRUNCATED]
        self._codes = {COMPLETED: 0, TRUNCATED: 1}
        self._reward_sum = 0.0
        self.num_with_reward = 0
        """Rollouts that have a reward."""

    @property
    def mean_reward(self) -> float:
        """Over all rollouts that have a reward; NaN while there is none."""
        return self._reward_sum / self.num_with_reward if self.num_with_reward else math.nan

    def __getitem__(self, key: RolloutKey) -> str:
        value = self._values.get(key)
        if value is None:
            raise KeyError(key)
        return self._names[value >> _CODE]

    def __iter__(self) -> Iterator[RolloutKey]:
        return (key for key, _ in self._values.items())

    def __len__(self) -> int:
        return len(self._values)

    def is_done(self, key: RolloutKey) -> bool:
        """True when the rollout has a reward."""
        value = self._values.get(key)
        return value is not None and value >> _CODE <= 1

    def is_written(self, key: RolloutKey) -> bool:
        """True when the rollouts file has a row of the rollout, with a reward or, from elsewhere, without."""
        return bool((self._values.get(key) or 0) & _WRITTEN)

    def is_terminal(self, key: RolloutKey) -> bool:
        """True when the rollout failed in a way that another attempt would repeat."""
        value = self._values.get(key)
        return value is not None and value >> _CODE > 1 and bool(value & _TERMINAL)

    def num_failed_attempts(self, key: RolloutKey) -> int:
        """How often the rollout was attempted in vain."""
        return (self._values.get(key) or 0) & _ATTEMPTS

    def next_rollout_index(self, task_index: int) -> int:
        """One more than the largest rollout index of a task, 0 for a task that is not known."""
        return self._values.last_index(task_index) + 1

    def record_reward(self, key: RolloutKey, reward: float, *, truncated: bool) -> None:
        """The rollout has a row with a reward; what failed before is counted still."""
        attempts = self.num_failed_attempts(key)
        self._values.set(key, int(truncated) << _CODE | _WRITTEN | attempts)
        self._reward_sum += reward
        self.num_with_reward += 1

    def record_failure(
        self, key: RolloutKey, name: str, *, attempt: int | None = None, terminal: bool = False, written: bool = False
    ) -> None:
        """One attempt failed; without its number it is the next. `written`: its row stands in the rollouts file."""
        before = self._values.get(key) or 0
        attempts = max(before & _ATTEMPTS, min(attempt, _ATTEMPTS - 1) + 1) if attempt is not None else (before & _ATTEMPTS) + 1
        if before & _WRITTEN:
            self._values.set(key, before & ~_ATTEMPTS | attempts)
            return
        code = self._codes.setdefault(name, len(self._names))
        if code == len(self._names):
            self._names.append(name)
        flags = (before & _TERMINAL) | terminal * _TERMINAL | written * (_WRITTEN | _TERMINAL)
        self._values.set(key, code << _CODE | flags | attempts)

    def ledger(self, requested: Iterable[RolloutKey]) -> Ledger:
        """How the `requested` rollouts ended. They are read once and not held."""
        counts: Counter[int] = Counter()
        missing = -1
        for key in requested:
            value = self._values.get(key)
            counts[missing if value is None else value >> _CODE] += 1
        return Ledger(
            requested=counts.total(),
            completed=counts[0],
            truncated=counts[1],
            failed={self._names[code]: count for code, count in counts.items() if code > 1},
            not_attempted=counts[missing],
        )


class _Values:
    """One number a rollout: in sorted arrays, the newest in a dict until they are merged in.

    Both indices of a rollout are packed into one key; the few that do not fit stand in a dict of their own.
    """

    def __init__(self):
        self._keys = np.empty(0, dtype=np.int64)
        self._values = np.empty(0, dtype=np.int64)
        self._recent: dict[int, int] = {}
        self._recent_last: dict[int, int] = {}
        self._odd: dict[RolloutKey, int] = {}

    def __len__(self) -> int:
        return len(self._keys) + len(self._recent) + len(self._odd)

    def get(self, key: RolloutKey) -> int | None:
        packed = _packed(key)
        if packed is None:
            return self._odd.get(key)
        value = self._recent.get(packed)
        if value is not None:
            return value
        place = self._place(packed)
        return None if place is None else self._values.item(place)

    def set(self, key: RolloutKey, value: int) -> None:
        packed = _packed(key)
        if packed is None:
            self._odd[RolloutKey(*key)] = value
        elif packed not in self._recent and (place := self._place(packed)) is not None:
            self._values[place] = value
        else:
            self._recent[packed] = value
            task, index = key
            self._recent_last[task] = max(index, self._recent_last.get(task, -1))
            if len(self._recent) >= MAX_RECENT:
                self._merge()

    def items(self) -> Iterator[tuple[RolloutKey, int]]:
        for packed, value in zip(self._keys, self._values, strict=True):
            yield _unpacked(int(packed)), int(value)
        for packed, value in self._recent.items():
            yield _unpacked(packed), value
        yield from self._odd.items()

    def last_index(self, task_index: int) -> int:
        """The largest rollout index of a task, -1 without one."""
        last = max((key.rollout_index for key in self._odd if key.task_index == task_index), default=-1)
        last = max(last, self._recent_last.get(task_index, -1))
        if _packed(RolloutKey(task_index, 0)) is None:
            return last
        place = int(self._keys.searchsorted((task_index + 1) << 32)) - 1
        task, index = _unpacked(self._keys.item(place)) if place >= 0 else (None, -1)
        return max(last, index) if task == task_index else last

    def _place(self, packed: int) -> int | None:
        place = int(self._keys.searchsorted(packed))
        return place if place < len(self._keys) and self._keys.item(place) == packed else None

    def _merge(self) -> None:
        keys = np.fromiter(self._recent.keys(), dtype=np.int64, count=len(self._recent))
        values = np.fromiter(self._recent.values(), dtype=np.int64, count=len(self._recent))
        order = keys.argsort()
        places = self._keys.searchsorted(keys[order])
        self._keys = np.insert(self._keys, places, keys[order])
        self._values = np.insert(self._values, places, values[order])
        self._recent, self._recent_last = {}, {}


def _packed(key: RolloutKey) -> int | None:
    task, index = key
    return task << 32 | index if 0 <= task < (1 << 31) - 1 and 0 <= index < 1 << 32 else None


def _unpacked(packed: int) -> RolloutKey:
    return RolloutKey(packed >> 32, packed & 0xFFFFFFFF)
