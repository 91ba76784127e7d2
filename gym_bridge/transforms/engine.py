"""The run of a transform: read in blocks, drop with counted reasons, convert, write aside, rename, report.

Formats whose rollouts stand alone are made in one streaming pass. What hangs on siblings takes two: an index of scalars, polars
queries over it, and the conversion of the chosen rollouts alone. The output is the same whatever the number of workers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import chain, compress, islice
from pathlib import Path
from typing import BinaryIO

import polars as pl

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.blocks import Block, Source, blocks, open_sources
from gym_bridge.io.jsonl import parse_line, read_lines, written_aside
from gym_bridge.io.task_inputs import materialized_inputs_of
from gym_bridge.schemas.columns import GROUP_COLUMNS, ROLLOUT_COLUMNS, Column
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms import converting
from gym_bridge.transforms.converting import BlockConverter, BlockIndexer, Converted, Unit, UnitConverter
from gym_bridge.transforms.expressions import check_names, parse_expression
from gym_bridge.transforms.grouping import Selection, select
from gym_bridge.transforms.index import Place, Span
from gym_bridge.transforms.near_duplicates import SignatureFile
from gym_bridge.transforms.parallel import Processes, Workers
from gym_bridge.transforms.plan import Plan, make_plan, outputs_of
from gym_bridge.transforms.report import Evidence, TransformReport, make_report, write_report
from gym_bridge.transforms.row_columns import known_names
from gym_bridge.transforms.telling import Teller

SAMPLED_LINES = 1000
"""Lines of each input in which a column must be found."""
UNITS_PER_ITEM = 256
"""Rows that are made in one go; as many are in memory."""
UNITS_AT_ONCE = 4096
"""Rows that one query finds the places of."""
PART_BYTES = 1 << 22
"""A worker's block. In one process smaller ones, which stay in the cache, are faster."""
FRAMES_PER_PIECE = 64
"""Frames of blocks that become one: queries over thousands of small ones are slow."""
WORKERS_FROM_BYTES = 1 << 28
"""Inputs smaller than this are read before processes would have started."""

ADVICE = {
    "low_reward": "; lower --min-reward",
    "bad_row": "; --on-bad-row error names the first of them",
    "small_margin": "; lower --min-margin",
    "no_partner": "; a pair needs several rollouts of one task",
    "tie": "; a pair needs two rewards that differ",
    "no_truth": "; name the task's reference with --output-field, or lower --min-reward",
    "where": "; loosen --where",
    "where_unknown": "; --where has no value for rows that lack one of its columns",
    "where_group": "; loosen --where-group",
}


def transform_files(
    inputs: Sequence[Path], settings: TransformSettings, *, workers: Workers | None = None, quiet: bool = True
) -> TransformReport:
    """Write the dataset that the rollouts of `inputs` make; `-` is stdin. Unless `quiet`, long work tells how far it is.

    `workers` read and convert; without them the processes of `settings.workers` do.

    Nothing is written when an error is raised: ConfigError for settings that do not fit, an unreadable file and, unless it is
    allowed, an empty dataset; DataError for the first bad row, unless those are skipped.
    """
    plan = make_plan(inputs, settings)
    outputs = outputs_of(settings)
    with ExitStack() as stack:
        sources = stack.enter_context(open_sources(plan.inputs, seekable=plan.asks_siblings))
        _check_inputs(plan, sources)
        files = [stack.enter_context(written_aside(path)) for path in outputs]
        run = _two_passes if plan.asks_siblings else _one_pass
        writer = _Writer(files)
        if workers is None:
            workers = stack.enter_context(_processes(sources, settings.workers))
        with Teller(sources, quiet=quiet) as teller:
            evidence = run(plan, sources, writer, workers, teller)
        if not settings.allow_empty:
            _check_not_empty(evidence, outputs)
        report = make_report(evidence, plan, spooled=[str(source.path) for source in sources if source.spooled])
        writer.flush()  # a full disk shows before the report tells of rows
        if settings.report is not None:
            write_report(report, settings.report)
    return report


def _processes(sources: Sequence[Source], num: int) -> Processes:
    """So many, for inputs that are worth their start."""
    size = sum(source.place.stat().st_size for source in sources)
    return Processes(num if size >= WORKERS_FROM_BYTES else 1, imports=[converting.__name__])


