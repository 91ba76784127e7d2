"""Prepare task files for training: placeholders resolved, every row checked, split, sharded, accounted for, resumable."""

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import orjson

from gym_bridge.api.placeholder_sources import Source, describe, identity, parse_sources, rows_at
from gym_bridge.config import validate
from gym_bridge.errors import ConfigError, DataError, nearest
from gym_bridge.io.digests import digest_file
from gym_bridge.io.jsonl import BYTE_ORDER_MARK, dump_line, parse_line, read_lines, written_aside
from gym_bridge.io.shards import ShardWriter, shard_sizes
from gym_bridge.schemas.nemo_rl_rows import PLACEHOLDER, RowKind, row_kind, row_problems
from gym_bridge.schemas.prep_settings import (
    MANIFEST_NAME,
    TRAIN,
    VALIDATION,
    PrepInput,
    PrepManifest,
    PrepSettings,
    Shard,
    SplitShards,
)
from gym_bridge.schemas.rollouts import Row, agent_ref
from gym_bridge.transforms.placeholders import Reference, at_path, reference, resolved

SHOWN_PROBLEMS = 10
LEFT_OUT = -1


@dataclass(slots=True)
class _Plan:
    """Where each line goes, in order of the files: the number of its split, or LEFT_OUT."""

    splits: list[str]
    places: array = field(default_factory=lambda: array("b"))
    counts: Counter[str] = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)
    kind: RowKind | None = None
    num_placeholders: int = 0
    beyond: int = 0


def prep(inputs: Sequence[str], settings: PrepSettings) -> PrepManifest:
    """Write the shards of `inputs`, each a file or SPLIT=FILE (train where no split is named), and their manifest.

    A run that finds its own unfinished or finished output goes on there, and writes no shard again whose digest is right.
    Raises ConfigError for settings that do not fit and for another run's output, DataError with every bad row.
    """
    files = [_input(text) for text in inputs]
    _check(files, settings)
    sources = parse_sources(settings.source)
    references = _references(files)
    used = {name: _known(name, sources) for name in sorted({one.dataset for one in references})}
    read = tuple(PrepInput(path=str(path), split=split, sha256=digest_file(path)) for split, path in files)
    key = _key(read, used, settings)
    done = _finished_before(settings.output, key)
    completer = _Completer(used, references, settings)
    plan = _planned(files, completer, settings)
    if plan.bad_rows and settings.on_bad_row == "error":
        shown = "; ".join(plan.bad_rows[:SHOWN_PROBLEMS])
        more = len(plan.bad_rows) - SHOWN_PROBLEMS
        raise DataError(shown + (f"; and {more} more" if more > 0 else "") + "; leave such rows out with --on-bad-row skip")
    kind = _kind_of(plan, files, settings)
    manifest = PrepManifest(
        key=key,
        complete=False,
        kind=kind,
        rows_in=len(plan.places),
        placeholders=plan.num_placeholders,
        beyond_max_rows=plan.beyond,
        bad_rows=tuple(plan.bad_rows),
        inputs=read,
        sources={name: describe(source) for name, source in used.items()},
        compression=settings.compression,
        splits={split: SplitShards(rows=plan.counts[split]) for split in plan.splits},
    )
    return _write(manifest, files, plan, completer, settings, done)


def _kind_of(plan: _Plan, files: Sequence[tuple[str, Path]], settings: PrepSettings) -> RowKind:
    """The kind of the rows that are left. Raises ConfigError for a split without one."""
    if plan.bad_rows and not plan.counts:
        raise ConfigError(f"no row is left: all {len(plan.places)} rows are bad, the first: {plan.bad_rows[0]}")
    empty = next((split for split in plan.splits if not plan.counts[split]), None)
    if plan.kind is not None and empty is None:
        return plan.kind
    if settings.split and plan.counts:
        raise ConfigError(f"--split {settings.split} leaves no row for {empty}: the prompts are few; name a file for each split")
    read = ", ".join(str(path) for named, path in files if named == empty)
    raise ConfigError(f"{read}: no good row there for {empty}; expected one JSON object a line")


