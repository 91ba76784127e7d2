"""Rows with the fields of their task that they lack: servers leave some out of what they answer."""

from collections.abc import Callable
from dataclasses import dataclass

from gym_bridge.io.task_inputs import TaskInputs
from gym_bridge.schemas.rollouts import TASK_INDEX, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskJoin:
    """Joins the rows of one file with its materialized inputs."""

    inputs: TaskInputs | None
    """None: there are none, and rows stay as they are."""
    fields: frozenset[str]
    """Top-level fields that somebody asks for."""
    decode: Callable[[bytes], Row]

    def joined(self, row: Row) -> Row:
        """`row` with those of the fields that it lacks or has as null or as an empty text, where its task has them."""
        if self.inputs is None or all(row.get(name) not in (None, "") for name in self.fields):
            return row
        index = row.get(TASK_INDEX)
        line = self.inputs.line(index) if type(index) is int else None
        if line is None:
            return row
        task = self.decode(line)
        return row | {name: task[name] for name in self.fields if row.get(name) in (None, "") and name in task}
