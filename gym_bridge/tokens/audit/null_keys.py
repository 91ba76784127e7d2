"""Keys that turn into nulls when Hugging Face `datasets` makes a table of the rows.

A column of objects is one Arrow struct: every object gets every key that any object at its place has, null where it was absent.
So tool calls get the arguments of other tools, and templates that write arguments or JSON schemas write `null`. Files are
loaded like that by releases without `Json` columns (NeMo RL takes 4.0 and up), and by every release with
`on_mixed_types=None`, as `Dataset.from_list` has it; the columns of the rows themselves by all of them.
"""

from collections.abc import Iterator
from typing import Any

MAX_KEYS = 20_000  # different keys that are followed; objects whose keys are data have no end of them
NUMBER, NAMES = "number", {str: "string", bool: "boolean", dict: "object", list: "list"}


class KeyCheck:
    """Takes in rows, and tells which keys some objects have and others at the same place lack."""

    def __init__(self):
        self._root = _Place()
        self._num_keys = 0

    def add(self, line: int, row: dict[str, Any]) -> None:
        """One row; our own provenance, which no trainer reads, is passed over."""
        self._add(line, {key: value for key, value in row.items() if key != "gym_bridge"}, self._root)

    def findings(self) -> Iterator[tuple[int, str, str]]:
        """Line, check and message of each key; the line is the first that has it."""
        yield from _findings(self._root, "")
        if self._num_keys > MAX_KEYS:
            yield 1, "null_keys", f"more than {MAX_KEYS} different keys; those after them were not compared"

    def _add(self, line: int, value: dict[str, Any], place: "_Place") -> None:
        place.num_objects += 1
        for key, one in value.items():
            child = place.children.get(key)
            if child is None:
                self._num_keys += 1
                if self._num_keys > MAX_KEYS:
                    continue
                child = place.children[key] = _Place(line)
            child.num_present += 1
            self._add_value(line, one, child)

    def _add_value(self, line: int, value: Any, place: "_Place") -> None:
        if value is None:
            return
        place.types.add(type(value))
        if type(value) is dict:
            self._add(line, value, place)
        elif type(value) is list and value:
            if place.items is None:
                place.items = _Place(line)
            for one in value:
                self._add_value(line, one, place.items)


class _Place:
    """A key of objects, or the items of a list: what stands there, over all rows."""

    __slots__ = ("children", "items", "line", "num_objects", "num_present", "types")

    def __init__(self, line: int = 1):
        self.line = line
        self.num_present = 0
        """Objects that have this key."""
        self.num_objects = 0
        """Objects that stand here."""
        self.children: dict[str, _Place] = {}
        self.items: _Place | None = None
        self.types: set[type] = set()


def _findings(place: _Place, path: str) -> Iterator[tuple[int, str, str]]:
    types = {NAMES.get(one, NUMBER) for one in place.types}
    if len(types) > 1:
        yield place.line, "mixed_types", f"{path} holds values of several types: {', '.join(sorted(types))}"
    for key, child in place.children.items():
        below = f"{path}.{key}" if path else key
        if absent := place.num_objects - child.num_present:
            owners = f"{place.num_objects} {'objects' if path else 'rows'}"
            yield child.line, "null_keys", f"{below} is absent from {absent} of {owners}, and null there in a `datasets` table"
        yield from _findings(child, below)
    if place.items is not None:
        yield from _findings(place.items, path + "[]")
