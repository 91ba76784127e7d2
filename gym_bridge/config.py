"""Strict settings: pydantic models, filled from YAML files and dotted overrides in OmegaConf's grammar.

    load_config(SFTConfig, files=["recipes/sft/tiny.yaml"], overrides=["trainer.max_steps=50"])

A key that no model knows is refused with the nearest known one.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from gym_bridge.errors import ConfigError, nearest


def _json_object(value: Any) -> Any:
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError as error:
        raise ValueError(f"expected a JSON object: {error}") from None


JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_object)]
"""An object, or the JSON of one, as a command line gives it."""


class StrictModel(BaseModel):
    """Base of our own settings and file formats: immutable, no unknown keys, a docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


Model = TypeVar("Model", bound=BaseModel)

MAX_EXPLAINED = 4


@dataclass(frozen=True, slots=True)
class ForeignKeys:
    """The settings of another program, for users who come from there."""

    explain: Callable[[str], str | None]
    """What to say about a dotted key; None when it is none of that program's."""
    advice: str
    """What to do when many are given."""


def load_config(
    model: type[Model],
    *,
    files: Sequence[str | Path] = (),
    values: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    foreign: ForeignKeys | None = None,
) -> Model:
    """`model` filled from YAML `files`, later ones first in rank, then `values`, then `overrides` such as `policy.lr=1e-5`.

    An override of one of the model's `shorthands`, such as `algorithm=dapo`, sets the key that it is short for. Keys of a program
    that `foreign` knows are told by what they are called here. An override of a key of the model's `gives_way` leaves out those
    that a file set in its place: they are null unless overridden too. Raises ConfigError for an unreadable file, an override
    without `=`, an unknown key or a value of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for override in overrides:
        key, found, _ = override.partition("=")
        if not found or not key:
            raise ConfigError(f"override {override!r} has no '='; write key.subkey=value")
    shorthands: Mapping[str, str] = getattr(model, "shorthands", {})
    overrides = [_written_out(one, shorthands) for one in overrides]
    overrides = [*_given_way(overrides, getattr(model, "gives_way", {})), *overrides]
    merged = None
    try:
        given = OmegaConf.create(dict(values or {}))
        merged = OmegaConf.merge(*map(_load_yaml, files), given, OmegaConf.from_dotlist(list(overrides)))
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(f"{missing[0]!r} is required; set {missing[0]}=...")
        filled = OmegaConf.to_container(merged, resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        told = _explained(_leaves(OmegaConf.to_container(merged, resolve=False)), foreign) if merged is not None else {}
        reason = _joined(told, foreign) if foreign and told else f"cannot read the settings: {' '.join(str(error).split())}"
        raise ConfigError(reason) from error
    return validate(model, filled, foreign=foreign)


def _written_out(override: str, shorthands: Mapping[str, str]) -> str:
    key, _, value = override.partition("=")
    return f"{shorthands[key]}={value}" if key in shorthands and value.isidentifier() else override


def _given_way(overrides: Sequence[str], gives_way: Mapping[str, Sequence[str]]) -> list[str]:
    given = dict(override.split("=", 1) for override in overrides)
    chosen = [key for key in gives_way if given.get(key, "null") != "null"]
    return [f"{other}=null" for key in chosen for other in gives_way[key] if other not in given]


def _load_yaml(file: str | Path) -> Any:
    from omegaconf import OmegaConf

    try:
        loaded = OmegaConf.load(file)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: no UTF-8 text: {error.reason} at byte {error.start}") from error
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"{file}: expected settings as key: value, found a list")
    return loaded


def validate(model: type[Model], values: Any, *, foreign: ForeignKeys | None = None) -> Model:
    """`model` made of plain `values`; a ConfigError names each wrong key by its dotted path."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        told: dict[str, str] = {}
        others: list[str] = []
        for one in error.errors():
            found = _explained(_leaves_at(values, one["loc"]), foreign) if one["loc"] and one["type"] != "missing" else {}
            told |= found
            others += [] if found else [_describe(model, one)]
        sentences = [_joined(told, foreign)] if foreign and told else []
        raise ConfigError("; ".join([*sentences, *others])) from None


def _explained(keys: Iterator[str], foreign: ForeignKeys | None) -> dict[str, str]:
    """Sentences about those of the keys that are another program's."""
    if foreign is None:
        return {}
    return {key: sentence for key in keys if (sentence := foreign.explain(key)) is not None}


def _joined(told: Mapping[str, str], foreign: ForeignKeys) -> str:
    if len(told) <= MAX_EXPLAINED:
        return "; ".join(told.values())
    return "; ".join([*list(told.values())[:MAX_EXPLAINED], f"and {len(told) - MAX_EXPLAINED} more such keys: {foreign.advice}"])


def _leaves(values: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all that stands in nested mappings."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _leaves_at(values: Any, path: Sequence[Any]) -> Iterator[str]:
    """Dotted keys at and below `path`, as far as `values` has it: pydantic adds the names of a union's members to it."""
    prefix: list[str] = []
    here = values
    for part in path:
        if not isinstance(here, Mapping) or part not in here:
            break
        prefix.append(str(part))
        here = here[part]
    if isinstance(here, Mapping) and here:
        yield from _leaves(here, "".join(f"{part}." for part in prefix))
    else:
        yield ".".join(prefix)


def _describe(model: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    if not path or (error["type"] == "value_error" and isinstance(error["input"], Mapping)):  # a rule over fields names them itself
        return error["msg"].removeprefix("Value error, ")
    if "password" in error["msg"]:  # what was given must not be shown
        return f"{path[-1]}: {error['msg'].removeprefix('Value error, ')}"
    dotted = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {dotted!r}{nearest(path[-1], _fields_at(model, path[:-1]))}"
    if error["type"] == "missing":
        return f"{dotted!r} is required; set {dotted}=..."
    return f"{dotted}={error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields of the model that stands at `path` under `model`; empty when there is none."""
    here: Any = model
    for part in path:
        field = getattr(here, "model_fields", {}).get(part)
        if field is None:
            return []
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        here = next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)
    return list(here.model_fields) if here is not None else []


def cache_directory() -> Path:
    """Where fetched files are kept: `$GYM_BRIDGE_CACHE`, else `~/.cache/gym-bridge`."""
    return Path(os.environ.get("GYM_BRIDGE_CACHE") or Path.home() / ".cache" / "gym-bridge")


def load_object(path: str) -> Any:
    """The object that `package.module:name` names. Raises ConfigError when there is none."""
    module_name, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot load {path!r}: {error}; a dotted path looks like my_package.module:name") from error


T = TypeVar("T")


class Registry(Generic[T]):
    """Objects by name, loaded when asked for; a dotted path `package.module:name` finds a user's own."""

    def __init__(self, kind: str, entries: Mapping[str, str]):
        self.kind, self.entries = kind, dict(entries)

    def load(self, name: str) -> T:
        """The object called `name`. Raises ConfigError with the nearest known name."""
        if ":" in name:
            return load_object(name)
        if name not in self.entries:
            raise ConfigError(f"unknown {self.kind} {name!r}{nearest(name, self.entries)}")
        return load_object(self.entries[name])
