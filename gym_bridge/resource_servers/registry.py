"""Resource servers by name: ours, those of installed packages, a user's own. Naming one imports nothing."""

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gym_bridge.config import Registry, StrictModel, load_config, validate
from gym_bridge.errors import ConfigError

if TYPE_CHECKING:
    from gym_bridge.resource_servers.base import KnownAnswers, Split, TaskServer
    from gym_bridge.schemas.rollouts import Row

ENTRY_POINTS = "gym_bridge.resource_servers"
"""The group in which a package names its servers: `my_game = "my_package.game:Game"`."""
OURS = {
    "arithmetic": "gym_bridge.resource_servers.arithmetic.app:ArithmeticServer",
    "calculator": "gym_bridge.resource_servers.calculator.app:CalculatorServer",
    "code": "gym_bridge.resource_servers.code.app:CodeServer",
    "combine": "gym_bridge.resource_servers.combine.app:CombineServer",
    "grid_world": "gym_bridge.resource_servers.grid_world.app:GridWorldServer",
    "judge": "gym_bridge.resource_servers.judge.app:JudgeServer",
    "math": "gym_bridge.resource_servers.math.app:MathServer",
    "multiple_choice": "gym_bridge.resource_servers.multiple_choice.app:MultipleChoiceServer",
    "number_game": "gym_bridge.resource_servers.number_game.app:NumberGameServer",
    "office": "gym_bridge.resource_servers.office.app:OfficeServer",
    "reasoning": "gym_bridge.resource_servers.reasoning.app:ReasoningServer",
    "refusal": "gym_bridge.resource_servers.refusal.app:RefusalServer",
    "reward_model": "gym_bridge.resource_servers.reward_model.app:RewardModelServer",
}


class ServerFile(StrictModel):
    """A YAML file that names a server and sets it up."""

    server: str
    """Name, file or dotted path of the server."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its settings."""


def servers() -> "Registry[type[TaskServer]]":
    """Every server that has a name here; ours stand over a package's of the same name."""
    installed = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return Registry("resource server", installed | OURS)


def load_server(name: str) -> "type[TaskServer]":
    """The server class that `name` means: a name, `package.module:Class`, `file.py`, `file.py:Class`, or a YAML file that tells.

    Raises ConfigError with the nearest known name, what the file holds, or what the class lacks.
    """
    if _is_yaml(name):
        return load_server(load_config(ServerFile, files=[name]).server)
    path, _, wanted = name.partition(":")
    kind = _from_file(Path(path), wanted) if path.endswith(".py") else servers().load(name)
    if inspect.isabstract(kind):
        raise ConfigError(f"{name}: {kind.__name__} lacks {', '.join(sorted(kind.__abstractmethods__))}")
    return kind


def make_server(name: str, *, overrides: Sequence[str] = (), shuffle_rewards: bool = False) -> "TaskServer":
    """The server that `name` means, set up by its YAML file, where it is one, and by `overrides` such as `model=judge`.

    Raises ConfigError for settings that it does not know.
    """
    kind = load_server(name)
    given = load_config(ServerFile, files=[name]).settings if _is_yaml(name) else {}
    return kind(load_config(kind.Settings, values=given, overrides=overrides), shuffle_rewards=shuffle_rewards)


def make_tasks(name: str, *, num_tasks: int, seed: int, split: "Split", **knobs: Any) -> "Iterator[Row]":
    """Task rows of the server that `name` means, for its settings where it is a YAML file. Raises ConfigError."""
    if not _is_yaml(name):
        return load_server(name).tasks(num_tasks=num_tasks, seed=seed, split=split, **knobs)
    file = load_config(ServerFile, files=[name])
    kind = load_server(file.server)
    return kind.tasks_for(validate(kind.Settings, file.settings), num_tasks=num_tasks, seed=seed, split=split, **knobs)


def written_answers(name: str, row: "Row") -> "KnownAnswers":
    """What the server that `name` means knows of the worth of answers to a task of its own. Raises ConfigError."""
    kind = load_server(name)
    given = load_config(ServerFile, files=[name]).settings if _is_yaml(name) else {}
    return kind.known_answers_for(validate(kind.Settings, given), row) if given else kind.answers_to(row)


def read_tasks(name: str, files: Sequence[Path], *, seed: int, **knobs: Any) -> "Iterator[Row]":
    """Task rows of the records in `files`, by the server that `name` means. Raises ConfigError and DataError."""
    from gym_bridge.resource_servers.records import read_records

    return load_server(name).tasks_from(chain.from_iterable(map(read_records, files)), seed=seed, **knobs)


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _from_file(path: Path, wanted: str) -> "type[TaskServer]":
    from gym_bridge.resource_servers.base import TaskServer

    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path}: no such file with a resource server")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{path}: cannot be imported: {error}") from error
    found = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, TaskServer) and value.__module__ == module.__name__
    }
    chosen = [found[wanted]] if wanted in found else list(found.values()) if not wanted else []
    if len(chosen) != 1:
        called = f" called {wanted}" if wanted else ""
        raise ConfigError(f"{path}: expected one resource server{called}, found {sorted(found) or 'none'}")
    return chosen[0]
