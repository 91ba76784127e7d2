"""What the page shows: the runs and the rollouts files that lie at the paths a user names."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import parse_line, read_lines
from gym_bridge.io.rollout_reader import view_row
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.schemas.rollouts import Row
from gym_bridge.viewer.rollout_file import RolloutFile, changed_at

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
OF_OTHERS = ("_failures.jsonl", "_materialized_inputs.jsonl")
"""Ends of names of files that belong to a rollouts file."""
PASSED_OVER = frozenset({"checkpoints", "steps", "logger", "logs", "wandb", "mlruns", "mlartifacts", "tensorboard", "node_modules"})
"""Directories in which no rollouts lie."""
MAX_DEPTH = 4
"""Directories within a named one."""
LOOKED_AT_LINES = 20
"""Of a file, to tell whether it holds rollouts."""


@dataclass(frozen=True, slots=True)
class Run:
    """A directory of a training."""

    path: Path
    name: str

    @property
    def steps(self) -> Path:
        """Where `trainer.record` keeps steps."""
        return self.path / "steps"

    def metrics(self) -> list[Row]:
        """The lines of its metrics, but for a torn one."""
        path = RunDirectory(self.path).metrics
        if not path.is_file():
            return []
        return [parse_line(line, path=path, line=number) for number, line in read_lines(path) if line.endswith(b"\n")]

    def settings(self) -> dict[str, Any]:
        """The settings that it was started with; none where they cannot be read."""
        path = self.path / "config.yaml"
        try:
            found = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
        except (OSError, YAMLError, OmegaConfBaseException):
            return {}
        return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}

    @property
    def changed_ns(self) -> int:
        """When its metrics last changed; 0 before there are some."""
        try:
            return RunDirectory(self.path).metrics.stat().st_mtime_ns
        except OSError:
            return 0


class Library:
    """The runs and files of some paths. A `with` block lets all of them go.

    Directories are looked through again on every `look`, so that what a run begins to write shows up. Numbers stay.
    """

    def __init__(self, paths: Sequence[Path], *, quiet: bool = True):
        """Raises ConfigError for a path that is not there and for a file that holds no rollouts."""
        self._paths, self._quiet = [Path(path) for path in paths], quiet
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._given = _common(self._paths)
        self._known: set[str] = set()
        self._refused: dict[Path, list[int]] = {}
        self.runs: list[Run] = []
        self.files: list[RolloutFile] = []
        for path in self._paths:
            if not path.exists():
                raise ConfigError(f"{path}: there is no such file or directory")
            if path.is_dir() or str(path).endswith(OF_OTHERS[1]):
                continue
            if not str(path).endswith(OF_OTHERS[0]):
                _check_rollouts(path)
            self._add_file(_rollouts_of(path))
        self.look()
        if not self.runs and not self.files:
            raise ConfigError(f"{', '.join(map(str, self._paths))}: no run of a training and no rollouts file there")

    def __enter__(self) -> "Library":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def look(self) -> None:
        """Find what is new in the directories."""
        with self._lock:
            for directory in (path for path in self._paths if path.is_dir()):
                for path in _directories(directory, MAX_DEPTH):
                    self._look_in(path)

    def files_of(self, run: Run) -> list[int]:
        """Numbers of the rollouts files that lie in a run's directory."""
        return [number for number, file in enumerate(self.files) if file.path.parent == run.path]

    def run_of(self, file: RolloutFile) -> Run | None:
        """The run in whose directory a file lies, shown or not."""
        directory = file.path.parent
        found = next((run for run in self.runs if run.path == directory), None)
        return Run(directory, directory.name) if found is None and (directory / "config.yaml").is_file() else found

    def _look_in(self, path: Path) -> None:
        names = _names_in(path)
        if names & {"metrics.jsonl", "config.yaml"} and os.path.realpath(path) not in self._known:
            self._known.add(os.path.realpath(path))
            self.runs.append(Run(path, self._name(path)))
        for name in sorted(names):
            if name.endswith(ENDINGS) and not name.endswith(OF_OTHERS[1]) and not self._is_known(path / name):
                at = changed_at([path / name])
                if self._refused.get(path / name) != at and _looks_like_rollouts(path / name):
                    self._add_file(_rollouts_of(path / name))
                else:
                    self._refused[path / name] = at

    def _is_known(self, path: Path) -> bool:
        return os.path.realpath(_rollouts_of(path)) in self._known

    def _add_file(self, path: Path) -> None:
        """Once, by whatever name."""
        if not self._is_known(path):
            self._known.add(os.path.realpath(path))
            self.files.append(RolloutFile(path, name=self._name(path), stack=self._stack, quiet=self._quiet))

    def _name(self, path: Path) -> str:
        """The path below what all that was named has in common."""
        name = os.path.relpath(path, self._given)
        return path.resolve().name if name == "." else name


def _rollouts_of(path: Path) -> Path:
    """The rollouts file that a failures file belongs to; any other file itself."""
    return path.with_name(path.name.replace(OF_OTHERS[0], ".jsonl")) if path.name.endswith(OF_OTHERS[0]) else path


def _common(paths: Iterable[Path]) -> str:
    """The directory that holds all of the paths; of a directory itself, the one above."""
    return os.path.commonpath([path.absolute().parent for path in paths])


def _directories(path: Path, depth: int) -> Iterator[Path]:
    yield path
    try:
        inner = sorted(one for one in path.iterdir() if one.is_dir() and not one.is_symlink())
    except OSError:
        return
    for one in inner if depth else ():
        if one.name not in PASSED_OVER and not one.name.startswith(".") and one.suffix != ".tokens":
            yield from _directories(one, depth - 1)


def _names_in(path: Path) -> set[str]:
    try:
        return {one.name for one in path.iterdir() if one.is_file()}
    except OSError:
        return set()


def _looks_like_rollouts(path: Path) -> bool:
    """True where one of the first lines is a rollout, or a failure."""
    try:
        lines = [line for _, line in islice(read_lines(path), LOOKED_AT_LINES)]
    except ConfigError:
        return False
    return any(map(_is_rollout, lines))


def _is_rollout(line: bytes) -> bool:
    try:
        view = view_row(parse_line(line, path=None))
    except DataError:
        return False
    return view.failed or (view.output is not None and ("reward" in view.row or view.task_index is not None))


def _check_rollouts(path: Path) -> None:
    """Raises ConfigError for a file whose first lines are of another kind: tasks, a dataset, text. An empty one may grow."""
    found, wrong = False, ""
    for number, line in islice(read_lines(path), LOOKED_AT_LINES):
        found = True
        try:
            view = view_row(parse_line(line, path=path, line=number))
        except DataError as error:
            wrong = wrong or f" ({error})"
            continue
        if view.failed or view.output is not None:
            return
    if found:
        raise ConfigError(f"{path}: holds no rollouts{wrong}; view shows rollouts files and the directories of runs")
