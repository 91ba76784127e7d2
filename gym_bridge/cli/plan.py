"""`gym-bridge plan`."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from gym_bridge.api import planning
from gym_bridge.cli.options import given, settings_options
from gym_bridge.cli.printing import print_json, print_table
from gym_bridge.cli.train import CONFIG_HELP
from gym_bridge.config import load_config, validate
from gym_bridge.schemas.nemo_rl_keys import nemo_rl_keys
from gym_bridge.schemas.plan import PlanSettings
from gym_bridge.schemas.settings import SETTINGS
from gym_bridge.schemas.shipped_configs import find_config

if TYPE_CHECKING:
    from gym_bridge.schemas.plan import Plan

TOO_LARGE = 1
REMEDY = "more processes, policy.activation_checkpointing=true, policy.optimizer=adamw_8bit, or a lower policy.microbatch_tokens"


@click.command(
    "plan",
    help="Tell what memory and time a training will need, without weights and before it starts; exit 1 when it does not fit.",
    epilog="Example: gym-bridge plan sft --config sft/tiny data.train=out/sft.jsonl --num-processes 2",
)
@click.argument("verb", type=click.Choice(list(SETTINGS)))
@click.argument("overrides", nargs=-1)
@click.option("--config", "configs", multiple=True, help=CONFIG_HELP)
@settings_options(PlanSettings)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--debug", is_flag=True, expose_value=False, help="Say what happens, and give tracebacks.")
def command(verb: Any, overrides: tuple[str, ...], configs: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Read the training's settings as `train` does, and tell what they come to."""
    files = [find_config(one, verb=verb) for one in configs]
    settings = load_config(SETTINGS[verb], files=files, overrides=list(overrides), foreign=nemo_rl_keys(verb))
    found = planning.plan(settings, validate(PlanSettings, given(options)))
    if as_json:
        print_json(asdict(found) | {"fits": found.fits})
    else:
        _print(found)
    if found.fits is False:
        sys.exit(TOO_LARGE)


def _print(found: "Plan") -> None:
    share = found.num_parameters_here / found.num_parameters
    click.echo(f"{found.num_parameters:,} parameters, {found.num_processes} processes; each holds {share:.3%} of them\n")
    print_table(
        [
            ("memory of a process", "GiB"),
            *((name, f"{size:.3f}") for name, size in found.memory_gib.items()),
            ("peak", f"{found.peak_gib:.3f}{'' if found.resident_gib else _of(found)}"),
            *([("resident, about", f"{found.resident_gib:.1f}{_of(found)}")] if found.resident_gib else []),
            ("", ""),
            ("time", ""),
            ("tokens/s, trained", _figure(found.tokens_per_s, ",.0f")),
            *([("tokens/s, sampled", _figure(found.sampled_tokens_per_s, ",.0f"))] if found.sampled_tokens_per_s else []),
            ("tokens a step", _figure(found.tokens_per_step, ",")),
            ("a step", _figure(found.step_s, ",.2f", " s")),
            (f"{_figure(found.num_steps, ',')} steps", _figure(found.total_s and found.total_s / 3600, ",.2f", " h")),
        ]
    )
    for note in found.notes:
        click.echo(f"note: {note}")
    if found.fits is False:
        click.echo(f"it does not fit; try {REMEDY}")


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "unknown" if value is None else f"{value:{form}}{unit}"


def _of(found: "Plan") -> str:
    return "" if found.available_gib is None else f" of {found.available_gib:.1f}"
