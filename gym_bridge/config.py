"""Strict settings: pydantic models, filled from YAML files and dotted overrides in OmegaConf's grammar.

    load_config(SFTConfig, files=["configs/sft/tiny.yaml"], overrides=["trainer.max_steps=50"])

A key that no model knows is refused with the nearest known one.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
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
    shelf: Path | None = None,
) -> Model:
    """`model` filled from YAML `files`, later ones first in rank, then `values`, then `overrides` such as `policy.lr=1e-5`.

    A file whose key `defaults` names another, or a list of them, by the path from there, is laid over those, as in NeMo RL; what
    does not stand there is looked for in `shelf`.
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
        merged = OmegaConf.merge(*(_load_yaml(one, shelf) for one in files), given, OmegaConf.from_dotlist(list(overrides)))
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(f"{missing[0]!r} is required; set {missing[0]}=...")
        filled = OmegaConf.to_container(merged, resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        told = (
            _explained((key for key, _ in leaves(OmegaConf.to_container(merged, resolve=False))), foreign)
            if merged is not None
            else {}
        )
        reason = _joined(told, foreign) if foreign and told else f"cannot read the settings: {' '.join(str(error).split())}"
        raise ConfigError(reason) from error
    return validate(model, filled, foreign=foreign)


def read_settings(*files: str | Path, overrides: Sequence[str] = (), shelf: Path | None = None) -> dict[str, Any]:
    """What YAML files and dotted overrides say, with `defaults`, nothing of it interpolated or checked.

    Raises ConfigError for what cannot be read.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        merged = OmegaConf.merge(*(_load_yaml(one, shelf) for one in files), OmegaConf.from_dotlist(list(overrides)))
        found: Any = OmegaConf.to_container(merged, resolve=False)
    except (YAMLError, OmegaConfBaseException) as error:
        where = "".join(f"{one}: " for one in files)
        raise ConfigError(f"{where}cannot read the settings: {' '.join(str(error).split())}") from error
    return {str(name): value for name, value in found.items()}


def _written_out(override: str, shorthands: Mapping[str, str]) -> str:
    key, _, value = override.partition("=")
    return f"{shorthands[key]}={value}" if key in shorthands and value.isidentifier() else override


def _given_way(overrides: Sequence[str], gives_way: Mapping[str, Sequence[str]]) -> list[str]:
    given = dict(override.split("=", 1) for override in overrides)
    chosen = [key for key in gives_way if given.get(key, "null") != "null"]
    return [f"{other}=null" for key in chosen for other in gives_way[key] if other not in given]


def _load_yaml(file: str | Path, shelf: Path | None = None, over: tuple[Path, ...] = ()) -> Any:
    """A file, laid over those that its `defaults` name, by their paths from there, or from `shelf`.

    `over` are the files that it lies under.
    """
    from omegaconf import OmegaConf

    try:
        loaded: Any = OmegaConf.load(file)
    except OSError as error:
        told = f" (the defaults of {over[-1]})" if over else ""
        raise ConfigError(f"{file}: {error.strerror or error}{told}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: no UTF-8 text: {error.reason} at byte {error.start}") from error
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"{file}: expected settings as key: value, found a list")
    own, named = Path(file), loaded.pop("defaults", OmegaConf.create([]))
    names = named if OmegaConf.is_list(named) else [named]
    if not all(isinstance(one, str) for one in names):
        raise ConfigError(f"{file}: defaults names files beside this one, such as tiny.yaml")
    places = [own.parent / one for one in names]
    under = [shelf / name if shelf and not one.exists() else one for name, one in zip(names, places, strict=True)]
    if round_again := {one.resolve() for one in under} & {one.resolve() for one in (*over, own)}:
        raise ConfigError(f"{file}: its defaults, {min(round_again)}, lead back to it")
    return OmegaConf.merge(*(_load_yaml(one, shelf, (*over, own)) for one in under), loaded)


def validate(model: type[Model], values: Any, *, foreign: ForeignKeys | None = None) -> Model:
    """`model` made of plain `values`; a ConfigError names each wrong key by its dotted path."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        told: dict[str, str] = {}
        others: list[str] = []
        for one in error.errors():
            named = one["loc"] and one["type"] != "missing" and not _is_rule(one)
            found = _explained(_leaves_at(values, one["loc"]), foreign) if named else {}
            told |= found
            if not found or len(_path(one)) > max(key.count(".") + 1 for key in found):
                others.append(_describe(model, one))
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


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of all that stands in nested mappings, with the values; an empty mapping is one."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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
        yield from (key for key, _ in leaves(here, "".join(f"{part}." for part in prefix)))
    else:
        yield ".".join(prefix)


def _is_rule(error: Any) -> bool:
    """Whether it is over several fields, which its message names itself."""
    return error["type"] == "value_error" and isinstance(error["input"], Mapping)


def _path(error: Any) -> list[str]:
    """Where an error is, without the names of a union's members, which pydantic puts into it."""
    return [str(part) for part in error["loc"] if "[" not in str(part)]


def _describe(model: type[BaseModel], error: Any) -> str:
    path = _path(error)
    if not path or _is_rule(error):
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
    """The object that `package.module:name` names; a module of the directory that the command stands in is found too, after all
    others. Raises ConfigError when there is none."""
    module_name, _, name = path.partition(":")
    try:
        return getattr(_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot load {path!r}: {error}; a dotted path looks like my_package.module:name") from error


def _module(name: str) -> ModuleType:
    """A script of an installed package, unlike `python -m`, does not look for modules in the current directory."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        here = str(Path.cwd())
        if error.name != name.partition(".")[0] or here in sys.path:
            raise
        sys.path.append(here)
        try:
            importlib.invalidate_caches()
            return importlib.import_module(name)
        except ImportError:
            sys.path.remove(here)
            raise


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
