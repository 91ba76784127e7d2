"""`gym-bridge reverify`."""

from dataclasses import asdict
from typing import Any

import click

from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.cli.printing import print_json
from gym_bridge.config import validate
from gym_bridge.schemas.play_settings import ReverifySettings
from gym_bridge.schemas.remote_names import shown


@click.command(
    "reverify",
    epilog="Example: gym-bridge reverify --input runs/x/rollouts.jsonl --server http://127.0.0.1:9000 --output runs/x/again.jsonl",
)
@settings_options(ReverifySettings)
@output_options
def command(quiet: bool, as_json: bool, **options: Any) -> None:
    """Score stored rollouts again without sampling, and tell how the rewards differ."""
    from gym_bridge.api.reverifying import reverify

    result = reverify(validate(ReverifySettings, given(options)), quiet=quiet)
    if as_json:
        print_json({**asdict(result), "output": shown(result.output)})
        return
    click.echo(f"{shown(result.output)}: {result.ledger.describe()}")
    if result.mean_before is not None:
        click.echo(f"mean reward {result.mean_before:.4f} before, {result.mean_after:.4f} now; {result.num_changed} changed")
    if result.num_new:
        click.echo(f"{result.num_new} rollouts that had no reward have one")