class _Writer:
    """The files of a dataset: one, or train and validation."""

    def __init__(self, files: Sequence[BinaryIO]):
        self._files = files
        self.num_rows = [0] * len(files)

    def write(self, converted: Converted) -> None:
        """Take rows, each to its file."""
        if len(self._files) == 1:
            self._files[0].writelines(converted.rows)
            self.num_rows[0] += converted.num_rows
            return
        for number in (0, 1):
            chosen = [row for row, held_out in zip(converted.rows, converted.validation, strict=True) if held_out == number]
            self._files[number].writelines(chosen)
            self.num_rows[number] += len(chosen)

    def flush(self) -> None:
        """Bring to the files what is still in memory."""
        for file in self._files:
            file.flush()


def _one_pass(plan: Plan, sources: Sequence[Source], writer: _Writer, workers: Workers, teller: Teller) -> Evidence:
    """Convert every block as it comes."""
    evidence, seen, frames = Evidence(), set[int](), _Frames()
    for converted in teller.reading(workers.ordered_map(partial(BlockConverter, plan), _blocks(sources, workers))):
        num_rows = converted.num_rows
        if plan.dedupe == "exact":
            _drop_seen(converted, seen)
        writer.write(converted)
        evidence.rows_in += converted.rows_in
        evidence.rows_used += converted.num_rows
        evidence.num_joined_prompts += sum(converted.joined)
        evidence.dropped += converted.dropped
        evidence.tools += converted.tools
        evidence.components += converted.components
        if repeated := num_rows - converted.num_rows:
            evidence.dropped["duplicate"] += repeated
        if converted.index is not None:
            frames.add(converted.index)
    evidence.num_rows = writer.num_rows
    evidence.index = frames.whole() if plan.with_statistics else None
    return evidence


def _two_passes(plan: Plan, sources: Sequence[Source], writer: _Writer, workers: Workers, teller: Teller) -> Evidence:
    """Index all lines, decide, then convert what was chosen."""
    evidence = Evidence()
    indexed = teller.reading(workers.ordered_map(partial(BlockIndexer, plan), _blocks(sources, workers)))
    selection = _selected(plan, indexed, evidence)
    made = workers.ordered_map(partial(UnitConverter, plan), _units(plan, sources, selection))
    for converted in teller.writing(made, total=selection.units.height):
        writer.write(converted)
        evidence.num_joined_prompts += sum(converted.joined)
    reasons = selection.index["reason"]
    evidence.rows_in, evidence.rows_used = selection.index.height, reasons.null_count()
    evidence.dropped = Counter(dict(reasons.drop_nulls().cast(pl.String).value_counts().iter_rows()))
    evidence.num_rows = writer.num_rows
    evidence.index, evidence.pairs = selection.index, selection.units if plan.format.unit == "pair" else None
    return evidence


def _selected(plan: Plan, results: Iterable[Converted], evidence: Evidence) -> Selection:
    """What siblings decide over the index of all blocks; `evidence` learns of tools and components."""
    frames = _Frames()
    with SignatureFile() if plan.dedupe == "near" else nullcontext() as signatures:
        for indexed in results:
            if indexed.index is not None:
                frames.add(indexed.index)
            if signatures is not None:
                signatures.skip(indexed.rows_in) if indexed.signatures is None else signatures.append(indexed.signatures)
            evidence.tools += indexed.tools
            evidence.components += indexed.components
        return select(frames.whole(), plan, signatures)


class _Frames:
    """Frames of the same columns, one below the other, in as few pieces as take no second copy of all."""

    def __init__(self) -> None:
        self._pieces: list[pl.DataFrame] = []
        self._latest: list[pl.DataFrame] = []

    def add(self, frame: pl.DataFrame) -> None:
        self._latest.append(frame)
        if len(self._latest) == FRAMES_PER_PIECE:
            self._pieces.append(pl.concat(self._latest, rechunk=True))
            self._latest = []

    def whole(self) -> pl.DataFrame:
        """All of them; there is at least one. Nothing is left here."""
        pieces, self._pieces, self._latest = [*self._pieces, *self._latest], [], []
        return pl.concat(pieces)


def _blocks(sources: Sequence[Source], workers: Workers) -> Iterator[Block]:
    """Other processes read plain files themselves."""
    return blocks(sources) if workers.num == 1 else blocks(sources, size=PART_BYTES, with_data=False)


def _drop_seen(converted: Converted, seen: set[int]) -> None:
    """Leave the rows that repeat no earlier one; `seen` learns their keys."""
    fresh = []
    for key in converted.keys:
        fresh.append(key not in seen)
        seen.add(key)
    converted.rows = list(compress(converted.rows, fresh))
    converted.num_rows = len(converted.rows)
    converted.validation = list(compress(converted.validation, fresh))
    converted.joined = list(compress(converted.joined, fresh))


