"""The run directory of a training: settings, versions and digests, checkpoints, and what a second start may go on from."""

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson
from omegaconf import OmegaConf
from pydantic import BaseModel

from gym_bridge.errors import ConfigError, nearest
from gym_bridge.io.jsonl import written_aside
from gym_bridge.io.locks import lock

REPORTED = ("gym-bridge", "torch", "transformers", "numpy", "aiohttp")


class RunDirectory:
    """`config.yaml`, `manifest.json`, `metrics.jsonl`, `checkpoints/step_00000010/{model,trainer}`."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other training out meanwhile; a directory that this one leaves empty is removed.

        Raises ConfigError when another training holds it, or when it cannot be written.
        """
        place = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = place.open("ab")
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror}") from error
        with file:
            lock(file.fileno(), self.path)
            try:
                yield
            finally:
                if self.path.is_dir() and [one.name for one in self.path.iterdir()] == [place.name]:
                    place.unlink()
                    self.path.rmdir()

    def begin(self, settings: BaseModel, *, digests: dict[str, str]) -> None:
        """Write settings, versions and digests; on a second start, check that they match the first.

        What decides only when the run ends, which checkpoints stay and how processes share the work may change, such as
        `trainer.max_steps`: that is how a run is continued. What changes the weights that a step gives, or what the best
        checkpoint is the best of, may not. Raises ConfigError with what differs.
        """
        values = settings.model_dump(mode="json")
        manifest = self.path / "manifest.json"
        identity = {"settings": _bound(values), "digests": digests}
        if manifest.exists():
            before = _manifest(manifest)
            differs = _differences({key: before.get(key) for key in identity}, identity)
            if differs and self._was_begun():
                hint = _length_hint(differs)
                raise ConfigError(f"{self.path} holds another run ({'; '.join(differs)}){hint}; choose another trainer.output")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)), encoding="utf-8")
            with written_aside(manifest) as file:
                file.write(orjson.dumps({**identity, "versions": _versions()}, option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror}") from error

    def _was_begun(self) -> bool:
        """True when a step was taken: a start that failed before does not bind the next."""
        return self.last_checkpoint() is not None or (self.metrics.exists() and self.metrics.stat().st_size > 0)

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of `step` stands."""
        return self.checkpoints / f"step_{step:08d}"

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, None when there is none."""
        return max(self.checkpoints.glob("step_*"), default=None)

    @property
    def best(self) -> Path:
        """The link to the best checkpoint; it exists once there is one."""
        return self.checkpoints / "best"

    def mark_best(self, step: int) -> None:
        """Let `checkpoints/best` lead to the checkpoint of `step`; until then it leads to the one before. Raises ConfigError."""
        aside = self.checkpoints / ".best"
        try:
            if self.best.is_symlink() and self.best.readlink().name == self.checkpoint(step).name:
                return
            aside.unlink(missing_ok=True)
            aside.symlink_to(self.checkpoint(step).name)
            aside.replace(self.best)
        except OSError as error:
            raise ConfigError(f"cannot write {self.best}: {error.strerror}") from error

    def keep_last(self, count: int) -> None:
        """Remove all but the newest `count` checkpoints and the best one, and what kills left behind. Raises ConfigError."""
        best = self.checkpoints / self.best.readlink() if self.best.is_symlink() else None
        try:
            for old in sorted(self.checkpoints.glob("step_*"))[:-count]:
                if old != best:
                    old.rename(old.with_name(f".{old.name}.removed"))  # at once: half a checkpoint is none
            for left in self.checkpoints.glob(".step_*"):
                shutil.rmtree(left)
        except OSError as error:
            raise ConfigError(f"cannot remove old checkpoints of {self.path}: {error.strerror}") from error


def model_directory_of(path: Path) -> Path:
    """The Hugging Face directory that `path` means: itself, a checkpoint's `model`, or that of a run's last checkpoint.

    A link, such as `checkpoints/best`, is followed: it may lead elsewhere tomorrow. Raises ConfigError when there is none.
    """
    if path.is_symlink():
        path = path.resolve()
    if (path / "config.json").exists():
        return path
    if (path / "model" / "config.json").exists():
        return path / "model"
    last = RunDirectory(path).last_checkpoint()
    if last is None:
        raise ConfigError(
            f"{path}: neither a model, nor a checkpoint, nor a run with one" + nearest(path.name, models_beside(path))
        )
    return last / "model"


def version_of_model(directory: Path) -> int:
    """The policy version of a model directory: the step of the checkpoint that it stands in, 0 outside of any."""
    step = directory.parent.name.removeprefix("step_")
    return int(step) if directory.name == "model" and directory.parent.name.startswith("step_") and step.isdecimal() else 0


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("settings", "digests")):
        raise ConfigError(f"{path} is no manifest of a run; choose another trainer.output")
    return found


def models_beside(path: Path) -> list[str]:
    """Names of the models, checkpoints and runs with one that stand in the directory of `path`, itself left out."""
    marks = ("config.json", "model/config.json", "checkpoints/step_*/model/config.json")
    if not path.parent.is_dir():
        return []
    return [one.name for one in path.parent.iterdir() if one.name != path.name and any(any(one.glob(mark)) for mark in marks)]


LENGTH = frozenset(
    {"max_steps", "max_time_s", "output", "save_every", "keep_last", "keep_best", "validate_every", "patience", "record", "alarms"}
)
"""Settings of the trainer that do not change what a step does to the weights, nor what the best validation is measured by."""
PLACEMENT = frozenset({"tensor_parallel_size", "sequence_parallel", "context_parallel_size", "cpu_offload"})
"""Settings of the policy that say where its weights are."""
ENDLESS_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt")
"""Schedules of the learning rate that fall towards no end."""


def _bound(values: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that may change between starts; a schedule that falls over the run's steps binds their number."""
    policy = values.get("policy") or {}
    length = policy.get("schedule_steps") or (policy.get("schedule_options") or {}).get("num_stable_steps")
    bound = policy.get("schedule", "constant") not in ENDLESS_SCHEDULES and length is None
    free = {"trainer": LENGTH - {"max_steps"} if bound else LENGTH, "policy": PLACEMENT, "sampler": {"url"}}
    return {
        name: {key: one for key, one in section.items() if key not in free[name]} if section and name in free else section
        for name, section in values.items()
        if name not in ("cluster", "logger")
    }


def _length_hint(differs: list[str]) -> str:
    bound = any(line.startswith("settings.trainer.max_steps:") for line in differs)
    return "; policy.schedule falls over trainer.max_steps unless policy.schedule_steps is set from the start" if bound else ""


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [line for key in keys for line in _differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))]
    return [] if before == now else [f"{path}: {before!r} then, {now!r} now"]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
