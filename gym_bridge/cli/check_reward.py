"""`gym-bridge check-reward`."""

import sys
from typing import Any

import click

from gym_bridge.api import checking_reward
from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.config import validate
from gym_bridge.errors import UNFIT
from gym_bridge.schemas.reward_check import CheckRewardSettings


@click.command(
    "check-reward",
    epilog="Example: gym-bridge check-reward --input tasks.jsonl --server arithmetic --report out/reward.json",
)
@settings_options(CheckRewardSettings, without={"workers"})
@output_options
def command(quiet: bool, as_json: bool, **options: Any) -> None:
    """Try a reward before training on it, at the cost of a small batch; exit 3 where it is broken.

    Known answers are verified, right ones, wrong ones and such as would fool a verifier. Then the policy plays: does a group's
    reward differ, do rollouts fail, what does one cost?
    """
    found = checking_reward.check_reward(validate(CheckRewardSettings, given(options)), quiet=quiet)
    click.echo(found.model_dump_json(indent=2) if as_json else found.to_text())
    if found.broken:
        sys.exit(UNFIT)
