"""`gym-bridge transform`."""

from typing import Any

import click

from gym_bridge.api import data
from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.cli.printing import print_json, print_table
from gym_bridge.config import validate
from gym_bridge.schemas.remote_names import mirrored, shown
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms.plan import outputs_of

NEEDED = ("to", "output")
"""Options that only `--columns` can do without."""


@click.command("transform", epilog="Example: gym-bridge transform runs/x/rollouts.jsonl --to sft --output sft.jsonl")
@click.argument("rollouts", nargs=-1, required=True, metavar="ROLLOUTS...")
@click.option("--columns", is_flag=True, help="List the names that --where, --reward and --where-group know for ROLLOUTS, and end.")
@settings_options(TransformSettings, not_required=NEEDED)
@output_options
def command(rollouts: tuple[str, ...], columns: bool, quiet: bool, as_json: bool, **options: Any) -> None:
    """Turn ROLLOUTS (files or directories of them, plain, .gz, .zst, - for stdin, or URLs) into one dataset, and account for every
    row."""
    inputs = [mirrored(one) for one in rollouts]
    if columns:
        known = data.transform_columns(inputs)
        if as_json:
            print_json([{"name": one.name, "type": one.type, "about": one.about} for one in known])
        else:
            print_table([(one.name, one.type, one.about) for one in known])
        return
    if missing := [name for name in NEEDED if options[name] is None]:
        raise click.UsageError(f"Missing option '--{missing[0]}'.")
    settings = settings_of(options)
    report = data.transform(inputs, settings, quiet=quiet)
    if as_json:
        print_json(report.model_dump())
    else:
        rows, _, notes = report.describe().partition("\n")
        click.echo(f"{' and '.join(map(shown, outputs_of(settings)))}: {rows}")
        if notes and not quiet:
            click.echo(notes)


def settings_of(options: dict[str, Any]) -> TransformSettings:
    """What the options ask for. Raises ConfigError for one that is missing or of the wrong type."""
    return validate(TransformSettings, given(options))