def _write(
    manifest: PrepManifest,
    files: Sequence[tuple[str, Path]],
    plan: _Plan,
    completer: "_Completer",
    settings: PrepSettings,
    done: dict[str, Shard],
) -> PrepManifest:
    sizes = {split: shard_sizes(one.rows, settings.num_shards) for split, one in manifest.splits.items()}
    shards: dict[str, list[Shard]] = {split: [] for split in sizes}

    def recorded(complete: bool) -> PrepManifest:
        splits = {split: SplitShards(rows=one.rows, shards=tuple(shards[split])) for split, one in manifest.splits.items()}
        now = manifest.model_copy(update={"complete": complete, "splits": splits})
        with written_aside(settings.output / MANIFEST_NAME) as file:
            file.write(now.model_dump_json(indent=2).encode() + b"\n")
        return now

    def finished(split: str, shard: Shard) -> None:
        shards[split].append(shard)
        done[shard.path] = shard
        recorded(False)

    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ShardWriter(
                    settings.output, split, sizes=sizes[split], compression=settings.compression, done=done, finished=finished
                )
            )
            for split in sizes
        }
        for place, (_, _, line) in zip(plan.places, _rows(files), strict=True):
            if place != LEFT_OUT:
                writers[plan.splits[place]].write(completer.line(line))
    return recorded(True)


def _planned(files: Sequence[tuple[str, Path]], completer: "_Completer", settings: PrepSettings) -> _Plan:
    """Check every line and decide where it goes."""
    plan = _Plan(splits=list(dict.fromkeys([*(split for split, _ in files), *([VALIDATION] if settings.split else [])])))
    for (split, path), number, line in _rows(files):
        try:
            given = parse_line(line, path=None)
            row = completer.complete(given)
            plan.kind = plan.kind or row_kind(row)
            _check_row(row, plan.kind)
        except DataError as error:
            plan.bad_rows.append(f"{path}:{number}: {error}")
            plan.places.append(LEFT_OUT)
            continue
        if settings.split and split == TRAIN and _is_validation(row, settings):
            split = VALIDATION
        if settings.max_rows is not None and plan.counts[split] >= settings.max_rows:
            plan.beyond += 1
            plan.places.append(LEFT_OUT)
            continue
        plan.counts[split] += 1
        plan.num_placeholders += PLACEHOLDER in given
        plan.places.append(plan.splits.index(split))
    return plan


def _check_row(row: Row, kind: RowKind | None) -> None:
    found = row_kind(row)
    if kind is None or found is None:
        raise DataError("neither a task row nor a row that NeMo RL trains on")
    if found is not kind:
        raise DataError(f"a row of kind {found} among {kind} rows")
    if wrong := row_problems(row, kind):
        raise DataError("; ".join(wrong))


