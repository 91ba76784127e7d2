"""Rows found by what they say: text anywhere in them, and fields of their own."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import polars as pl

from gym_bridge.errors import DataError
from gym_bridge.io.jsonl import parse_line
from gym_bridge.io.rollout_reader import view_row
from gym_bridge.io.task_inputs import TaskInputs
from gym_bridge.schemas.columns import GROUP_COLUMNS, ROLLOUT_COLUMNS
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.engine import columns_of
from gym_bridge.transforms.expressions import Expression, check_names
from gym_bridge.transforms.row_columns import rollout_columns
from gym_bridge.transforms.task_join import TaskJoin
from gym_bridge.viewer.conversation import pretty
from gym_bridge.viewer.rollout_file import RolloutFile

READ_BYTES = 1 << 22
"""Lines that stand side by side are read together, as many bytes at once."""


def own_columns(file: RolloutFile, frame: pl.DataFrame, expression: Expression) -> Iterator[dict[str, Any]]:
    """`number` and the columns that an expression names, for every row of `frame` that can be read.

    Raises ConfigError for a column that the first rows do not know.
    """
    of_groups = GROUP_COLUMNS.keys() - ROLLOUT_COLUMNS.keys()
    check_names(expression, {one.name for one in columns_of([file.path])} - of_groups)
    fields = frozenset(name.partition(".")[0] for name in expression.names if name not in ROLLOUT_COLUMNS)
    inputs = TaskInputs(file.inputs) if file.inputs is not None else None
    join = TaskJoin(inputs=inputs, fields=fields, decode=lambda line: parse_line(line, path=file.inputs))
    for number, line in lines_of(file, frame.filter(pl.col("problem").is_null())):
        view = view_row(join.joined(parse_line(line, path=file.path)))
        yield {"number": number, **rollout_columns(view, expression.names)}


def rows_with_text(file: RolloutFile, frame: pl.DataFrame, text: str) -> pl.DataFrame:
    """The rows of `frame` one of whose strings holds `text`, whatever the case of its letters, as a page shows them: JSON in a
    string is read. Of a line that cannot be read the line itself is searched."""
    wanted, signs = text.lower(), _signs(text)
    numbers = []
    for number, line in lines_of(file, frame):
        if signs.search(line.lower()) and _holds(line, wanted):
            numbers.append(number)
    return frame.filter(pl.col("number").is_in(pl.Series(numbers, dtype=pl.UInt32).implode()))


def lines_of(file: RolloutFile, frame: pl.DataFrame) -> Iterator[tuple[int, bytes]]:
    """Number and line of every row, in the order of the file. Neighbours are read together."""
    places = frame.select("source", "offset", "length", "number").sort("source", "offset")
    for source, rows in groupby(places.iter_rows(), key=lambda place: place[0]):
        run: list[tuple[int, int, int]] = []
        for _, offset, length, number in rows:
            if run and (offset - run[-1][0] - run[-1][1] > 1 or offset + length - run[0][0] > READ_BYTES):
                yield from _lines(file, source, run)
                run = []
            run.append((offset, length, number))
        yield from _lines(file, source, run)


def _lines(file: RolloutFile, source: int, run: list[tuple[int, int, int]]) -> Iterator[tuple[int, bytes]]:
    begin, end = run[0][0], run[-1][0] + run[-1][1]
    data = file.read(source, begin, end - begin)
    for offset, length, number in run:
        yield number, data[offset - begin : offset - begin + length]


def _signs(text: str) -> re.Pattern[bytes]:
    """Finds, in a line of JSON in small letters, what every line with `text` has: its longest run of letters and digits, which JSON
    writes as they are, or else its first character that is none of ASCII, as it is or escaped."""
    runs = re.findall("[a-z0-9]+", text.lower())
    if runs:
        return re.compile(re.escape(max(runs, key=len).encode()))
    foreign = next((one for one in text.lower() if not one.isascii()), None)
    if foreign is None:
        return re.compile(b"")
    forms = [form for one in {foreign, foreign.upper()} for form in (one.encode("utf-8", "surrogatepass"), _escaped(one))]
    return re.compile(b"|".join(map(re.escape, forms)))


def _escaped(text: str) -> bytes:
    """As JSON may write it, in small letters: \\u00e9."""
    units = text.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4)).encode()


def _holds(line: bytes, wanted: str) -> bool:
    try:
        row: Row = parse_line(line, path=None)
    except DataError:
        return wanted in line.decode(errors="replace").lower()
    return _holds_value(row, wanted)


def _holds_value(value: Any, wanted: str) -> bool:
    if isinstance(value, str):
        return wanted in value.lower() or wanted in pretty(value).lower()
    if isinstance(value, dict):
        return any(_holds_value(one, wanted) for one in value.values())
    return isinstance(value, list) and any(_holds_value(one, wanted) for one in value)
