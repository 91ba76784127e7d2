"""`gym-bridge launch`."""

from typing import Any, get_args

import click

from gym_bridge.api import launching
from gym_bridge.cli.options import given, settings_options
from gym_bridge.config import load_config, validate
from gym_bridge.schemas.launch_settings import LaunchSettings, Where
from gym_bridge.schemas.nemo_rl_keys import nemo_rl_keys
from gym_bridge.schemas.settings import SETTINGS
from gym_bridge.schemas.shipped_configs import find_config


@click.command(
    "launch",
    help="Print the sbatch script, Kubernetes manifest or ssh script that starts a training, or submit it.",
    epilog="Example: gym-bridge launch slurm grpo --nodes 2 --gpus-per-node 8 --config rlvr/tiny cluster.kind=ray ...",
)
@click.argument("where", type=click.Choice(get_args(Where)))
@click.argument("verb", type=click.Choice(list(SETTINGS)))
@click.argument("overrides", nargs=-1)
@click.option("--config", "configs", multiple=True, help="As of gym-bridge train.")
@click.option("--submit", is_flag=True, help="Hand it to sbatch, kubectl or bash instead of printing it.")
@settings_options(LaunchSettings)
@click.option("--debug", is_flag=True, expose_value=False, help="Say what happens, and give tracebacks.")
def command(where: Where, verb: Any, overrides: tuple[str, ...], configs: tuple[str, ...], submit: bool, **options: Any) -> None:
    """Check the training's settings here, before anything waits in a queue."""
    files = [find_config(one, verb=verb) for one in configs]
    training = load_config(SETTINGS[verb], files=files, overrides=list(overrides), foreign=nemo_rl_keys(verb))
    named = [word for one in configs for word in ("--config", one)]
    settings = validate(LaunchSettings, given(options))
    text = launching.launch_text(where, settings, training, ["train", verb, *named, *overrides])
    click.echo(launching.submit(where, text) if submit else text, nl=False)
