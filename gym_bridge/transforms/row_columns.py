"""Values of the columns of a rollout (`gym_bridge.schemas.columns`), computed only where they are asked for."""

import keyword
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.columns import ROLLOUT_COLUMNS
from gym_bridge.schemas.content import TEXT_PARTS
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, FAILURE_CLASS, Item, Row
from gym_bridge.transforms.texts import last_word

MAX_PATH = 6
"""Names of a dotted path that `known_names` lists."""


def rollout_columns(view: RolloutView, names: Iterable[str]) -> dict[str, Any]:
    """The asked columns of a rollout; None for what its row does not tell.

    A name that is none of ROLLOUT_COLUMNS is a field of the row, else a part of its `reward_components`, else a dotted path
    through objects. Numbers, strings, booleans and lists of strings are values, anything else is None.
    """
    return {name: _COLUMNS[name](view) if name in _COLUMNS else _own_value(view.row, name) for name in names}


def fields_read(names: Iterable[str]) -> frozenset[str]:
    """Top-level fields of a row that `rollout_columns` needs for these names, beyond what every view is made of.

    Without them a decoder that skips fields would leave the columns without values.
    """
    names = set(names)
    own = {name.partition(".")[0] for name in names if name not in _COLUMNS}
    parts = {"reward_components"} if own else set()
    return frozenset(own | parts | {field for name in names for field in _MORE_FIELDS.get(name, ())})


def known_names(row: Row) -> list[str]:
    """Every name that an expression may use on this row, which is whole: the columns, then its own, dotted ones included.

    Keys that are no Python names cannot be written in an expression and are left out.
    """
    components = row.get("reward_components")
    own = [*_paths(row, "", MAX_PATH), *(_paths(components, "", 1) if isinstance(components, dict) else ())]
    return list(dict.fromkeys([*ROLLOUT_COLUMNS, *own]))


def _paths(fields: Row, prefix: str, depth: int) -> Iterator[str]:
    """Names of the values of an object, and of those within it; a null may be a value in another row."""
    for name, value in fields.items():
        if not name.isidentifier() or keyword.iskeyword(name):
            continue
        if isinstance(value, dict):
            if depth > 1:
                yield from _paths(value, f"{prefix}{name}.", depth - 1)
        elif value is None or _scalar(value) is not None:
            yield prefix + name


def _own_value(row: Row, name: str) -> Any:
    value = _scalar(row.get(name))
    if value is None and isinstance(components := row.get("reward_components"), dict):
        value = _scalar(components.get(name))
    return _scalar(_at(row, name)) if value is None and "." in name else value


def _at(row: Row, path: str) -> Any:
    """What a dotted path leads to; None where it breaks off."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _scalar(value: Any) -> Any:
    """A number, a string, a boolean or a list of strings as it is; None for anything else."""
    if isinstance(value, list):
        return value if all(isinstance(one, str) for one in value) else None
    return value if isinstance(value, str | int | float) else None


def _first(*paths: str) -> Callable[[RolloutView], Any]:
    """The column that the first of these paths with a value gives."""

    def value(view: RolloutView) -> Any:
        return next((found for path in paths if (found := _scalar(_at(view.row, path))) is not None), None)

    return value


def _failure(view: RolloutView) -> str | None:
    """`gym_bridge` is the better witness; rows of builds without a class of failure are known by their response's id alone."""
    named = _at(view.row, "gym_bridge.failure.type") or view.row.get(FAILURE_CLASS)
    return str(named) if named else "unknown" if view.failed else None


def _policy_version(view: RolloutView) -> int | None:
    versions = _at(view.row, "gym_bridge.policy_versions")
    return min((one for one in versions if isinstance(one, int)), default=None) if isinstance(versions, list) else None


def _tools_used(view: RolloutView) -> list[str]:
    names = (item.get("name") for item in view.output or () if item.get("type") == "function_call")
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _answer_chars(view: RolloutView) -> int | None:
    last = last_word(view.output or ()) or {}
    return _num_chars(last) if last.get("role") == "assistant" and last.get("type") in (None, "message") else None


def _num_chars(item: Item) -> int:
    """Characters of a message's text; what is no text has none."""
    content = item.get("content")
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in TEXT_PARTS)
    return sum(len(text) for text in texts if isinstance(text, str))


_COLUMNS: Mapping[str, Callable[[RolloutView], Any]] = {
    "reward": lambda view: view.reward,
    "task_index": lambda view: view.task_index,
    "rollout_index": lambda view: view.rollout_index,
    "agent": lambda view: view.agent,
    "model": _first("response.model"),
    "policy_version": _policy_version,
    "attempt": _first("gym_bridge.attempt", ATTEMPT_INDEX),
    "status": _first("response.status"),
    "stop_reason": _first("gym_bridge.stop_reason", "response.incomplete_details.reason"),
    "truncated": lambda view: view.truncated,
    "failed": lambda view: view.failed,
    "failure": _failure,
    "masked": lambda view: view.masked,
    "num_turns": lambda view: view.num_turns,
    "num_tool_calls": lambda view: view.num_tool_calls,
    "num_tool_errors": _first("gym_bridge.num_tool_errors"),
    "tools_used": _tools_used,
    "num_tools": lambda view: len(view.tools),
    "num_prompt_messages": lambda view: len(view.context),
    "prompt_chars": lambda view: sum(map(_num_chars, view.context)),
    "answer_chars": _answer_chars,
    "num_input_tokens": _first("gym_bridge.num_input_tokens", "response.usage.input_tokens", "response.usage.prompt_tokens"),
    "num_output_tokens": _first("gym_bridge.num_output_tokens", "response.usage.output_tokens", "response.usage.completion_tokens"),
    "elapsed_s": _first("gym_bridge.timings_s.total"),
}

_MORE_FIELDS = {"model": ("response",), "attempt": (ATTEMPT_INDEX,)}
