"""What a recipe says of itself in its step.toml, in the layout of Nemotron's steps."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field

from gym_bridge.config import StrictModel, validate
from gym_bridge.errors import ConfigError, nearest


class Step(StrictModel):
    """`[step]`: what it is called."""

    id: str
    """Its name, that of its folder."""
    name: str
    """A title."""
    category: str
    """Its place among the steps: data, sft, preference, rl or chain."""
    description: str
    """A sentence."""
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    """Names of Nemotron's steps that mean this one."""
    warm: str | None = None
    """The parameter that should name a policy which was trained before; without it the run says that it starts cold."""


class Consumed(StrictModel):
    """`[[consumes]]`: something that a user may bring."""

    type: str
    """One of types.toml."""
    parameter: str
    """The parameter that names it."""
    required: bool = False
    """Without it the recipe does not start; otherwise it makes its own, or goes without."""
    unless: str | None = None
    """A parameter that stands in for it, where it is set."""
    description: str


class Produced(StrictModel):
    """`[[produces]]`: something that a finished run leaves."""

    type: str
    """One of types.toml."""
    path: str
    """Below the parameter `output`."""
    description: str


class Parameter(StrictModel):
    """`[[parameters]]`: a key at the top of the recipe's configs, set by `NAME=VALUE`."""

    name: str
    description: str


class Strategy(StrictModel):
    """`[[strategies]]`: when to do what."""

    when: str
    then: str


class KnownError(StrictModel):
    """`[[errors]]`: what users meet, and the way out."""

    name: str
    recovery: str


class NextStep(StrictModel):
    """`[[next]]`: a recipe that goes on from here."""

    step: str
    """Its id."""
    when: str
    hands: dict[str, str]
    """By a parameter of it the path, below this one's output, of what it is to be."""
    takes: dict[str, str] = Field(default={})
    """By a parameter of it the setting of this one that it is to be, where that has another name: `server = "sums.server"`."""


class StepManifest(StrictModel):
    """A step.toml."""

    step: Step
    consumes: tuple[Consumed, ...] = ()
    produces: tuple[Produced, ...] = Field(min_length=1)
    parameters: tuple[Parameter, ...] = Field(min_length=1)
    strategies: tuple[Strategy, ...] = ()
    errors: tuple[KnownError, ...] = ()
    next: tuple[NextStep, ...] = ()
    reference: dict[str, str] = Field(default={})
    """What it is after: a paper, another project's recipe."""


class DataType(StrictModel):
    """A kind of thing that steps hand to each other."""

    description: str
    is_a: str | None = None
    """A kind as which it will do too."""


def read_manifest(path: Path) -> StepManifest:
    """The step.toml at `path`. Raises ConfigError for one that cannot be read or lacks something."""
    values = _read_toml(path)
    try:
        found = validate(StepManifest, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    names = {one.name for one in found.parameters}
    named = [found.step.warm, *(one.parameter for one in found.consumes), *(one.unless for one in found.consumes)]
    if unknown := [one for one in named if one is not None and one.partition(".")[0] not in names]:
        raise ConfigError(f"{path}: it names {unknown[0]!r}, which is none of its parameters{nearest(unknown[0], names)}")
    return found


def read_types(path: Path) -> dict[str, DataType]:
    """The types.toml at `path`. Raises ConfigError."""
    return {name: validate(DataType, values) for name, values in _read_toml(path).items()}


def fits(given: str, wanted: str, types: dict[str, DataType]) -> bool:
    """Whether something of type `given` will do where `wanted` is asked for."""
    kind: str | None = given
    while kind is not None:
        if kind == wanted:
            return True
        kind = types[kind].is_a
    return False


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no TOML: {error}") from error
