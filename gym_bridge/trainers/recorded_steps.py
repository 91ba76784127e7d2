"""The steps that another run recorded, taken again without server and sampler: on a CPU they give the same weights, bit for bit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import parse_line, read_lines
from gym_bridge.io.run_directory import PLACEMENT
from gym_bridge.io.step_records import STEPS, read_step, recorded_steps
from gym_bridge.schemas.seams import TrainStep
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.trainers.counted_steps import CountedSteps


class RecordedSteps(CountedSteps):
    """A `StepSource` of the recorded steps of a run, from its first update to the last that it made."""

    def __init__(self, run: Path):
        """Raises ConfigError for a run without records, or with a gap in them."""
        super().__init__(_num_steps(run))
        self.directory = run / STEPS

    def next(self) -> TrainStep | None:
        """The next recorded step; None after the last. Raises DataError for a damaged record."""
        return None if self._step >= self.total_steps else read_step(self.directory, self._step + 1)


def recorded_identity(run: Path) -> dict[str, Any]:
    """Settings and digests of a run, by its `manifest.json`. Raises ConfigError when it is none."""
    path = run / "manifest.json"
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{run} is no run of a training: it has no manifest.json; set data.replay to its directory") from None
    except (OSError, orjson.JSONDecodeError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("settings", "digests")):
        raise ConfigError(f"{path} is no manifest of a run")
    return {"settings": found["settings"], "digests": found["digests"]}


def check_same_training(run: Path, settings: GRPOSettings, *, digests: Mapping[str, str]) -> None:
    """Raises ConfigError, naming it, for whatever would make other weights of the steps that `run` recorded.

    `digests` are those of the models that this training starts with, by the names that the run's manifest has for them.
    """
    recorded = recorded_identity(run)
    before, now = recorded["settings"], settings.model_dump(mode="json")
    same: dict[str, Sequence[str]] = {
        "policy": [name for name in now["policy"] if name not in {"model", *PLACEMENT}],
        "algorithm": [*now["algorithm"]],
    }
    if "max_steps" in _section(before, "trainer"):  # it stands there where the learning rate falls over the run's steps
        same["trainer"] = ["max_steps"]
    if settings.algorithm.normalise_by == "fixed" and settings.algorithm.fixed_length is None:
        same["sampler"] = ["max_tokens"]
    pairs = [(name, _only(_section(before, name), keys), _only(now[name], keys)) for name, keys in same.items()]
    pairs.append(("digests", _only(recorded["digests"], [*digests]), dict(digests)))
    differing = [line for path, one, other in pairs for line in _differences(one, other, path)]
    if differing:
        raise ConfigError(
            f"{run} was trained otherwise ({'; '.join(differing)}); replay its steps with the same settings and model"
        )


def _num_steps(run: Path) -> int:
    """How many updates the run made, all of which are recorded; the rest of a batch is recorded before its first update."""
    numbers = recorded_steps(run / STEPS)
    taken = max((row["step"] for row in _metrics(run / "metrics.jsonl")), default=len(numbers))
    if not numbers or not taken:
        raise ConfigError(f"{run} has no recorded steps; train it with trainer.record=true")
    gap = next((number for number in range(1, taken + 1) if numbers[number - 1 : number] != [number]), None)
    if gap is not None:
        raise ConfigError(
            f"{run} made {taken} steps, and step {gap} is not recorded; steps can be taken again from the first on only"
        )
    return taken


def _metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics, but for a torn one."""
    for number, line in read_lines(path) if path.exists() else ():
        if line.endswith(b"\n"):
            yield parse_line(line, path=path, line=number)


def _section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _only(section: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: section.get(name) for name in names}


def _differences(before: Any, now: Any, path: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [line for key in keys for line in _differences(before.get(key), now.get(key), f"{path}.{key}")]
    return [] if before == now else [f"{path}: {before!r} then, {now!r} now"]
