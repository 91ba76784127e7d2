"""Groups that were played before, in place of playing: offline steps from stored token ids and log-probs.

Each group is taken once, in the order in which the file has the first of its rollouts. What the sampler reported stands for the
log-probs before the update.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gym_bridge.errors import ConfigError
from gym_bridge.rollouts.rows import AGENT_REF
from gym_bridge.schemas.rollouts import Group, Rollout
from gym_bridge.tokens.rollout_turns import token_directory
from gym_bridge.trainers.group_stream import PlayedGroup
from gym_bridge.trainers.stored_rollouts import StoredRollouts

log = logging.getLogger(__name__)


class GroupFile(Protocol):
    """Groups by number, read when they are asked for."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> PlayedGroup:
        """One group. Raises DataError where the file has changed since it was opened."""
        ...

    def close(self) -> None:
        """Let the files go."""
        ...


class StoredGroups:
    """A `GroupStream` over the groups of a file, each once, in their order."""

    def __init__(self, groups: GroupFile):
        self.groups = groups
        self._taken = self._trained = 0

    def take(self, count: int) -> list[PlayedGroup]:
        """The next `count` groups, fewer where the file ends. Raises DataError where it has changed."""
        numbers = range(self._taken, min(self._taken + count, len(self.groups)))
        found = [self.groups.read(number) for number in numbers]
        self._taken += len(found)
        return found

    def stepped(self, version: int) -> None:
        """An update was made; all groups taken before it are trained on."""
        self._trained = self._taken

    def metrics(self) -> dict[str, float]:
        """`epoch`: the share of the groups that were taken."""
        return {"epoch": self._taken / len(self.groups)}

    def state_dict(self) -> dict[str, Any]:
        """How many groups were taken up to the last update."""
        return {"group": self._trained}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last update of `state`."""
        self._taken = self._trained = int(state["group"])

    def close(self) -> None:
        """Let the files go."""
        self.groups.close()


class RolloutGroups:
    """The groups of one rollouts file: rollouts of one task that one version of the policy began, in order of their index.

    Failures and masked rollouts of the file are in no group. Token ids stay on disk.
    """

    def __init__(self, path: Path):
        """Raises ConfigError when the file holds no rollout to train on, and what StoredRollouts raises."""
        self._rollouts = rollouts = StoredRollouts(path)
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(rollouts.left_out.items()))
        if not len(rollouts):
            rollouts.close()
            raise ConfigError(f"{path}: holds no rollout to train on{f' ({told})' if told else ''}")
        if told:
            log.warning("%s: rows left out: %s", path, told)
        groups = _numbered(rollouts.task_indices, rollouts.versions)
        self._members = np.lexsort((rollouts.rollout_indices, groups))
        self._begins = np.flatnonzero(np.diff(groups[self._members], prepend=-1, append=groups.max() + 1))

    def __len__(self) -> int:
        return len(self._begins) - 1

    def read(self, number: int) -> PlayedGroup:
        """One group. Raises DataError where the file has changed since it was opened."""
        members = self._members[self._begins[number] : self._begins[number + 1]].tolist()
        rollouts = tuple(self._rollouts.read(one) for one in members)
        version = self._rollouts.versions.item(members[0])
        return played_group(rollouts, version=version, path=self._rollouts.path)

    def close(self) -> None:
        """Let the file go."""
        self._rollouts.close()


def played_group(rollouts: tuple[Rollout, ...], *, version: int, path: Path) -> PlayedGroup:
    """Siblings as a group; its environment is the agent that played them, `path`'s stem where no agent but ours did."""
    row = rollouts[0].row
    agent = (row.get("agent_ref") or AGENT_REF).get("name")
    environment = token_directory(path).stem if agent in (None, AGENT_REF["name"]) else agent
    return PlayedGroup(
        group=Group(task_index=rollouts[0].key.task_index, rollouts=rollouts), environment=environment, version=version
    )


def _numbered(*columns: np.ndarray) -> np.ndarray:
    """[N] a number for each combination of the columns, rising in the order in which they first come."""
    _, first, group = np.unique(np.stack(columns), axis=1, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[group]
