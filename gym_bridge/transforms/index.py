"""The index of a transform: one line of scalars for every line read, as a polars frame.

It holds no text: keys are 64-bit hashes, a row is found again by its place. Its size depends on the number of rows alone.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl
from xxhash import xxh3_64_intdigest

from gym_bridge.errors import DataError
from gym_bridge.io.rollout_keys import content_key
from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.candidates import Candidate
from gym_bridge.transforms.plan import Plan
from gym_bridge.transforms.reasons import REASONS
from gym_bridge.transforms.row_columns import rollout_columns
from gym_bridge.transforms.splitting import is_validation

STATISTICS = ("num_turns", "num_tool_calls", "prompt_chars", "answer_chars")
"""Columns that only a report asks for."""

SCHEMA: dict[str, Any] = {
    "source": pl.UInt16,
    "line": pl.UInt32,
    "offset": pl.UInt64,
    "length": pl.UInt32,
    "reason": pl.String,
    "counts": pl.Boolean,
    "failed": pl.Boolean,
    "truncated": pl.Boolean,
    "agent": pl.String,
    "task_index": pl.Int64,
    "task": pl.UInt64,
    "content": pl.UInt64,
    "prompt": pl.UInt64,
    "answer": pl.UInt64,
    "reward": pl.Float64,
    "validation": pl.Boolean,
    **dict.fromkeys(STATISTICS, pl.UInt32),
}
"""`reason`: why it is dropped, null while it may be used. `counts`: it counts in its group. `task`: equal for siblings.
`content`: the task's content, equal across files. `prompt`, `answer`: in pairs what the format made of the rollout, else its
prompt without the tools, and what was done. Columns that nobody asked for are of nulls, which take no memory."""

MAX_TASK_INDEX = 2**63 - 1
MAX_COUNT = 2**32 - 1
"""What the columns hold; a row may name larger numbers, which then are unknown."""

_NO_STATISTICS = (None,) * len(STATISTICS)
_NOTHING_TOLD = (False, None, None, 0, 0, None, None, None, None)


class Span(NamedTuple):
    """Where a line stands in its file."""

    line: int
    offset: int
    length: int


class Place(NamedTuple):
    """Where a rollout stands."""

    source: int
    file: Path
    span: Span


def schema_of(plan: Plan) -> dict[str, Any]:
    """`SCHEMA` as a plan needs it: a reason is a number of one byte, and what nobody asks for is Null."""
    form, in_pairs = plan.format, plan.format.unit == "pair"
    asks_groups = plan.where_group is not None or form.task_line is not None
    asked = {
        "agent": asks_groups,
        "task_index": asks_groups,
        "content": plan.needs_content or plan.with_statistics,
        "prompt": in_pairs or _tells_prompts(plan),
        "answer": in_pairs or _tells_answers(plan),
        "validation": plan.split is not None,
        **dict.fromkeys(STATISTICS, plan.with_statistics),
    }
    reasons = pl.Enum(list(dict.fromkeys((*REASONS, form.lacks))))
    return {name: dtype if asked.get(name, True) else pl.Null for name, dtype in SCHEMA.items()} | {"reason": reasons}


def _tells_prompts(plan: Plan) -> bool:
    return plan.with_statistics and plan.split is not None


def _tells_answers(plan: Plan) -> bool:
    return plan.dedupe is not None or plan.with_statistics


class Indexer:
    """Makes the index of some lines."""

    def __init__(self, plan: Plan, schema: Mapping[str, Any]):
        """`schema` is that of the plan, made once for many indexes."""
        self._plan, self._unit, self._schema = plan, plan.format.unit, schema
        self._needs_answer, self._tells_prompts = _tells_answers(plan), _tells_prompts(plan)
        self._asks_content, self._tells_by_content = plan.needs_content or plan.with_statistics, len(plan.inputs) > 1
        self._writes_rows = plan.asks_siblings and plan.format.task_line is None
        self._rows: list[tuple[Any, ...]] = []
        self.tools: Counter[str] = Counter()
        """In how many rollouts that count each tool was called."""
        self.components: Counter[str] = Counter()
        """In how many rollouts that count each part of `reward_components` is a number."""

    def add(self, span: Span, candidate: Candidate) -> None:
        """One more line. Raises DataError, and adds nothing, for a candidate that may be used but has no group or no keys."""
        counts, told = candidate.counts, _NOTHING_TOLD
        if candidate.view is not None:
            try:
                told = self._told(candidate.view, candidate.row)
            except (DataError, orjson.JSONEncodeError):
                if candidate.row is not None:
                    raise
                counts = False
        statistics = self._statistics(candidate.view) if counts and self._plan.with_statistics else _NO_STATISTICS
        reason = candidate.reason
        self._rows.append((*span, reason, counts, reason == "failure", *told, *statistics))

    def frame(self, source: int) -> pl.DataFrame:
        """All lines, in the order in which they were added; `source` is the number of their input."""
        count = len(self._rows)
        columns = list(zip(*self._rows, strict=True)) or [()] * (len(SCHEMA) - 1)
        values = dict(zip(SCHEMA, [[source] * count, *columns], strict=True))
        unknown = [None] * count
        return pl.DataFrame(
            [pl.Series(name, unknown if dtype is pl.Null else values[name], dtype) for name, dtype in self._schema.items()]
        )

    def _told(self, view: RolloutView, row: Row | None) -> tuple[Any, ...]:
        """The columns from `truncated` to `validation`."""
        plan, agent, task_index = self._plan, view.agent, view.task_index
        content = self._content(view) if self._asks_content else b""
        task = f"{agent}:".encode() + content if self._tells_by_content else view.task.encode()
        held_out = is_validation(content, fraction=plan.split, seed=plan.seed) if plan.split is not None else None
        if task_index is not None and abs(task_index) > MAX_TASK_INDEX:
            task_index = None
        content_key = int.from_bytes(content[:8], "little") if content else 0
        return (view.truncated, agent, task_index, key_of(task), content_key, *self._keys(row, view), view.reward, held_out)

    def _content(self, view: RolloutView) -> bytes:
        """The key of the task's content. What a report alone wants to know makes no bad row."""
        if self._plan.needs_content:
            return view.content_key()
        try:
            return view.content_key()
        except DataError:
            return b""

    def _keys(self, row: Row | None, view: RolloutView) -> tuple[int | None, int | None]:
        """Raises orjson.JSONEncodeError for a row that cannot be written: this is the time to drop it."""
        if row is None:
            return None, None
        if self._unit == "pair":
            others = [value for name, value in row.items() if name not in ("prompt", "answer") and not _is_json(value)]
            if others:
                orjson.dumps(others)
            return json_key(row["prompt"]), json_key(row["answer"])
        if self._writes_rows:
            orjson.dumps(row)
        if not self._needs_answer:
            return None, None
        prompt = key_of(content_key(view.context, [])) if self._tells_prompts else None
        return prompt, key_of(view.answer_key())

    def _statistics(self, view: RolloutView | None) -> tuple[int | None, ...]:
        if view is None:
            return _NO_STATISTICS
        self.tools.update(_column(view, "tools_used") or ())
        parts = view.row.get("reward_components")
        numbers = parts.items() if isinstance(parts, dict) else ()
        self.components.update(name for name, value in numbers if isinstance(value, int | float) and not isinstance(value, bool))
        counts = (_column(view, name) for name in STATISTICS)
        return tuple(count if isinstance(count, int) and 0 <= count <= MAX_COUNT else None for count in counts)


def _column(view: RolloutView, name: str) -> Any:
    """A column of a rollout; None where it has no such value: a report makes no bad row of it."""
    try:
        return rollout_columns(view, (name,))[name]
    except DataError:
        return None


def _is_json(value: Any) -> bool:
    """True for what can be written without a look at it."""
    return value is None or isinstance(value, orjson.Fragment)


def key_of(text: bytes) -> int:
    """A 64-bit hash."""
    return xxh3_64_intdigest(text)


def json_key(value: Any) -> int:
    """A 64-bit hash of a JSON value."""
    return key_of(orjson.dumps(value))
