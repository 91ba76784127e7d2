from pathlib import Path
from typing import Annotated, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field

from gym_bridge.cli.options import given, settings_options
from gym_bridge.config import StrictModel, validate
from gym_bridge.schemas.play_settings import CollectSettings, EvalSettings
from gym_bridge.schemas.settings import GRPOSettings, SFTSettings
from gym_bridge.schemas.transform_settings import TransformSettings


class Settings(StrictModel):
    path: Path
    """A file."""
    count: Annotated[int, Field(gt=0)] = 3
    """How many."""
    share: float | None = None
    """A share."""
    kind: Literal["a", "b"] = "a"
    """A kind."""
    force: bool = False
    """Force it."""
    name: str | None = None
    """A name."""


def parsed(model: type[BaseModel], *argv: str) -> BaseModel:
    found = {}

    @click.command()
    @settings_options(model)
    def command(**options: object) -> None:
        found["settings"] = validate(model, given(options))

    done = CliRunner().invoke(command, argv, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return found["settings"]


@pytest.mark.parametrize("model", [CollectSettings, EvalSettings, TransformSettings, Settings])
def test_every_field_has_an_option_with_help(model: type[BaseModel]):
    command = click.command()(settings_options(model)(lambda **options: None))
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    assert list(options) == list(model.model_fields)
    for name, field in model.model_fields.items():
        assert options[name].opts == ["--" + name.replace("_", "-")]
        assert options[name].required == field.is_required()
        assert options[name].help


@pytest.mark.parametrize("model", [CollectSettings, EvalSettings, TransformSettings, SFTSettings, GRPOSettings])
def test_every_setting_is_a_sentence(model: type[BaseModel]):
    def undescribed(model: type[BaseModel], place: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found += undescribed(field.annotation, f"{place}{name}.")
            elif not (field.description or "").rstrip().endswith("."):
                found.append(place + name)
        return found

    assert undescribed(model, "") == []


def test_options_become_settings_of_the_right_types():
    given_all = parsed(Settings, "--path", "x", "--count", "5", "--share", "0.5", "--kind", "b", "--force", "--name", "n")
    assert given_all == Settings(path=Path("x"), count=5, share=0.5, kind="b", force=True, name="n")


def test_options_that_are_not_given_keep_the_models_defaults():
    assert parsed(Settings, "--path", "x") == Settings(path=Path("x"))


def test_an_empty_string_and_a_zero_are_given():
    assert parsed(Settings, "--path", "x", "--share", "0", "--name", "") == Settings(path=Path("x"), share=0.0, name="")


def test_wrong_values_are_refused():
    with pytest.raises(click.BadParameter, match="'c' is not one of 'a', 'b'"):
        parsed(Settings, "--path", "x", "--kind", "c")
    with pytest.raises(click.BadParameter, match=r"'1\.5' is not a valid integer"):
        parsed(Settings, "--path", "x", "--count", "1.5")
    with pytest.raises(click.MissingParameter):
        parsed(Settings)
