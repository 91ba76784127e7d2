"""A row that is a task of several servers."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PrivateAttr

from gym_bridge.resource_servers.base import Task


class CombinedTask(Task):
    """What each part reads of a row. The parts may read the same field in different ways."""

    kinds: ClassVar[Mapping[str, type[Task]]] = {}
    """Each part's task by the part's name."""
    _of: dict[str, Task] = PrivateAttr(default_factory=dict)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> "CombinedTask":
        """The row as every part's task. Raises the ValidationError of the first that it is none of."""
        made = super().model_validate(obj, **options)
        made._of = {name: kind.model_validate(obj, **options) for name, kind in cls.kinds.items()}
        return made

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """The schemas of all parts' tasks as one; of a field that several read, the first one's."""
        merged: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "$defs": {}}
        for kind in cls.kinds.values():
            schema = kind.model_json_schema(*args, **options)
            for key in ("properties", "$defs"):
                merged[key] = {**schema.get(key, {}), **merged[key]}
            merged["required"] += [name for name in schema.get("required", []) if name not in merged["required"]]
        return merged

    def of(self, part: str) -> Task:
        """The task as one part reads it."""
        return self._of[part]


def combined_task(kinds: Mapping[str, type[Task]]) -> type[CombinedTask]:
    """The task of parts that read `kinds`."""
    return type("CombinedTask", (CombinedTask,), {"__module__": __name__, "__doc__": CombinedTask.__doc__, "kinds": dict(kinds)})
