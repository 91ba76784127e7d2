"""`gym-bridge transform`."""

from pathlib import Path
from typing import Any

import click

from gym_bridge import api
from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.cli.printing import print_json
from gym_bridge.config import validate
from gym_bridge.schemas.settings import TransformSettings


@click.command("transform", epilog="Example: gym-bridge transform runs/x/rollouts.jsonl --to sft --output sft.jsonl")
@click.argument("rollouts", nargs=-1, required=True, type=click.Path(path_type=Path))
@settings_options(TransformSettings)
@output_options
def command(rollouts: tuple[Path, ...], quiet: bool, as_json: bool, **options: Any) -> None:
    """Turn ROLLOUTS files into one dataset, and account for every row."""
    settings = validate(TransformSettings, given(options))
    report = api.transform(rollouts, settings)
    if as_json:
        print_json(report.model_dump())
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items()) or "none"
    click.echo(
        f"{settings.output}: {report.rows_out} rows from {report.rows_used} of {report.rows_in} rollouts; dropped: {dropped}"
    )
