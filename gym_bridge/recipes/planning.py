"""A recipe's settings resolved into stages: which are run, in which order, as which commands."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gym_bridge.config import leaves, load_config, read_settings, validate
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.recipes.catalogue import PLAIN, STAGES, Recipe
from gym_bridge.recipes.checking import (
    check_apart,
    check_complete,
    check_consumed,
    check_files,
    check_heeded,
    check_keys,
    check_read,
    check_tried,
    places,
)
from gym_bridge.recipes.commands import Command, command_of
from gym_bridge.schemas.recipe_settings import RecipeSettings, Round, RoundSettings, StageSettings, settings_model

PROGRESS = "recipe.jsonl"
"""In a run's directory: a line for each command that has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One command of a run."""

    name: str
    command: Command
    unless_empty: Path | None = None
    ignore_verdict: bool = False
    needs: tuple[str, ...] = ()
    """Parameters without which it would not be run."""

    @property
    def stops_if_unfit(self) -> bool:
        """Whether a reward that it finds broken ends the run."""
        return self.command.argv[:1] == ("check-reward",) and not self.ignore_verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe with its settings. Making one checks the settings of every stage."""

    recipe: Recipe
    config: str
    overrides: tuple[str, ...]
    brought: frozenset[str]
    """Keys that the user set."""
    settings: RecipeSettings
    """Resolved as in the first round."""
    stages: tuple[Stage, ...]
    """Those that are run once."""

    @property
    def output(self) -> Path:
        """Directory of all that is written."""
        return Path(self.settings.output)

    @property
    def cold(self) -> str | None:
        """The parameter that should name a trained policy and was not set; None where it was, or none is wanted."""
        warm = self.recipe.manifest.step.warm
        return None if warm is None or is_brought(warm, self.brought) else warm

    def first_round(self) -> tuple[Stage, ...]:
        """The stages that are repeated, as in the first round; none where a recipe has no rounds."""
        return () if self.settings.rounds is None else self.round(1, model=first_model(self.settings))[1]

    def every_stage(self) -> tuple[Stage, ...]:
        """Those that are run once, then those of as many rounds as there may be."""
        most = 0 if self.settings.rounds is None else self.settings.rounds.at_most
        model, found = first_model(self.settings) if most else "", list(self.stages)
        for number in range(1, most + 1):
            rounds, stages = self.round(number, model=model)
            model = rounds.newest
            found += stages
        return tuple(found)

    def round(self, number: int, *, model: str) -> tuple[RoundSettings, tuple[Stage, ...]]:
        """The stages of a round that begins with `model`. Raises ConfigError."""
        current = _round(self.output, number, model)
        settings = _resolved(self.recipe, self.config, self.overrides, current)
        assert settings.rounds is not None, "asked for where a recipe repeats"
        stages = _stages(settings.rounds.stages, settings, self.brought, prefix=f"round_{number}/")
        shared = (self.output, Path(current.directory))
        left = {Path(model)}.union(*(places(one, shared) for one in self.stages))
        check_files(stages, shared, left, _named(self.recipe, settings))
        return settings.rounds, stages


def plan(recipe: Recipe, *, config: str, overrides: Sequence[str]) -> Plan:
    """Resolve and check. Raises ConfigError for a config, a key or a value that is not understood, and for what is missing."""
    overrides = [_plain_output(one) for one in overrides]
    first = _resolved(recipe, config, overrides, None)
    if not first.stages and first.rounds is None:
        raise ConfigError(f"{recipe.folder / STAGES}: names no stage")
    keys = brought(recipe, config, overrides)
    needed = [one for one in recipe.manifest.consumes if one.required and not (one.unless and is_brought(one.unless, keys))]
    if missing := [one for one in needed if getattr(first, one.parameter) is None]:
        raise ConfigError(f"{missing[0].parameter!r} is required: {missing[0].description}; set {missing[0].parameter}=...")
    check_consumed(recipe, config, first)
    stages = _stages(first.stages, first, keys)
    check_apart(recipe, first)
    check_tried(stages)
    check_files(stages, (Path(first.output),), set(), _named(recipe, first))
    given = [one.name for one in recipe.manifest.parameters if is_brought(one.name, keys)]
    check_heeded(recipe, config, overrides, [one.name for one in stages], given)
    made = Plan(recipe=recipe, config=config, overrides=tuple(overrides), brought=keys, settings=first, stages=stages)
    check_read(recipe, Path(first.output), (*stages, *made.first_round()))
    return made


def brought(recipe: Recipe, config: str, overrides: Sequence[str]) -> frozenset[str]:
    """Dotted keys that were set: by overrides, but for null, and by a config that says other than tiny and default do."""
    parts = (one.partition("=") for one in overrides)
    found = {name for name, _, value in parts if value != "null"}
    plain = [dict(leaves(read_settings(recipe.config(name), shelf=recipe.folder))) for name in PLAIN if name in recipe.configs]
    said = leaves(read_settings(recipe.config(config), shelf=recipe.folder))
    found |= {key for key, value in said if value is not None and value not in [one.get(key) for one in plain]}
    return frozenset(found)


def is_brought(key: str, keys: frozenset[str]) -> bool:
    """Whether the user set `key`, by itself, in a mapping that holds it, or by something in it."""
    return any(key == one or key.startswith(f"{one}.") or one.startswith(f"{key}.") for one in keys)


def first_model(settings: RecipeSettings) -> str:
    """The policy that the first round begins with."""
    return str(getattr(settings, "model"))  # noqa: B009 - a parameter of the recipe's own


def _named(recipe: Recipe, settings: RecipeSettings) -> dict[Path, str]:
    """The parameters that name what the recipe consumes."""
    values = {one.parameter: getattr(settings, one.parameter) for one in recipe.manifest.consumes}
    return {Path(value): name for name, value in values.items() if isinstance(value, str)}


def _plain_output(override: str) -> str:
    """As commands are compared by: `output=run/` and `output=./run` are `output=run`."""
    name, _, value = override.partition("=")
    return f"output={os.path.normpath(value)}" if name == "output" and value else override


def _round(output: Path, number: int, model: str) -> Round:
    return Round(number=number, directory=str(output / f"round_{number}"), model=model)


def _resolved(recipe: Recipe, config: str, overrides: Sequence[str], current: Round | None) -> RecipeSettings:
    named = [one.partition("=")[0] for one in overrides]
    if "round" in {one.partition(".")[0] for one in named}:
        raise ConfigError("round is given by the run")
    given = read_settings(overrides=overrides)
    check_complete(recipe, config, given)
    check_keys(recipe, config, given)
    files = [recipe.folder / STAGES, recipe.config(config)]
    values: dict[str, Any] = {}
    if recipe.repeats:
        values = {"round": _FIRST if current is None else current.model_dump()}
    return load_config(settings_model(recipe.manifest), files=files, values=values, overrides=overrides, shelf=recipe.folder)


_FIRST = {"number": 1, "directory": "${output}/round_1", "model": "${model}"}


def _stages(
    stages: Mapping[str, Mapping[str, Any]], settings: RecipeSettings, keys: frozenset[str], *, prefix: str = ""
) -> tuple[Stage, ...]:
    made = []
    parameters = type(settings).model_fields
    absent = {name for name in parameters if getattr(settings, name) is None}
    for name, values in stages.items():
        try:
            told = _told(values)
            if unknown := [one for one in (*told.needs, *told.skip_when_given) if one not in parameters]:
                raise ConfigError(f"{unknown[0]!r} is no parameter of the recipe{nearest(unknown[0], parameters)}")
            if not (told.skip or any(is_brought(one, keys) for one in told.skip_when_given) or absent & set(told.needs)):
                made.append(_stage(prefix + name, told, values))
        except ConfigError as error:
            if "verb" not in values:
                other = nearest(name, [one for one in stages if one != name])
                raise ConfigError(f"stages.{name} has no verb, and the recipe has no such stage{other}") from error
            raise ConfigError(f"stages.{name}: {error}") from error
    return tuple(made)


def _told(values: Mapping[str, Any]) -> StageSettings:
    return validate(StageSettings, {key: value for key, value in values.items() if key in StageSettings.model_fields})


def _stage(name: str, told: StageSettings, values: Mapping[str, Any]) -> Stage:
    own = {key: value for key, value in values.items() if key not in StageSettings.model_fields}
    command = command_of(told.verb, {**told.common, **own})
    unless_empty = None if told.unless_empty is None else Path(told.unless_empty)
    return Stage(name=name, command=command, unless_empty=unless_empty, ignore_verdict=told.ignore_verdict, needs=told.needs)
