"""The index of a rollouts file that the page works on: one line of columns for every row, as a polars frame.

It holds no conversation: a row is found again by its place. 200,000 rows take some 40 MiB, whatever they say.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
import polars as pl
from xxhash import xxh3_64_intdigest

from gym_bridge.errors import DataError
from gym_bridge.io.blocks import Block
from gym_bridge.io.rollout_reader import PLACEHOLDER, RolloutView, view_row
from gym_bridge.io.row_decoder import RowDecoder
from gym_bridge.schemas.columns import ROLLOUT_COLUMNS
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.row_columns import fields_read, rollout_columns

ROLLOUTS, FAILURES = 0, 1
"""Where a row stands: in R.jsonl or in R_failures.jsonl."""
MAX_MESSAGE = 1000
"""Characters of a failure's message that the index keeps."""

_TYPES: dict[str, Any] = {
    "number": pl.Float64,
    "whole number": pl.Int64,
    "string": pl.String,
    "true or false": pl.Boolean,
    "list of strings": pl.List(pl.String),
}
_OWN: dict[str, Any] = {
    "source": pl.UInt8,
    "line": pl.UInt32,
    "offset": pl.UInt64,
    "length": pl.UInt32,
    "problem": pl.String,
    "task": pl.UInt64,
    "content": pl.UInt64,
    "failure_message": pl.String,
    "failure_stage": pl.String,
}
SCHEMA: dict[str, Any] = {**_OWN, **{one.name: _TYPES[one.type] for one in ROLLOUT_COLUMNS.values()}}
"""`problem`: why the row cannot be read; such a row has no columns. `task`: equal for rollouts of one task in this file.
`content`: equal for one prompt with the same tools, in whatever file. The rest are the columns of a rollout."""

_PYTHON: dict[str, Any] = {
    "number": (int, float),
    "whole number": int,
    "string": str,
    "true or false": bool,
    "list of strings": list,
}
_KINDS = {one.name: _PYTHON[one.type] for one in ROLLOUT_COLUMNS.values()}
MAX_WHOLE = 2**63 - 1
Values = tuple[Any, ...]


class Framed(NamedTuple):
    """The frame of a block's rows, and where the block's last whole line ends."""

    frame: pl.DataFrame
    end: int
    """In bytes from the beginning of the file."""
    next_line: int
    """Number of the line that stands there, or will."""


class FrameMaker:
    """Makes the frames of blocks of lines."""

    def __init__(self, source: int):
        self._source = source
        self._decoder = RowDecoder(fields_read(ROLLOUT_COLUMNS))

    def __call__(self, block: Block) -> Framed:
        """The frame of its rows; blank lines, placeholders and a last line without an end are none."""
        *lines, rest = block.read().split(b"\n")
        end, next_line = block.offset + block.length - len(rest), block.first_line + len(lines)
        if rest.strip() and _is_whole(rest):
            lines.append(rest)
            end += len(rest)
        rows: list[Values] = []
        offset = block.offset
        for line, text in enumerate(lines, block.first_line):
            if text.strip() and text.strip() != PLACEHOLDER:
                rows.append((self._source, line, offset, len(text), *self._columns(text)))
            offset += len(text) + 1
        return Framed(_frame_of(rows), end, next_line)

    def _columns(self, text: bytes) -> Values:
        """All columns from `problem` on."""
        try:
            view = view_row(self._decoder.decode(text))
            told = rollout_columns(view, ROLLOUT_COLUMNS)
            keys = xxh3_64_intdigest(view.task.encode()), int.from_bytes(view.content_key()[:8], "little")
        except (DataError, UnicodeEncodeError) as error:
            return (str(error)[:MAX_MESSAGE], *[None] * (len(SCHEMA) - len(_OWN) + 4))
        return (None, *keys, *_failure(view.row, view), *(_held(name, value) for name, value in told.items()))


def _is_whole(text: bytes) -> bool:
    """True for a line that lacks nothing but its newline: what is cut off is no JSON."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _frame_of(rows: Sequence[Values]) -> pl.DataFrame:
    """The frame of rows with the columns of SCHEMA."""
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    pairs = zip(SCHEMA.items(), columns, strict=True)
    return pl.DataFrame([pl.Series(name, values, dtype) for (name, dtype), values in pairs])


def _held(name: str, value: Any) -> Any:
    """A column's value; None for one that does not go with the column's type, as foreign rows may have it."""
    if not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and _KINDS[name] is not bool):
        return None
    return None if isinstance(value, int) and abs(value) > MAX_WHOLE else value


def _failure(row: Row, view: RolloutView) -> tuple[str | None, str | None]:
    """Message and stage of a failure."""
    if not view.failed:
        return None, None
    ours = row.get("gym_bridge")
    failure = ours.get("failure") if isinstance(ours, dict) else None
    told = failure if isinstance(failure, dict) else {}
    message, stage = told.get("message"), told.get("stage")
    return (str(message)[:MAX_MESSAGE] if message else None, str(stage) if stage else None)
