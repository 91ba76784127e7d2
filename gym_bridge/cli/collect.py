"""`gym-bridge collect`."""

import math
from typing import Any

import click

from gym_bridge.api import collecting
from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.cli.printing import print_json
from gym_bridge.config import validate
from gym_bridge.schemas.play_settings import CollectSettings
from gym_bridge.schemas.remote_names import shown


@click.command(
    "collect", epilog="Example: gym-bridge collect --input tasks.jsonl --output runs/x/rollouts.jsonl --server arithmetic"
)
@settings_options(CollectSettings)
@output_options
def command(quiet: bool, as_json: bool, **options: Any) -> None:
    """Play tasks against a resource server and log the rollouts; the same command again goes on where this one stopped."""
    result = collecting.collect(validate(CollectSettings, given(options)), quiet=quiet)
    if as_json:
        print_json(
            {
                "output": shown(result.output),
                "mean_reward": result.mean_reward,
                "ledger": result.ledger,
                "stopped": result.stopped,
            }
        )
        return
    reward = "no reward yet" if math.isnan(result.mean_reward) else f"mean reward {result.mean_reward:.4f}"
    click.echo(f"{shown(result.output)}: {result.ledger.describe()}; {reward}")
    if result.stopped is not None:
        click.echo(f"stopped early: {result.stopped}; the same command goes on with a new budget")
