"""What a transform is to do, resolved and checked: the same in every process that works on it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gym_bridge.errors import ConfigError
from gym_bridge.io.task_inputs import materialized_inputs_of
from gym_bridge.schemas.transform_settings import FormatOptions, OnBadRow, PairStrategy, TransformSettings
from gym_bridge.transforms import FORMATS
from gym_bridge.transforms.expressions import parse_expression
from gym_bridge.transforms.format import VERIFIED_REWARD, Format, RowOptions

OF_PAIRS = ("pairs", "min_margin", "max_pairs_per_task")
OF_ROLLOUTS = ("best_of",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings of a transform with its defaults filled in."""

    to: str
    options: RowOptions
    inputs: tuple[Path, ...]
    task_inputs: tuple[Path | None, ...]
    """The materialized inputs of each input."""
    min_reward: float | None
    where: str | None
    where_group: str | None
    reward: str | None
    best_of: int | None
    pairs: PairStrategy
    min_margin: float
    max_pairs_per_task: int | None
    split: float | None
    seed: int
    dedupe: str | None
    bare: bool
    on_bad_row: OnBadRow
    with_statistics: bool

    @property
    def format(self) -> Format:
        """The target format."""
        return load_format(self.to)

    @property
    def joins_prompts(self) -> bool:
        """True when the messages of a prompt become one text."""
        return self.format.joins_prompts and self.options.prompt != "messages"

    @property
    def needs_content(self) -> bool:
        """True when tasks are told apart by what they say, not by their index alone."""
        return len(self.inputs) > 1 or self.split is not None or self.dedupe is not None

    @property
    def asks_siblings(self) -> bool:
        """True when the fate of a rollout hangs on others, so that two passes are needed."""
        return bool(self.format.unit != "rollout" or self.where_group or self.best_of or self.dedupe == "near")


def make_plan(inputs: Sequence[Path], settings: TransformSettings) -> Plan:
    """The plan for `settings`. Raises ConfigError for options that do not fit the format, and for files in each other's way."""
    _check_paths(inputs, settings)
    form = load_format(settings.to)
    _check_options(settings, form)
    min_reward = _min_reward(settings.min_reward, form)
    threshold = VERIFIED_REWARD if min_reward is None else min_reward
    given = settings.model_dump(include=set(FormatOptions.model_fields))
    for text in filter(None, (settings.where, settings.where_group, settings.reward)):
        parse_expression(text)
    return Plan(
        to=settings.to,
        options=RowOptions(**given, verified_reward=threshold),
        inputs=tuple(inputs),
        task_inputs=tuple(materialized_inputs_of(path) for path in inputs),
        min_reward=min_reward,
        where=settings.where,
        where_group=settings.where_group,
        reward=settings.reward,
        best_of=settings.best_of,
        pairs=settings.pairs or "best_worst",
        min_margin=settings.min_margin or 0.0,
        max_pairs_per_task=settings.max_pairs_per_task,
        split=settings.split,
        seed=settings.seed or 0,
        dedupe=settings.dedupe,
        bare=settings.bare,
        on_bad_row=settings.on_bad_row,
        with_statistics=settings.report is not None,
    )


@cache
def load_format(to: str) -> Format:
    """The format of that name or dotted path. Raises ConfigError."""
    form = FORMATS.load(to)
    if not isinstance(form, Format):
        raise ConfigError(f"{to} is a {type(form).__name__}; expected a gym_bridge.transforms.format.Format")
    return form


def outputs_of(settings: TransformSettings) -> tuple[Path, ...]:
    """The files to be written: one, or train and validation."""
    output = settings.output
    if settings.split is None:
        return (output,)
    return tuple(output.with_name(f"{output.stem}.{part}{output.suffix}") for part in ("train", "validation"))


def reports_of(settings: TransformSettings) -> tuple[Path, ...]:
    """The files of the report: none, or the JSON and the page."""
    return () if settings.report is None else (settings.report, settings.report.with_suffix(".html"))


def _check_options(settings: TransformSettings, form: Format) -> None:
    """Raises ConfigError for an option that would change nothing."""
    given = {name for name, value in settings.model_dump().items() if value is not None and value is not False}
    idle = sorted((set(FormatOptions.model_fields) & given) - form.heeds)
    idle += [name for name in OF_PAIRS if name in given and form.unit != "pair"]
    idle += [name for name in OF_ROLLOUTS if name in given and form.unit != "rollout"]
    idle += ["dedupe"] if "dedupe" in given and form.unit == "task" else []
    idle += ["min_reward"] if "min_reward" in given and form.task_line is not None else []
    if idle:
        raise ConfigError(f"--{idle[0].replace('_', '-')} does not apply to {settings.to}; leave it out")
    if settings.seed is not None and settings.split is None and settings.pairs != "random":
        raise ConfigError("--seed does not apply without --split or --pairs random; leave it out")


def _min_reward(wanted: str | None, form: Format) -> float | None:
    if wanted is None:
        return form.min_reward
    try:
        number = None if wanted == "none" else float(wanted)
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise ConfigError(f"--min-reward {wanted!r}: expected a number or 'none'")
    return number


def _check_paths(inputs: Sequence[Path], settings: TransformSettings) -> None:
    if not inputs:
        raise ConfigError("no input file; name at least one rollouts file")
    sources = {os.path.realpath(path): path for path in inputs}
    if len(sources) < len(inputs):
        raise ConfigError("an input file is named twice; its rollouts would count twice")
    sources |= {os.path.realpath(path): path for path in map(materialized_inputs_of, inputs) if path is not None}
    outputs = outputs_of(settings)
    for output in outputs:
        if source := sources.get(os.path.realpath(output)):
            raise ConfigError(f"{output}: the output is the input {source}; write to another file")
        _check_replaceable(output)
    if settings.report is not None and settings.report.suffix == ".html":
        raise ConfigError(f"{settings.report}: the page is written beside the JSON; name a .json file")
    taken = {*sources, *map(os.path.realpath, outputs)}
    for report in reports_of(settings):
        if os.path.realpath(report) in taken:
            raise ConfigError(f"{report}: the report is an input or the output; write it to another file")
        _check_replaceable(report)


def _check_replaceable(path: Path) -> None:
    """A new file takes the place of `path`: of a device, or of a pipe that somebody reads, it must not."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; name a file")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is a device or a pipe; name a file")
