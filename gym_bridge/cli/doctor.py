"""`gym-bridge doctor`."""

import sys
from dataclasses import asdict
from typing import Any

import click

from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.cli.printing import print_json
from gym_bridge.config import validate
from gym_bridge.schemas.play_settings import BudgetSettings, DoctorSettings


@click.command(
    "doctor",
    epilog="Example: gym-bridge doctor --server http://127.0.0.1:9000 --model-url http://127.0.0.1:8000/v1 --model NAME",
)
@settings_options(DoctorSettings, without={*BudgetSettings.model_fields, "num_repeats", "limit", "cohort", "seed_per_repeat"})
@output_options
def command(quiet: bool, as_json: bool, **options: Any) -> None:
    """Play one rollout as `collect` would, keep nothing, and tell what works and what does not."""
    from gym_bridge.api.doctor import doctor

    checks = doctor(validate(DoctorSettings, given(options)))
    if as_json:
        print_json([asdict(one) for one in checks])
    elif not quiet:
        for one in checks:
            click.echo(f"{'ok    ' if one.ok else 'FAILED'}  {one.name}: {one.told}")
    if not all(one.ok for one in checks):
        sys.exit(1)
