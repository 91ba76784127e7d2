"""The streaming run: read rollouts, drop with counted reasons, convert, write, report."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import parse_line, read_lines, write_jsonl, written_aside
from gym_bridge.io.rollout_reader import PLACEHOLDER, RolloutView, view_row
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms import FORMATS
from gym_bridge.transforms.dpo import pair_rows
from gym_bridge.transforms.format import Example, Format, Tally

OnBadRow = Literal["error", "skip"]

ADVICE = {
    "low_reward": "; lower --min-reward",
    "bad_row": "; --on-bad-row error names the first of them",
    "small_margin": "; lower --min-margin",
    "no_partner": "; a pair needs several rollouts of one task",
    "tie": "; a pair needs two rewards that differ",
}


class TransformReport(StrictModel):
    """Where every rollout of a transform went: rows_in = rows_used + the sum of dropped."""

    rows_in: int
    """Lines read."""
    rows_used: int
    """Rollouts that are in the output; a pair uses two."""
    rows_out: int
    """Rows written."""
    dropped: dict[str, int]
    """Number of rollouts by the reason they are not in the output."""

    @model_validator(mode="after")
    def _closes(self) -> Self:
        if self.rows_in != self.rows_used + sum(self.dropped.values()):
            raise ValueError(f"the report does not close: {self.rows_in} rows in, {self.rows_used} used, {self.dropped}")
        return self


def transform_file(
    inputs: Sequence[Path],
    output: Path,
    *,
    to: str,
    min_reward: float | None,
    min_margin: float,
    on_bad_row: OnBadRow,
    report: Path | None,
) -> TransformReport:
    """Write the dataset of format `to` that the rollouts of `inputs` make; `report` gets the counts as JSON.

    A rollout below `min_reward` is dropped. A pair needs a margin above `min_margin`; its siblings stand in one file.
    Nothing is written when an error is raised: ConfigError for settings that do not fit, an unreadable file and an empty
    dataset; DataError for the first bad row, unless `on_bad_row` is "skip".
    """
    paths = [Path(path) for path in inputs]
    _check_paths(paths, output, report)
    form = FORMATS.load(to)
    if not isinstance(form, Format):
        raise ConfigError(f"{to} is a {type(form).__name__}; expected a gym_bridge.transforms.format.Format")
    selection = _Selection(form=form, min_reward=min_reward, min_margin=min_margin, on_bad_row=on_bad_row)
    _check_selection(selection, to)
    tally = Tally()
    write_jsonl(output, _at_least_one(_all_rows(paths, selection, tally), tally, output))
    counts = TransformReport(
        rows_in=tally.rows_in, rows_used=tally.rows_used, rows_out=tally.rows_out, dropped=dict(sorted(tally.dropped.items()))
    )
    if report is not None:
        with written_aside(report) as file:
            file.write(counts.model_dump_json(indent=2).encode() + b"\n")
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selection:
    form: Format
    min_reward: float | None
    min_margin: float
    on_bad_row: OnBadRow

    def drop_reason(self, rollout: RolloutView) -> str | None:
        """Why the format takes no such rollout; a truncated one has an answer that the model did not end."""
        if reason := rollout.drop_reason():
            return reason
        if rollout.truncated:
            return "truncated"
        if self.min_reward is not None and rollout.reward is not None and rollout.reward < self.min_reward:
            return "low_reward"
        return None


def _check_paths(inputs: Sequence[Path], output: Path, report: Path | None) -> None:
    if not inputs:
        raise ConfigError("no input file; name at least one rollouts file")
    sources = {os.path.realpath(path): path for path in inputs}
    if len(sources) < len(inputs):
        raise ConfigError("an input file is named twice; its rollouts would count twice")
    if source := sources.get(os.path.realpath(output)):
        raise ConfigError(f"{output}: the output is the input {source}; write to another file")
    if report is not None and os.path.realpath(report) in (*sources, os.path.realpath(output)):
        raise ConfigError(f"{report}: the report is an input or the output; write it to another file")


def _check_selection(selection: _Selection, to: str) -> None:
    if selection.form.pairs and selection.min_reward is not None:
        raise ConfigError(f"min_reward does not apply to {to}: pairs need bad answers too; leave it out, or set min_margin")
    if not selection.form.pairs and selection.min_margin != 0:
        raise ConfigError(f"min_margin does not apply to {to}, which makes no pairs; leave it out, or set min_reward")
    if not selection.min_margin >= 0:
        raise ConfigError(f"min_margin={selection.min_margin}; expected 0 or more")


def _all_rows(paths: Sequence[Path], selection: _Selection, tally: Tally) -> Iterator[Row]:
    for path in paths:
        examples = _examples(path, selection, tally)
        if selection.form.pairs:
            yield from pair_rows(examples, tally, min_margin=selection.min_margin)
        else:
            yield from _single_rows(examples, tally)


def _single_rows(examples: Iterable[Example], tally: Tally) -> Iterator[Row]:
    for example in examples:
        tally.rows_used += 1
        provenance = {
            "task": example.task,
            "rollout_index": example.rollout_index,
            "reward": example.reward,
            "source": example.source,
        }
        yield example.row | {"gym_bridge": provenance | example.row.get("gym_bridge", {})}


def _examples(path: Path, selection: _Selection, tally: Tally) -> Iterator[Example]:
    """The rollouts of a file that the format takes; all others are counted."""
    found = False
    for line, text in read_lines(path):
        found = True
        tally.rows_in += 1
        try:
            example = _example(text, f"{path}:{line}", selection, tally)
        except DataError as error:
            if selection.on_bad_row == "error":
                raise DataError(f"{error}; drop such rows with --on-bad-row skip", path=path, line=line) from error
            tally.dropped["bad_row"] += 1
            continue
        if example is not None:
            yield example
    if not found:
        raise ConfigError(f"{path}: the file is empty; expected one JSON object a line")


def _example(text: bytes, source: str, selection: _Selection, tally: Tally) -> Example | None:
    """What the format makes of one line; None for a rollout that is dropped and counted."""
    if text.strip() == PLACEHOLDER:
        tally.dropped["not_a_rollout"] += 1
        return None
    rollout = view_row(parse_line(text, path=None))
    reason = selection.drop_reason(rollout)
    row = selection.form.row(rollout) if reason is None else None
    if row is None or rollout.reward is None:
        tally.dropped[reason or "no_answer"] += 1
        return None
    return Example(row=row, task=rollout.task, rollout_index=rollout.rollout_index, reward=rollout.reward, source=source)


def _at_least_one(rows: Iterable[Row], tally: Tally, output: Path) -> Iterator[Row]:
    for row in rows:
        tally.rows_out += 1
        yield row
    if tally.rows_out == 0:
        commonest = tally.dropped.most_common(1)[0][0]
        raise ConfigError(
            f"no row is left for {output}: of {tally.rows_in} rows, {tally.describe_dropped()}{ADVICE.get(commonest, '')}"
        )
