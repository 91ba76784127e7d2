"""`gym-bridge audit`."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from gym_bridge.api import data
from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.cli.printing import print_json
from gym_bridge.config import validate
from gym_bridge.tokens.audit.findings import AuditReport, ShownRow
from gym_bridge.tokens.audit.settings import AuditSettings

TRAINED = ("green", "bright_green")
"""Of one token and the next, so that their borders are seen."""


@click.command("audit", epilog="Example: gym-bridge audit sft.jsonl --model smollm2-135m --max-length 2048 --show 1")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--model", default="smollm2-135m", show_default=True, help="Whose tokenizer and chat template the file is checked against."
)
@settings_options(AuditSettings)
@output_options
def command(file: Path, model: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Check FILE, rollouts, tasks or a dataset; exit 1 when a problem is found, 0 when there are only notes."""
    report = data.audit(file, model=model, settings=validate(AuditSettings, given(options)))
    if as_json:
        print_json(report.model_dump())
    else:
        _print(file, report, notes=not quiet)
    if report.num_problems:
        raise click.exceptions.Exit(1)


def _print(file: Path, report: AuditReport, *, notes: bool) -> None:
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for row in report.shown:
        click.echo(_coloured(row) if colours else row.marked())
    for problem in report.problems:
        click.echo(f"{file}:{problem.line}: {problem.check}: {problem.message}", err=True)
    for note in report.notes if notes else ():
        click.echo(f"{file}:{note.line}: note: {note.check}: {note.message}", err=True)
    told = len(report.problems) + len(report.notes)
    if told < sum(report.counts.values()) and (notes or report.num_problems > len(report.problems)):
        counts = ", ".join(f"{count} {check}" for check, count in report.counts.items())
        click.echo(f"{file}: not all are told above: {counts}", err=True)
    for one in report.overlaps:
        found = f"{one.num_found} of {one.num_texts} texts share n-grams with {one.num_rows} rows of {file}"
        click.echo(f"{one.path}: {found}; {one.num_too_short} too short to be compared")
    click.echo(f"{file}: {report.describe()}")


def _coloured(row: ShownRow) -> str:
    text = ""
    for number, (token, trains) in enumerate(row.tokens):
        text += click.style(token, fg=TRAINED[number % 2], reverse=True) if trains else click.style(token, dim=True)
    return text