def _is_validation(row: Mapping[str, Any], settings: PrepSettings) -> bool:
    """Drawn from the prompt alone, so that added rows move none and one prompt stays on one side."""
    digest = blake2b(orjson.dumps([settings.seed, _prompt(row)], option=orjson.OPT_SORT_KEYS), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 < (settings.split or 0)


def _prompt(row: Mapping[str, Any]) -> Any:
    if "responses_create_params" in row:
        return row["responses_create_params"]["input"]
    if "messages" in row:
        roles = [message["role"] for message in row["messages"]]
        return row["messages"][: roles.index("assistant")]
    return row.get("context", row.get("prompt", row.get("input")))


class _Completer:
    """Fills in what rows leave open: questions that stand in a source, and the agent."""

    def __init__(self, sources: Mapping[str, Source], references: Sequence[Reference], settings: PrepSettings):
        self._settings = settings
        columns = [path.split(".")[0] for path in (settings.question_field, settings.answer_field)]
        self._rows = {
            name: rows_at(source, (one.row for one in references if one.dataset == name), columns)
            for name, source in sources.items()
        }

    def complete(self, row: Row) -> Row:
        """The row with its question and its agent in it; the row itself when it has them. Raises DataError."""
        if self._settings.agent and not row.get("agent_ref") and not row.get("task_source"):
            row = row | ({"agent_ref": agent_ref(self._settings.agent)} if row_kind(row) is RowKind.TASKS else {})
        meant = reference(row)
        if meant is None:
            return row
        found = self._rows[meant.dataset].get(meant.row)
        if found is None:
            raise DataError(f"{meant.dataset} has no row {meant.row}")
        question, answer = (at_path(found, path) for path in (self._settings.question_field, self._settings.answer_field))
        return resolved(row, question=question, answer=answer)

    def line(self, line: bytes) -> bytes:
        """The line to write: its own bytes where nothing is left open."""
        if self._settings.agent or PLACEHOLDER.encode() in line:
            row = parse_line(line, path=None)
            completed = self.complete(row)
            if completed is not row:
                return dump_line(completed)
        return line.removeprefix(BYTE_ORDER_MARK).strip() + b"\n"


def _references(files: Sequence[tuple[str, Path]]) -> list[Reference]:
    """Every placeholder of the inputs; those that mean nothing are left for the check of the rows."""
    found = []
    for _, _, line in _rows(files):
        if PLACEHOLDER.encode() in line:
            try:
                meant = reference(parse_line(line, path=None))
            except DataError:
                continue
            found += [meant] if meant else []
    return found


def _rows(files: Sequence[tuple[str, Path]]) -> Iterator[tuple[tuple[str, Path], int, bytes]]:
    for file in files:
        for number, line in read_lines(file[1]):
            yield file, number, line


def _input(text: str) -> tuple[str, Path]:
    """(split, file) of an input."""
    named = re.fullmatch(r"([A-Za-z][A-Za-z0-9_]*)=(.+)", text)
    if named and not Path(text).exists():
        return named[1], Path(named[2])
    return TRAIN, Path(text)


def _check(files: Sequence[tuple[str, Path]], settings: PrepSettings) -> None:
    if not files:
        raise ConfigError("no input file; name at least one")
    if len({path.resolve() for _, path in files}) < len(files):
        raise ConfigError("an input file is named twice; its rows would count twice")
    splits = {split for split, _ in files}
    if settings.split and VALIDATION in splits:
        raise ConfigError("--split takes validation rows out of train, but a validation file is given; leave one out")
    if settings.split and TRAIN not in splits:
        raise ConfigError(f"--split takes validation rows out of train, found {', '.join(sorted(splits))} only")


def _known(name: str, sources: Mapping[str, Source]) -> Source:
    if name not in sources:
        raise ConfigError(
            f"placeholders name the dataset {name!r}; say where it is with --source {name}=PATH{nearest(name, sources)}"
        )
    return sources[name]


def _key(read: Sequence[PrepInput], sources: Mapping[str, Source], settings: PrepSettings) -> str:
    parts = {
        "inputs": [(one.split, one.sha256) for one in read],
        "sources": {name: identity(source) for name, source in sources.items()},
        "settings": settings.model_dump(mode="json", exclude={"output", "source"}),
    }
    return sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _finished_before(output: Path, key: str) -> dict[str, Shard]:
    """The shards that an earlier run of the same key finished. Raises ConfigError for a directory that is another's."""
    if not output.exists():
        return {}
    manifest = output / MANIFEST_NAME
    if not output.is_dir():
        raise ConfigError(f"{output}: a file; --output takes a directory")
    if not manifest.exists():
        if any(not path.name.startswith(".") for path in output.iterdir()):
            raise ConfigError(f"{output}: holds other files and no {MANIFEST_NAME}; write to a new --output")
        return {}
    before = validate(PrepManifest, parse_line(manifest.read_bytes(), path=manifest))
    if before.key != key:
        raise ConfigError(
            f"{output}: holds the shards of other inputs or settings; write to a new --output, or remove that directory first"
        )
    return {shard.path: shard for split in before.splits.values() for shard in split.shards}
