"""The work on blocks of lines and on chosen rollouts: what runs in every worker. Nothing here knows more than its own lines."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pickle import PickleBuffer
from typing import Any, NamedTuple

import numpy as np
import orjson
import polars as pl

from gym_bridge.errors import DataError, MediaError
from gym_bridge.io.blocks import Block, RangeReader
from gym_bridge.io.jsonl import dump_line
from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.candidates import Candidate, CandidateReader
from gym_bridge.transforms.index import Indexer, Place, Span, key_of, schema_of
from gym_bridge.transforms.near_duplicates import signature
from gym_bridge.transforms.plan import Plan
from gym_bridge.transforms.splitting import is_validation
from gym_bridge.transforms.texts import said


@dataclass(slots=True)
class Converted:
    """What a block became. Lists run in parallel; those that nobody asked for are empty."""

    rows: list[bytes | PickleBuffer | memoryview] = field(default_factory=list)
    """Each in a piece of its own where `validation` or `keys` tell something of each; else all in one, which is sent and written
    faster."""
    num_rows: int = 0
    validation: list[bool] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    """Equal for rollouts that repeat each other."""
    joined: list[bool] = field(default_factory=list)
    """True for a row whose prompt is one text of several messages."""
    num_bytes: int = 0
    """Of the block."""
    rows_in: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    index: pl.DataFrame | None = None
    tools: Counter[str] = field(default_factory=Counter)
    components: Counter[str] = field(default_factory=Counter)
    signatures: np.ndarray | None = None
    """Of every line, in order; zeros for one that is dropped. None where no line has one."""


class Unit(NamedTuple):
    """What one row is made of: a rollout, or the chosen and the rejected one."""

    places: tuple[Place, ...]
    validation: bool
    group: dict[str, Any] | None = None


class BlockConverter:
    """Blocks to rows, for a format whose rollouts stand alone."""

    def __init__(self, plan: Plan):
        self._plan, self._lines, self._schema = plan, _Lines(plan), schema_of(plan)

    def __call__(self, block: Block) -> Converted:
        """The rows of a block. Raises DataError for a bad row, unless those are skipped."""
        plan, joins = self._plan, self._plan.joins_prompts
        converted, indexer = Converted(num_bytes=block.length), Indexer(plan, self._schema) if plan.with_statistics else None

        def take(span: Span, candidate: Candidate) -> None:
            view, row = candidate.view, candidate.row
            line, content, answer = b"", b"", b""
            if view is not None and row is not None:
                line = _line(row, None if plan.bare else _provenance(plan, block.source, span, view))
                content = view.content_key() if plan.split is not None or plan.dedupe is not None else b""
                answer = view.answer_key() if plan.dedupe is not None else b""
            if indexer is not None:
                indexer.add(span, candidate)
            converted.rows_in += 1
            if view is None or row is None:
                converted.dropped[candidate.reason or plan.format.lacks] += 1
                return
            converted.rows.append(line)
            if joins:
                converted.joined.append(len(view.context) > 1)
            if plan.split is not None:
                converted.validation.append(is_validation(content, fraction=plan.split, seed=plan.seed))
            if plan.dedupe is not None:
                converted.keys.append(key_of(content + answer))

        self._lines.read(block, take)
        converted.num_rows = len(converted.rows)
        if plan.split is None and plan.dedupe is None:
            converted.rows = [PickleBuffer(b"".join(converted.rows))]
        if indexer is not None:
            converted.index, converted.tools, converted.components = indexer.frame(block.source), indexer.tools, indexer.components
        return converted


class BlockIndexer:
    """Blocks to their index, for all that is decided among siblings."""

    def __init__(self, plan: Plan):
        self._plan, self._lines, self._schema = plan, _Lines(plan), schema_of(plan)

    def __call__(self, block: Block) -> Converted:
        """The index of a block. Raises DataError for a bad row, unless those are skipped."""
        indexer, wants_signatures = Indexer(self._plan, self._schema), self._plan.dedupe == "near"
        signatures: list[np.ndarray | None] = []

        def take(span: Span, candidate: Candidate) -> None:
            told = said(candidate.view) if wants_signatures and candidate.view is not None and candidate.row is not None else None
            indexer.add(span, candidate)
            if wants_signatures:
                signatures.append(None if told is None else signature(told))

        self._lines.read(block, take)
        frame = indexer.frame(block.source)
        converted = Converted(num_bytes=block.length, rows_in=frame.height, index=frame)
        converted.tools, converted.components = indexer.tools, indexer.components
        known = next((one for one in signatures if one is not None), None)
        if known is not None:
            converted.signatures = np.stack([np.zeros_like(known) if one is None else one for one in signatures])
        return converted


class UnitConverter:
    """Chosen rollouts to rows."""

    def __init__(self, plan: Plan):
        self._plan, self._reader = plan, CandidateReader(plan)

    def __call__(self, units: Sequence[Unit]) -> Converted:
        """The rows of the units. Raises DataError for a file that changed meanwhile."""
        converted = Converted(num_rows=len(units))
        with RangeReader() as ranges:
            converted.rows = [self._row(unit, ranges, converted.joined) for unit in units]
        if self._plan.split is None:
            converted.rows = [PickleBuffer(b"".join(converted.rows))]
        else:
            converted.validation = [unit.validation for unit in units]
        return converted

    def _row(self, unit: Unit, ranges: RangeReader, joined: list[bool]) -> bytes:
        """The row of a unit; `joined` learns of its prompt."""
        plan, form = self._plan, self._plan.format
        lines = [ranges.read(place.file, place.span.offset, place.span.length) for place in unit.places]
        if form.task_line is not None:
            group = {} if plan.bare or unit.group is None else unit.group
            return self._task_line(form.task_line, lines[0], unit.places[0], group)
        views, rows = zip(*map(self._side, lines, unit.places), strict=True)
        if plan.joins_prompts:
            joined.append(len(views[0].context) > 1)
        if form.pair is None:
            place = unit.places[0]
            return _line(rows[0], None if plan.bare else _provenance(plan, place.source, place.span, views[0]))
        return _line(form.pair(*rows), None if plan.bare else _pair_provenance(plan, unit, views))

    def _side(self, line: bytes, place: Place) -> tuple[RolloutView, Row]:
        candidate = Candidate()
        try:
            candidate = self._reader.read(line, place.source)
            self._reader.convert(candidate)
        except DataError:
            candidate.drop("bad_row")
        if candidate.view is None or candidate.row is None:  # what was chosen had a row
            path = self._plan.inputs[place.source]
            raise DataError("the file changed while it was read; run again when it is whole", path=path, line=place.span.line)
        return candidate.view, candidate.row

    def _task_line(self, make: Callable[[bytes, Row], bytes], line: bytes, place: Place, group: Row) -> bytes:
        try:
            return make(self._reader.task_line(line, place.source), group)
        except DataError as error:
            raise DataError(str(error), path=self._plan.inputs[place.source], line=place.span.line) from error


class _Lines:
    """Reads the lines of blocks. A bad row is an error or a drop, as the plan says."""

    def __init__(self, plan: Plan):
        self._plan, self._reader = plan, CandidateReader(plan)

    def read(self, block: Block, take: Callable[[Span, Candidate], None]) -> None:
        """Have every non-blank line taken. When `take` raises it must have done nothing: it gets the line again, dropped."""
        reader = self._reader
        for number, begins, line in _lines_of(block):
            if not line or line.isspace():
                continue
            span, candidate = Span(number, begins, len(line)), None
            try:
                candidate = reader.read(line, block.source)
                reader.convert(candidate)
                take(span, candidate)
            except MediaError:
                candidate = candidate or Candidate()
                candidate.drop("media")
                take(span, candidate)
            except (DataError, orjson.JSONEncodeError) as error:
                if self._plan.on_bad_row == "error":
                    path = self._plan.inputs[block.source]
                    raise DataError(f"{error}; drop such rows with --on-bad-row skip", path=path, line=number) from error
                candidate = candidate or Candidate()
                candidate.drop("bad_row")
                take(span, candidate)


def _lines_of(block: Block) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of every line: one at a time, since a list of copies would leave the processor's cache."""
    data, begins, number = block.read(), 0, block.first_line
    while begins < len(data):
        ends = data.find(b"\n", begins)
        ends = len(data) if ends < 0 else ends
        yield number, block.offset + begins, data[begins:ends]
        begins, number = ends + 1, number + 1


def _line(row: Row, provenance: Row | None) -> bytes:
    if provenance is None:
        return dump_line({name: value for name, value in row.items() if name != "gym_bridge"})
    return dump_line(row | {"gym_bridge": provenance | row.get("gym_bridge", {})})


def _provenance(plan: Plan, source: int, span: Span, view: RolloutView) -> Row:
    return {
        "task": view.task,
        "rollout_index": view.rollout_index,
        "reward": view.reward,
        "source": f"{plan.inputs[source]}:{span.line}",
    }


def _pair_provenance(plan: Plan, unit: Unit, views: Sequence[RolloutView]) -> Row:
    """Lists name the chosen rollout first."""
    rewards = [view.reward or 0.0 for view in views]
    return {
        "task": views[0].task,
        "rollout_index": [view.rollout_index for view in views],
        "reward": rewards,
        "margin": rewards[0] - rewards[1],
        "source": [f"{plan.inputs[place.source]}:{place.span.line}" for place in unit.places],
    }
