"""Several environments as one: every row is played where its `agent_ref` says, or where its task belongs."""

from collections.abc import Mapping
from dataclasses import dataclass

from gym_bridge.errors import nearest
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.environment import Environment
from gym_bridge.schemas.rollouts import FailureType, RolloutKey, Row


@dataclass(frozen=True, slots=True)
class ByAgent:
    """Environments by the name of their agent; rows that name none are played in `default`."""

    environments: Mapping[str, Environment]
    default: Environment | None = None

    async def play(self, row: Row, key: RolloutKey, play: Play) -> Played:
        """Play the row in its agent's environment. Raises RolloutError, of type INVALID_ROW where there is none."""
        return await self.environment_of(row).play(row, key, play)

    def environment_of(self, row: Row) -> Environment:
        """Where a row is played. Raises RolloutError of type INVALID_ROW for a row that names no agent, or one unknown."""
        told = row.get("agent_ref")
        name = told.get("name") if isinstance(told, dict) else None
        if name is None:
            if self.default is None:
                raise _invalid("the task has no agent_ref.name, and no --agent plays such rows")
            return self.default
        if not isinstance(name, str) or name not in self.environments:
            raise _invalid(f"agent_ref names {name!r}, which is no agent of this run{nearest(str(name), self.environments)}")
        return self.environments[name]


@dataclass(frozen=True, slots=True)
class ByTask:
    """Environments by name; every task is played in the one that `names` has for its index."""

    environments: Mapping[str, Environment]
    names: Mapping[int, str]

    async def play(self, row: Row, key: RolloutKey, play: Play) -> Played:
        """Play the row in its task's environment."""
        return await self.environments[self.names[key.task_index]].play(row, key, play)


def _invalid(message: str) -> RolloutError:
    return RolloutError(FailureType.INVALID_ROW, message, terminal=True)
