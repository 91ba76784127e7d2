"""What comes after a recipe's run: the commands that go on with what it left."""

import json
import shlex
from typing import Any

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError
from gym_bridge.recipes.catalogue import PLAIN, find_recipe
from gym_bridge.recipes.planning import Plan, is_brought
from gym_bridge.schemas.recipe_manifest import NextStep

THE_SAME_AGAIN = ("model", "server", "knobs", "max_tokens")
"""Parameters that the next recipe is given too, where the user has set them for this one and nothing else is handed on as them."""


class NextCommand(StrictModel):
    """A step to take."""

    when: str
    command: str


def next_commands(plan: Plan, *, last_gain: int | None = None) -> tuple[NextCommand, ...]:
    """The commands of what step.toml says comes next, for what is there of what it hands on.

    `last_gain`: of a recipe with rounds, the last one that gained something; without any there is nothing to go on with.
    """
    found = []
    for one in plan.recipe.manifest.next if last_gain != 0 else ():
        hands = _hands(plan, one, last_gain)
        if hands is not None:
            config = plan.config if plan.config in PLAIN else PLAIN[0]
            given = {**_same_again(plan, one), **hands}
            words = ["gym-bridge", "recipe", "run", one.step, "-c", config, *(f"{name}={value}" for name, value in given.items())]
            found.append(NextCommand(when=one.when, command=shlex.join(words)))
    return tuple(found)


def _hands(plan: Plan, following: NextStep, last_gain: int | None) -> dict[str, str] | None:
    """What is handed on; None where something of it was neither left by the run nor brought by the user."""
    found = {}
    for parameter, path in following.hands.items():
        left = plan.output / (path if last_gain is None else path.replace("round_1/", f"round_{last_gain}/"))
        brought = _brought(plan, parameter)
        if not left.exists() and brought is None:
            return None
        found[parameter] = str(left) if left.exists() else str(brought)
    return found


def _same_again(plan: Plan, following: NextStep) -> dict[str, str]:
    try:
        known = {one.name for one in find_recipe(following.step).manifest.parameters}
    except ConfigError:  # a recipe of the user's, in a folder that is not known here
        known = set()
    given = {name: _brought(plan, name) for name in THE_SAME_AGAIN if name in known}
    return {name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in given.items() if value}


def _brought(plan: Plan, parameter: str) -> Any:
    return getattr(plan.settings, parameter, None) if is_brought(parameter, plan.brought) else None
