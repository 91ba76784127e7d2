"""`gym-bridge tasks`."""

from pathlib import Path

import click

from gym_bridge.api import data
from gym_bridge.cli.options import output_options
from gym_bridge.cli.printing import print_json
from gym_bridge.errors import ConfigError


@click.command("tasks", epilog="Example: gym-bridge tasks arithmetic --num-tasks 500 --seed 1 --split train --output tasks.jsonl")
@click.argument("server")
@click.argument("knobs", nargs=-1)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The tasks file.")
@click.option("--num-tasks", type=int, default=100, show_default=True, help="How many tasks.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which tasks, and in which order.")
@click.option(
    "--split", type=click.Choice(["train", "heldout"]), default="train", show_default=True, help="The splits share no task."
)
@output_options
def command(
    server: str, knobs: tuple[str, ...], output: Path, num_tasks: int, seed: int, split: str, quiet: bool, as_json: bool
) -> None:
    """Write tasks of the resource server SERVER; KNOBS such as kind=tool set what it asks.

    SERVER is what `gym-bridge serve` takes: a name, a file.py or package.module:Class of yours, or a YAML file.
    """
    values = {}
    for knob in knobs:
        name, found, value = knob.partition("=")
        if not found:
            raise ConfigError(f"knob {knob!r} has no '='; write name=value")
        if name in ("num_tasks", "seed", "split"):
            raise ConfigError(f"knob {knob!r} is an option: write --{name.replace('_', '-')} {value}")
        values[name] = value
    count = data.make_tasks(server, output, num_tasks=num_tasks, seed=seed, split=split, knobs=values)  # pyright: ignore[reportArgumentType]
    if as_json:
        print_json({"output": str(output), "num_tasks": count})
    else:
        click.echo(f"{output}: {count} tasks")
