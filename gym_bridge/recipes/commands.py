"""Stages of a recipe as the command lines that a user would type: settings in, checked, words out."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, PositiveInt
from yaml import YAMLError

from gym_bridge.config import StrictModel, load_config, validate
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.resource_servers.registry import ServerFile, load_server
from gym_bridge.schemas.play_settings import CollectSettings
from gym_bridge.schemas.prep_settings import MANIFEST_NAME, PrepSettings
from gym_bridge.schemas.reward_check import CheckRewardSettings
from gym_bridge.schemas.settings import SETTINGS, GRPOSettings
from gym_bridge.schemas.shipped_configs import find_config
from gym_bridge.schemas.suite_settings import SuiteSettings
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms.plan import outputs_of

Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a stage does."""

    argv: tuple[str, ...]
    """Words after `gym-bridge`."""
    leaves: tuple[Path, ...]
    """What is there once it is done."""
    processes: int = 1
    """That train together, started by torchrun."""
    text: str | None = None
    """Of the one file that is written, instead of a command that is run."""


class TrainStage(StrictModel):
    """What `train` says besides the training's own settings."""

    config: tuple[str, ...] = ()
    """Shipped configs or YAML files; later ones win."""
    processes: PositiveInt = 1
    """That train together, started by torchrun."""


class TasksStage(StrictModel):
    """`tasks`."""

    server: str
    output: Path
    num_tasks: PositiveInt | None = None
    seed: int = 0
    split: str | None = None
    knobs: dict[str, Any] = Field(default={})
    files: tuple[Path, ...] = ()
    """Of a published benchmark."""


class WriteStage(StrictModel):
    """`write`: a YAML file, such as one that sets up a server."""

    output: Path
    content: dict[str, Any]


class Inputs(StrictModel):
    """What transform and prep read."""

    inputs: tuple[str, ...] = Field(min_length=1)


def command_of(verb: str, values: Values) -> Command:
    """The command of `verb` with these settings, of which those that are null count as left out. Raises ConfigError."""
    _refuse_secrets(values)
    kind, _, what = verb.partition(" ")
    if kind == "train" and what in SETTINGS:
        return _train(what, values)
    if verb not in MAKERS:
        known = [*MAKERS, *(f"train {one}" for one in SETTINGS)]
        raise ConfigError(f"unknown verb {verb!r}{nearest(verb, known)}")
    return MAKERS[verb]({name: value for name, value in values.items() if value is not None})


def _tasks(values: Values) -> Command:
    stage = validate(TasksStage, values)
    _check_server(stage)
    words = ["tasks", stage.server, *(f"{name}={_plain(value)}" for name, value in stage.knobs.items() if value is not None)]
    words += [word for file in stage.files for word in ("--from", str(file))]
    options = {name: values[name] for name in ("num_tasks", "seed", "split", "output") if name in values}
    return Command(argv=(*words, *_flags(options)), leaves=(stage.output,))


def _collect(values: Values) -> Command:
    values = _heeded(values)
    settings = validate(CollectSettings, values)
    _check_played(settings.server)
    return Command(argv=("collect", *_flags(values)), leaves=(Path(settings.output),))


def _check_reward(values: Values) -> Command:
    values = _heeded(values)
    settings = validate(CheckRewardSettings, values)
    _check_played(settings.server)
    return Command(argv=("check-reward", *_flags(values)), leaves=(settings.report,))


def _transform(values: Values) -> Command:
    inputs, options = _apart(values)
    if "min_reward" in options:
        options["min_reward"] = str(options["min_reward"])
    settings = validate(TransformSettings, options)
    reports = () if settings.report is None else (settings.report,)
    return Command(argv=("transform", *inputs, *_flags(options)), leaves=(*outputs_of(settings), *reports))


def _prep(values: Values) -> Command:
    inputs, options = _apart(values)
    settings = validate(PrepSettings, options)
    return Command(argv=("prep", *inputs, *_flags(options)), leaves=(settings.output / MANIFEST_NAME,))


def _suite(values: Values) -> Command:
    overrides = dotted({name: _without_nulls(value) for name, value in values.items()})
    settings = load_config(SuiteSettings, overrides=overrides)
    for one in settings.evaluations().values():
        _check_played(one.server)
    return Command(argv=("eval", "suite", *overrides), leaves=(settings.output / "report.json",))


def _without_nulls(value: Any) -> Any:
    return {name: one for name, one in value.items() if one is not None} if isinstance(value, Mapping) else value


def _write(values: Values) -> Command:
    stage = validate(WriteStage, values)
    _check_server_file(stage.content)
    return Command(argv=(), leaves=(stage.output,), text=yaml.safe_dump(stage.content, sort_keys=False))


