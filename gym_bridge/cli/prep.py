"""`gym-bridge prep`."""

from typing import Any

import click

from gym_bridge.api.preparing import prep
from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.cli.printing import print_json
from gym_bridge.config import validate
from gym_bridge.schemas.prep_settings import PrepSettings


@click.command("prep", epilog="Example: gym-bridge prep blend.jsonl --split 0.02 --num-shards 8 --output data/blend")
@click.argument("inputs", nargs=-1, required=True)
@settings_options(PrepSettings)
@output_options
def command(inputs: tuple[str, ...], quiet: bool, as_json: bool, **options: Any) -> None:
    """Resolve, check, split and shard task files for training. INPUTS are files, or SPLIT=FILE for several splits."""
    settings = validate(PrepSettings, given(options))
    manifest = prep(inputs, settings)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    for problem in () if quiet else manifest.bad_rows:
        click.echo(f"left out: {problem}", err=True)
    splits = ", ".join(
        f"{split} {_count(one.rows, 'row')} in {_count(len(one.shards), 'shard')}" for split, one in manifest.splits.items()
    )
    resolved = _count(manifest.placeholders, "placeholder")
    click.echo(
        f"{settings.output}: {splits}; {_count(manifest.rows_in, 'row')} read, {resolved} resolved, "
        f"{len(manifest.bad_rows)} bad, {manifest.beyond_max_rows} beyond --max-rows"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
