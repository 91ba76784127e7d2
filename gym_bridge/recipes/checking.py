"""What is wrong with a plan although each of its stages is right by itself: settings that nothing reads, files that clash."""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gym_bridge.config import leaves, read_settings
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.recipes.catalogue import STAGES, Recipe
from gym_bridge.recipes.reading import input_words
from gym_bridge.schemas.recipe_settings import RecipeSettings

if TYPE_CHECKING:
    from gym_bridge.recipes.planning import Stage

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def check_complete(recipe: Recipe, config: str, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a config that sets no value for some parameters, where they are not `given` either."""
    file = recipe.config(config)
    set_there = {*read_settings(file, shelf=recipe.folder), *given}
    if missing := [one.name for one in recipe.manifest.parameters if one.name not in set_there]:
        raise ConfigError(f"{file} says nothing of {', '.join(missing)}; begin it with `defaults: tiny.yaml`, which does")


def check_keys(recipe: Recipe, config: str, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key within a parameter that nothing reads, set by the config or `given`: it would have no effect."""
    values = read_settings(recipe.config(config), shelf=recipe.folder)
    sources = (read_settings(recipe.folder / STAGES), values, given)
    read = sorted({name for one in sources for name in _REFERENCE.findall(json.dumps(one, default=str))})
    parameters = {one.name for one in recipe.manifest.parameters} - RecipeSettings.model_fields.keys()
    for key, value in (pair for one in (values, given) for pair in leaves(one)):
        parameter = key.partition(".")[0]
        if parameter not in parameters or any(key == one or key.startswith(f"{one}.") for one in read):
            continue
        within = [one for one in read if one.startswith(f"{key}.")]
        if within and not isinstance(value, Mapping):
            raise ConfigError(f"{key}={value}: it holds {', '.join(within)}; set those")
        known = [one for one in read if one.startswith(f"{parameter}.")]
        if not within and known:
            raise ConfigError(f"unknown key {key!r}{nearest(key, known)}")


class NoEffectError(ConfigError):
    """A parameter was set that nothing reads."""

    def __init__(self, parameter: str):
        super().__init__(f"{parameter} would have no effect: with these settings no stage that runs reads it")
        self.parameter = parameter


def check_heeded(recipe: Recipe, config: str, overrides: Sequence[str], running: Sequence[str], brought: Collection[str]) -> None:
    """Raises NoEffectError for a parameter that was overridden where no stage of those that are `running` reads it, ConfigError for
    a setting of a stage that does not run. `brought` are the parameters that the user set, by a config too.
    """
    raw = read_settings(recipe.folder / STAGES, recipe.config(config), overrides=overrides, shelf=recipe.folder)
    if idle := [*_idle_parameters(recipe, raw, overrides, running, brought), *_overruled_keys(raw, overrides, running)]:
        raise NoEffectError(idle[0])
    for key in (one.partition("=")[0] for one in overrides):
        scope, _, rest = key.partition(".")
        stage, _, setting = rest.partition(".")
        if scope == "stages" and setting and setting != "skip" and stage not in running:
            raise ConfigError(f"{key} would have no effect: with these settings {scope}.{stage} does not run")


def _idle_parameters(
    recipe: Recipe, raw: Mapping[str, Any], overrides: Sequence[str], running: Sequence[str], brought: Collection[str]
) -> list[str]:
    """The overridden parameters that neither stages read nor what these read, and that decide of no stage whether it runs."""
    stages = raw.get("stages", {})
    rounds = raw.get("rounds", {})
    every = [*stages.values(), *rounds.get("stages", {}).values()]
    deciding = {name for one in every for name in _deciding(one, brought)}
    heeded: set[str] = set()
    unread = [raw["output"], rounds, *(stages[name] for name in running)]
    while unread:
        found = {name.partition(".")[0] for name in _REFERENCE.findall(json.dumps(unread.pop(), default=str))}
        unread += [raw[name] for name in found - heeded if name in raw]
        heeded |= found
    named = dict.fromkeys(one.partition("=")[0].partition(".")[0] for one in overrides)
    parameters = {one.name for one in recipe.manifest.parameters} - RecipeSettings.model_fields.keys()
    return [name for name in named if name in parameters - heeded - deciding and not (recipe.repeats and name == "model")]


def _overruled_keys(raw: Mapping[str, Any], overrides: Sequence[str], running: Sequence[str]) -> list[str]:
    """The overridden keys of what stages share, such as `play.seed`, that each of those that run sets by itself."""
    every = [*(raw.get("stages", {})[name] for name in running), *raw.get("rounds", {}).get("stages", {}).values()]
    found = []
    for key, _ in leaves(read_settings(overrides=overrides)):
        parameter, _, name = key.partition(".")
        shared, name = f"${{{parameter}}}", name.partition(".")[0]
        sets = [name in one for one in every if one.get("common") == shared]
        for suite in (one for one in every if one.get("play") == shared):
            sets.append(any(all(name in one for one in suite[section].values()) for section in ("sets", "policies")))
        if name and sets and all(sets):
            found.append(key)
    return found


def _deciding(stage: Mapping[str, Any], brought: Collection[str]) -> list[str]:
    """The parameters by which alone a stage runs, or does not."""
    given = [name for name in stage.get("skip_when_given", ()) if name in brought]
    return given if len(given) == 1 else [] if given else list(stage.get("needs", ()))


def check_apart(recipe: Recipe, settings: RecipeSettings) -> None:
    """Raises ConfigError where two things of one type, such as tasks to train on and to evaluate on, are the same."""
    seen: dict[tuple[str, str], str] = {}
    for one in recipe.manifest.consumes:
        value = getattr(settings, one.parameter)
        if not isinstance(value, str):
            continue
        other = seen.setdefault((one.type, os.path.realpath(value)), one.parameter)
        if other != one.parameter:
            raise ConfigError(f"{other} and {one.parameter} are both {value}; what trains cannot tell what was learnt")


def check_consumed(recipe: Recipe, config: str, settings: RecipeSettings) -> None:
    """Raises ConfigError for what a recipe consumes that is no one path, and for null where the run would make its own."""
    theirs = read_settings(recipe.config(config), shelf=recipe.folder)
    for one in recipe.manifest.consumes:
        value = getattr(settings, one.parameter)
        if value is None and theirs.get(one.parameter) is not None:
            raise ConfigError(f"{one.parameter}=null: leave it out, and the run makes its own")
        if not isinstance(value, str | None):
            raise ConfigError(f"{one.parameter}={value!r}: expected one path")


def check_read(recipe: Recipe, output: Path, stages: "Sequence[Stage]") -> None:
    """Raises ConfigError for what is made for nobody, a file that is written or what a parameter asks for."""
    produced = {output / one.path for one in recipe.manifest.produces}
    for place, stage in enumerate(stages):
        leaves = stage.command.leaves
        words = [word for one in stages[place + 1 :] for word in one.command.argv]
        if any(produced & {leaf, *leaf.parents} or any(str(leaf) in word for word in words) for leaf in leaves):
            continue
        told = f"stages.{stage.name} writes {leaves[0]}, which no stage reads"
        if stage.command.text is not None:
            raise ConfigError(f"{told}; name it as the reward, as in the config shaped: reward={leaves[0]}")
        if stage.needs:
            raise ConfigError(f"{stage.needs[0]} would have no effect: {told}; name it where one reads, as a config with it does")


def check_tried(stages: "Sequence[Stage]") -> None:
    """Raises ConfigError for a GRPO on the reward of one server where the run tries those of others."""
    tried = {
        word: stage.name
        for stage in stages
        if stage.command.argv[:1] == ("check-reward",)
        for option, word in pairwise(stage.command.argv)
        if option == "--server"
    }
    for stage in stages:
        trained = [word.removeprefix("env.server=") for word in stage.command.argv if word.startswith("env.server=")]
        if stage.command.argv[:2] == ("train", "grpo") and tried and trained and trained[0] not in tried:
            other, check = next(iter(tried.items()))
            raise ConfigError(
                f"stages.{stage.name} trains on the reward of {trained[0]}, and stages.{check} tries that of {other}; name one "
                f"server for both by the recipe's own parameter, or leave the trial out: stages.{check}.skip=true"
            )


def check_files(stages: "Sequence[Stage]", shared: Sequence[Path], left: set[Path], named: Mapping[Path, str]) -> None:
    """Raises ConfigError for a file that two stages leave, and for what a stage reads in the run and no stage up to it leaves.

    What is there already may be read. `shared` are directories of files of several stages: the run's, first, and a round's; `left`
    is what was there before, and `named` tells the parameters that name files.
    """
    below = re.compile(rf"(?<![\w./-])(?:\./)*{re.escape(str(shared[0]))}/[^\s\"',\[\]{{}}]+")
    made: dict[Path, str] = {}
    for stage in stages:
        read = list(map(Path, below.findall("\n".join(input_words(stage.command.argv)))))
        for place in stage.command.leaves:
            if place in read:
                raise ConfigError(f"stages.{stage.name} would write over {place}, which it reads")
            other = made.setdefault(place, stage.name)
            if other != stage.name:
                raise ConfigError(f"stages.{other} and stages.{stage.name} both leave {place}; give one of them another place")
        left = left | places(stage, shared)
        for path in read:
            if not (any(path in (one, *one.parents) or one in path.parents for one in left) or path.exists()):
                setting = f"set {named[path]}=..." if path in named else "set what names it"
                told = f"stages.{stage.name} reads {path}, which no stage of this run leaves"
                raise ConfigError(f"{told}; {setting}, or do not skip the stage that leaves it")


def places(stage: "Stage", shared: Sequence[Path]) -> set[Path]:
    """What a stage leaves; with it all of a directory of its own."""
    return {leaf if leaf.parent in shared else leaf.parent for leaf in stage.command.leaves}
