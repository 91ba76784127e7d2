"""What comes after a recipe's run: the commands that go on with what it left."""

import json
import shlex
from itertools import count
from typing import Any

from gym_bridge.config import StrictModel, leaves, read_settings
from gym_bridge.errors import ConfigError
from gym_bridge.recipes.catalogue import PLAIN, Recipe, find_recipe
from gym_bridge.recipes.checking import NoEffectError
from gym_bridge.recipes.planning import PROGRESS, Plan, is_brought, plan
from gym_bridge.schemas.recipe_manifest import NextStep

IN_FORCE = {"model": "model", "server": "server", "knobs": "knobs", "max_tokens": "play.max_output_tokens"}
"""By a parameter of the next recipe the setting of this one that it is to be, where its own config says otherwise."""
BROUGHT = ("train_tasks", "heldout_tasks")
"""What the user brought here is brought there too."""


class NextCommand(StrictModel):
    """A step to take."""

    when: str
    command: str


def next_commands(done: Plan, *, last_gain: int | None = None) -> tuple[NextCommand, ...]:
    """The commands of what step.toml says comes next, for what is there of what it hands on; each of them can be planned.

    `last_gain`: of a recipe with rounds, the last one that gained something; without any there is nothing to go on with.
    """
    config = done.config if done.config in PLAIN else max(PLAIN, key=lambda name: _num_alike(done, name))
    found = []
    for one in done.recipe.manifest.next if last_gain != 0 else ():
        hands = _hands(done, one, last_gain)
        words = None if hands is None else _overrides(done, one, hands, config)
        if words is not None:
            command = shlex.join(["gym-bridge", "recipe", "run", one.step, "-c", config, *words])
            found.append(NextCommand(when=one.when, command=command))
    return tuple(found)


def _num_alike(done: Plan, name: str) -> int:
    """Settings that the run's config has from the one called `name`."""
    ours, theirs = (dict(leaves(read_settings(done.recipe.config(one), shelf=done.recipe.folder))) for one in (done.config, name))
    return sum(ours.get(key) == value for key, value in theirs.items())


def _hands(done: Plan, following: NextStep, last_gain: int | None) -> dict[str, str] | None:
    """What is handed on; None where something of it was neither left by the run nor brought by the user."""
    found = {}
    for parameter, path in following.hands.items():
        left = done.output / (path if last_gain is None else path.replace("round_1/", f"round_{last_gain}/"))
        brought = _brought(done, parameter)
        if not left.exists() and brought is None:
            return None
        found[parameter] = str(left) if left.exists() else str(brought)
    return found


def _overrides(done: Plan, following: NextStep, hands: dict[str, str], config: str) -> list[str] | None:
    """What the next recipe is told, as far as it heeds it; None where no such command can be planned."""
    try:
        recipe = find_recipe(following.step)
    except ConfigError:  # one of the user's, in a folder that is not known here
        return _words(hands)
    known = {one.name for one in recipe.manifest.parameters}
    brought = {name: _brought(done, name) for name in BROUGHT if name in known - hands.keys()}
    given = {**_in_force(done, following, recipe, config), **hands, **brought}
    given = {name: value for name, value in given.items() if name in known and value is not None}
    while True:
        try:
            planned = plan(recipe, config=config, overrides=_words(given))
            return [*_words(given), *_elsewhere(planned)]
        except NoEffectError as error:
            del given[error.parameter]
        except ConfigError:
            return None


def _elsewhere(planned: Plan) -> list[str]:
    """An output that is free, where a recipe has run in the one that it would take."""
    usual = planned.output
    if not (usual / PROGRESS).exists():
        return []
    free = next(place for number in count(2) if not (place := usual.with_name(f"{usual.name}_{number}")).exists())
    return [f"output={free}"]


def _in_force(done: Plan, following: NextStep, recipe: Recipe, config: str) -> dict[str, Any]:
    theirs = read_settings(recipe.config(config), shelf=recipe.folder)
    found: dict[str, Any] = {}
    for name, key in {**IN_FORCE, **following.takes}.items():
        value = _setting(done, key)
        if value != theirs.get(name):
            both = isinstance(value, dict) and isinstance(theirs.get(name), dict)
            found[name] = {**dict.fromkeys(theirs[name]), **value} if both else value  # null takes a key out
    return found


def _setting(done: Plan, key: str) -> Any:
    name, *rest = key.split(".")
    value = getattr(done.settings, name, None)
    for one in rest:
        value = value.get(one) if isinstance(value, dict) else None
    return value


def _brought(done: Plan, parameter: str) -> Any:
    return getattr(done.settings, parameter, None) if is_brought(parameter, done.brought) else None


def _words(given: dict[str, Any]) -> list[str]:
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given.items()]
