"""Where the groups of a batch come from: a collector that plays, or files of what was played."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gym_bridge.schemas.rollouts import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedGroup:
    """A group, all of whose rollouts have ended."""

    group: Group
    environment: str
    """Which of the run's environments it was played in."""
    version: int
    """Of the policy, when it was started."""


class GroupStream(Protocol):
    """Gives groups to train on, each once."""

    def take(self, count: int) -> list[PlayedGroup]:
        """The next `count` groups, fewer where there are no more; they belong to the batch that is being gathered.

        Raises PolicyError and ServerError when playing fails.
        """
        ...

    def stepped(self, version: int) -> None:
        """An update was made, which gave `version`; all groups taken before it are trained on, or dropped for good."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Numbers of the stream itself since they were last asked for."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which `load_state_dict` continues; groups taken since the last update count as not taken."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last update of `state`."""
        ...

    def close(self) -> None:
        """End what runs in the background."""
        ...
