"""The one list of a rollout's columns, for reports and filters. A column is a name, a sentence, and how to read it off a row."""

from collections.abc import Callable
from dataclasses import dataclass

from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, ROLLOUT_INDEX, TASK_INDEX, Row


@dataclass(frozen=True, slots=True)
class Column:
    """One scalar of a rollout row."""

    name: str
    description: str
    read: Callable[[Row], float | int | str | bool | None]


def _bridge(name: str) -> Callable[[Row], float | int | str | bool | None]:
    return lambda row: (row.get("gym_bridge") or {}).get(name)


COLUMNS: dict[str, Column] = {
    one.name: one
    for one in (
        Column("task_index", "position of the task in its file", lambda row: row.get(TASK_INDEX)),
        Column("rollout_index", "which attempt at the task", lambda row: row.get(ROLLOUT_INDEX)),
        Column("attempt", "how often the rollout was tried before", lambda row: row.get(ATTEMPT_INDEX, 0)),
        Column("reward", "what /verify gave", lambda row: row.get("reward")),
        Column("truncated", "True when a limit ended the rollout", _bridge("truncated")),
        Column("stop_reason", "why the turn loop ended", _bridge("stop_reason")),
        Column("num_turns", "model calls", _bridge("num_turns")),
        Column("num_tool_calls", "tool calls that the model made", _bridge("num_tool_calls")),
    )
}