def _train(verb: str, values: Values) -> Command:
    stage = validate(TrainStage, {name: value for name, value in values.items() if name in TrainStage.model_fields})
    overrides = dotted({name: value for name, value in values.items() if name not in TrainStage.model_fields})
    settings = load_config(SETTINGS[verb], files=[find_config(one, verb=verb) for one in stage.config], overrides=overrides)
    if isinstance(settings, GRPOSettings):
        for server in (settings.env.server if settings.env else None, *(one.server for one in settings.data.files)):
            _check_played(server)
    named = [word for one in stage.config for word in ("--config", one)]
    return Command(
        argv=("train", verb, *named, *overrides),
        leaves=(settings.trainer.output / "checkpoints",),
        processes=stage.processes,
    )


MAKERS: Mapping[str, Callable[[Values], Command]] = {
    "tasks": _tasks,
    "prep": _prep,
    "collect": _collect,
    "transform": _transform,
    "check-reward": _check_reward,
    "eval suite": _suite,
    "write": _write,
}


def dotted(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as overrides: `policy.lr=1e-05`. An empty mapping says nothing."""
    found: list[str] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        found += dotted(value, f"{key}.") if isinstance(value, Mapping) else [f"{key}={_text(value)}"]
    return found


def _apart(values: Values) -> tuple[tuple[str, ...], Values]:
    given = validate(Inputs, {"inputs": values.get("inputs", ())})
    return given.inputs, {name: value for name, value in values.items() if name != "inputs"}


def _flags(values: Values) -> list[str]:
    """Settings as options: `--num-repeats 4`, a flag alone for true, one option for each of several values."""
    words: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else ["--no-cohort"] if name == "cohort" else []
        elif isinstance(value, list | tuple):
            words += [word for one in value for word in (flag, _plain(one))]
        elif value != {}:
            words += [flag, _plain(value)]
    return words


def _plain(value: Any) -> str:
    """As options and knobs take it."""
    if isinstance(value, dict) and all(type(one) is int for one in value.values()):
        return ",".join(f"{name}={one}" for name, one in value.items())  # repeats by agent
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: Any) -> str:
    """As the grammar of overrides reads it back. Raises ConfigError for a text that it would take for an interpolation."""
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"{value!r} would be interpolated; leave ${{ out")
    return value if isinstance(value, str) and _read_back(value) == value else json.dumps(value)


def _read_back(text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]
    except (YAMLError, OmegaConfBaseException):
        return None


PLUMBING = frozenset({"seed", "compute_dtype", "device"})
"""What recipes set for a model of this process, and an endpoint does not heed."""


def _heeded(values: Values) -> Values:
    """The settings without the plumbing where somebody else plays."""
    if not any(values.get(name) for name in ("model_url", "agent_url", "head_url", "gym_config")):
        return values
    return {name: value for name, value in values.items() if name not in PLUMBING}


def _refuse_secrets(value: Any, name: str = "") -> None:
    """Raises ConfigError for what may be secret, at any depth: commands are written down."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            _refuse_secrets(one, f"{name}.{key}" if name else str(key))
    elif name.rpartition(".")[2] == "header" and value:
        raise ConfigError(f"{name}: a recipe writes its commands down, and headers may hold keys; keys come from OPENAI_API_KEY")
    elif isinstance(value, list | tuple):
        for one in value:
            _refuse_secrets(one, name)
    elif isinstance(value, str) and "://" in value and (urlsplit(value).username or urlsplit(value).password):
        raise ConfigError(f"{name} holds a user and a password, and a recipe writes its commands down; leave them out")


def _check_played(server: str | None) -> None:
    """Raises ConfigError for a name that is no server's; addresses and YAML files are looked for when they are played."""
    if server is not None and "://" not in server and not server.endswith((".yaml", ".yml")):
        load_server(server)


def _check_server_file(content: Mapping[str, Any]) -> None:
    """Raises ConfigError for a YAML file that sets up a server, or parts of one, with what they do not know."""
    if "server" in content:
        file = validate(ServerFile, content)
        kind = load_server(file.server)
        kind(validate(kind.Settings, file.settings))


def _check_server(stage: TasksStage) -> None:
    """Raises ConfigError for a server that makes no tasks, and for knobs that it does not know."""
    if "://" in stage.server:
        raise ConfigError(f"server {stage.server} makes no tasks over HTTP; give train_tasks and heldout_tasks")
    if stage.server.endswith((".yaml", ".yml")):
        return
    kind = load_server(stage.server)
    known = kind.FileKnobs if stage.files else kind.Knobs
    validate(known, {name: value for name, value in stage.knobs.items() if value is not None})
