"""The settings of `gym-bridge recipe run`: the parameters that a recipe's step.toml names, and its stages."""

from typing import Any

from pydantic import Field, PositiveInt, create_model

from gym_bridge.config import StrictModel
from gym_bridge.schemas.recipe_manifest import StepManifest


class StageSettings(StrictModel):
    """What every stage may say, besides the settings of its verb."""

    verb: str
    """Whose settings the rest is, such as `collect` or `train sft`."""
    skip: bool = False
    """Leave it out."""
    skip_when_given: tuple[str, ...] = ()
    """Leave it out where one of these parameters was set: the user brings what it would make."""
    needs: tuple[str, ...] = ()
    """Leave it out where one of these parameters is null."""
    unless_empty: str | None = None
    """Leave it out where this JSONL file has no row."""
    ignore_verdict: bool = False
    """Of check-reward: go on where it finds the reward broken."""
    common: dict[str, Any] = Field(default={})
    """Settings that it shares with others; its own stand over them."""


class Round(StrictModel):
    """What stages that are repeated may name, as `${round.number}`."""

    number: int
    """From 1 on."""
    directory: str
    """The round's own."""
    model: str
    """The policy that the round begins with: the newest."""


class RoundSettings(StrictModel):
    """Stages that are repeated until they gain nothing any more."""

    at_most: PositiveInt
    """Rounds."""
    newest: str
    """The policy that a round leaves."""
    gain: str
    """Directory of the round's suite, of which the paired difference decides: rounds end once its interval holds 0."""
    stages: dict[str, dict[str, Any]]
    """Of each round, by name and in order."""


class RecipeSettings(StrictModel):
    """A recipe's stages.yaml, one of its configs, and overrides."""

    output: str
    """Directory of all that is written."""
    stages: dict[str, dict[str, Any]] = Field(default={})
    """By name, in order."""
    rounds: RoundSettings | None = None
    round: Round | None = None
    """Given by the run."""


def settings_model(manifest: StepManifest) -> type[RecipeSettings]:
    """The model of a recipe's settings, with its parameters."""
    fields: dict[str, Any] = {one.name: (Any, ...) for one in manifest.parameters if one.name not in RecipeSettings.model_fields}
    return create_model(f"{manifest.step.id}_settings", __base__=RecipeSettings, **fields)