def _units(plan: Plan, sources: Sequence[Source], selection: Selection) -> Iterator[list[Unit]]:
    """The chosen rollouts with their places, in the order in which their rows are written, some at a time."""
    sides = ("first", "second") if plan.format.unit == "pair" else ("first",)
    index = selection.index.select("source", "line", "offset", "length", "validation")
    units, groups = selection.units, selection.groups if plan.format.task_line is not None else None
    if groups is not None:
        units = units.join(groups, on="task", how="left", maintain_order="left")
    for part in units.iter_slices(UNITS_AT_ONCE):
        places = [_places(index[part[side]], sources) for side in sides]
        validation = index["validation"][part["first"]].fill_null(value=False).to_list()
        told = [None] * part.height if groups is None else part.select(groups.columns).drop("task").rows(named=True)
        made = list(map(Unit, zip(*places, strict=True), validation, told))
        for start in range(0, len(made), UNITS_PER_ITEM):
            yield made[start : start + UNITS_PER_ITEM]


def _places(lines: pl.DataFrame, sources: Sequence[Source]) -> list[Place]:
    rows = lines.select("source", "line", "offset", "length").iter_rows()
    return [Place(source, sources[source].place, Span(*span)) for source, *span in rows]


def columns_of(inputs: Sequence[Path]) -> list[Column]:
    """What expressions may name: our columns, the own fields of the first rows of `inputs`, and the columns of groups.

    Raises ConfigError for an unreadable or empty file.
    """
    with open_sources(inputs, seekable=False) as sources:
        names = _names_in(sources) | _names_of_tasks(map(materialized_inputs_of, inputs))
    own = sorted(names - set(ROLLOUT_COLUMNS))
    named = [Column(name, "any", "A field of the rows, or a part of their reward_components.") for name in own]
    groups = [Column(one.name, one.type, f"For --where-group: {one.about}") for one in GROUP_COLUMNS.values()]
    return [*ROLLOUT_COLUMNS.values(), *named, *groups]


def _check_inputs(plan: Plan, sources: Sequence[Source]) -> None:
    """Raises ConfigError for an empty file, and for a column that an expression asks for and that is nowhere to be found."""
    if plan.where_group is not None:
        check_names(parse_expression(plan.where_group), GROUP_COLUMNS)
    asked = [parse_expression(text) for text in (plan.where, plan.reward) if text is not None]
    names_fields = any(expression.names - ROLLOUT_COLUMNS.keys() for expression in asked)
    known = set(ROLLOUT_COLUMNS) | _names_in(sources, num_lines=SAMPLED_LINES if names_fields else 1)
    known |= _names_of_tasks(plan.task_inputs) if names_fields else set()
    for expression in asked:
        check_names(expression, known)


def _names_in(sources: Sequence[Source], num_lines: int = SAMPLED_LINES) -> set[str]:
    """Names that the first rows of every source know. Raises ConfigError for an empty file."""
    known: set[str] = set()
    for source in sources:
        lines = (line for block in blocks([source]) for line in filter(bytes.strip, block.read().split(b"\n")))
        first = next(lines, None)
        if first is None:
            raise ConfigError(f"{source.path}: the file is empty; expected one JSON object a line")
        for line in chain([first], islice(lines, num_lines - 1)):
            known |= _names_of(line)
    return known


def _names_of_tasks(paths: Iterable[Path | None]) -> set[str]:
    """Names that the first rows of materialized inputs know."""
    lines = (islice(read_lines(path), SAMPLED_LINES) for path in paths if path is not None)
    return {name for _, line in chain.from_iterable(lines) for name in _names_of(line)}


def _names_of(line: bytes) -> set[str]:
    """Names that a row knows; none of a bad one, which is met again and told with its number."""
    try:
        return set(known_names(parse_line(line, path=None)))
    except DataError:
        return set()


def _check_not_empty(evidence: Evidence, outputs: Sequence[Path]) -> None:
    """Raises ConfigError when a file would be empty, with what became of the rollouts."""
    empty = [path for path, count in zip(outputs, evidence.num_rows, strict=True) if count == 0]
    if len(empty) == len(outputs):
        dropped = sorted(evidence.dropped.items(), key=lambda drop: (-drop[1], drop[0]))
        told = ", ".join(f"{count} {reason}" for reason, count in dropped)
        raise ConfigError(f"no row is left for {outputs[0]}: of {evidence.rows_in} rows, {told}{ADVICE.get(dropped[0][0], '')}")
    if empty:
        raise ConfigError(f"no task falls to {empty[0]}; change --split or --seed, or leave --split out")
