"""How the tasks of a set stand with the policy: unseen, learning, solved or hopeless; and which of them rest."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gym_bridge.schemas.settings import CurriculumSettings

UNSEEN, LEARNING, SOLVED, HOPELESS = range(4)
NAMES = ("unseen", "learning", "solved", "hopeless")


class TaskPools:
    """What the last group of each task came to. Solved and hopeless tasks rest for `skip_passes` passes after it."""

    def __init__(self, count: int, settings: CurriculumSettings):
        self._settings = settings
        self._pools = np.zeros(count, dtype=np.uint8)
        self._wakes = np.zeros(count, dtype=np.int64)  # the first pass in which a task is taken again
        self._num_woken = 0

    def note(self, position: int, rewards: Sequence[float], *, pass_number: int) -> None:
        """A group of the task was played in a pass; without any reward it says nothing."""
        if not rewards:
            return
        share = sum(reward >= self._settings.solved_reward for reward in rewards) / len(rewards)
        if share >= self._settings.skip_above:
            pool = SOLVED
        elif share <= self._settings.skip_below and (share > 0 or min(rewards) == max(rewards)):
            pool = HOPELESS  # rewards below solved_reward that differ teach something still
        else:
            pool = LEARNING
        self._pools[position] = pool
        self._wakes[position] = 0 if pool == LEARNING else self._end_of_rest(pass_number)

    def is_awake(self, position: int, pass_number: int) -> bool:
        """Whether the task may be taken in a pass."""
        return bool(self._wakes[position] <= pass_number)

    def any_awake(self, pass_number: int) -> bool:
        """Whether some task may be taken in a pass."""
        return bool(self._wakes.min() <= pass_number)

    def wake_first(self, pass_number: int) -> int:
        """The task that is to wake first, for a pass in which all rest; its rest begins anew."""
        position = int(self._wakes.argmin())
        self._wakes[position] = self._end_of_rest(pass_number)
        self._num_woken += 1
        return position

    def counts(self) -> dict[str, int]:
        """Tasks in each pool, and as `woken` how often one was taken before its time because all rested."""
        counts = np.bincount(self._pools, minlength=len(NAMES)).tolist()
        return {**dict(zip(NAMES, counts, strict=True)), "woken": self._num_woken}

    def state_dict(self) -> dict[str, Any]:
        """Plain values: positions of the learning tasks, and those of each other pool by the pass in which they wake."""
        return {
            "learning": np.flatnonzero(self._pools == LEARNING).tolist(),
            "solved": self._by_waking(SOLVED),
            "hopeless": self._by_waking(HOPELESS),
            "num_woken": self._num_woken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the pools of `state`."""
        self._pools[:], self._wakes[:] = UNSEEN, 0
        self._pools[state["learning"]] = LEARNING
        for pool in (SOLVED, HOPELESS):
            for wakes, positions in state[NAMES[pool]].items():
                self._pools[positions], self._wakes[positions] = pool, int(wakes)
        self._num_woken = int(state["num_woken"])

    def _end_of_rest(self, pass_number: int) -> int:
        return pass_number + self._settings.skip_passes + 1

    def _by_waking(self, pool: int) -> dict[str, list[int]]:
        positions = np.flatnonzero(self._pools == pool)
        wakes = self._wakes[positions]
        return {str(one): positions[wakes == one].tolist() for one in np.unique(wakes).tolist()}
