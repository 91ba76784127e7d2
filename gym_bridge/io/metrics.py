"""Numbers of a run: `metrics.jsonl`, one object a step."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import dump_line, parse_line, read_lines, write_jsonl
from gym_bridge.schemas.rollouts import Row


class MetricsWriter(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` at `step`."""
        ...


class JsonlMetrics:
    """Appends `{"step": n, ...}` lines to a file.

    When it is opened, lines after `resume_step` are dropped, and a last line that a kill tore; what is written again of that very
    step, such as a validation that the checkpoint does not know of, stands there once. Raises DataError for any other line that
    holds no step.
    """

    def __init__(self, path: Path, *, resume_step: int = 0):
        self.path = path
        kept = [row for row in _steps(path) if row["step"] <= resume_step] if resume_step and path.exists() else []
        write_jsonl(path, kept)
        self._kept = [row.keys() for row in kept if row["step"] == resume_step]
        self._resume_step = resume_step

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` at `step`. Raises ConfigError when the disk refuses."""
        if step == self._resume_step and {"step", *metrics} in self._kept:
            return
        try:
            with self.path.open("ab") as file:
                file.write(dump_line({"step": step, **metrics}))
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror}") from error


def _steps(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        if line.endswith(b"\n"):
            row = parse_line(line, path=path, line=number)
            if type(row.get("step")) is not int:
                raise DataError(f"step is {row.get('step')!r}; expected a whole number", path=path, line=number)
            yield row
