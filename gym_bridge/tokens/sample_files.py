"""Files of rows to units of training sequences: too long ones dropped or cut, strange tokens refused, all of it counted."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import parse_line, read_lines
from gym_bridge.io.rollout_reader import PLACEHOLDER
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.renderers import Renderer

Unit = tuple[TrainingSequence, ...]
"""What one row trains: sequences that stay in one microbatch."""

ReadRow = Callable[[Row], Unit | str]
"""Makes a row's unit, or says in a word why it is dropped. Raises DataError for a row of the wrong kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReader:
    """How a trainer reads its rows."""

    open: Callable[[Path], ReadRow]
    """Given a file, gives the function that reads its rows."""
    identity: dict[str, Any]
    """Plain values that tell two readers apart which would make different units of a row."""
    whole: bool = False
    """The sequences of a unit belong together, as the sides of a pair: cut, each must have something of its own to train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a sequence may be."""

    max_length: int
    """Tokens."""
    over_length: Literal["drop", "cut"] = "drop"
    vocab_size: int | None = None
    """How many token ids the model knows; None: not checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The units of a file, and what became of its other rows."""

    units: list[Unit] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Of each unit, the 1-based line of its row."""
    dropped: Counter[str] = field(default_factory=Counter)
    """How many rows were dropped, by reason."""
    num_cut: int = 0
    """How many rows were cut."""


def renderer_identity(renderer: Renderer) -> dict[str, Any]:
    """What tells one renderer from another: plain values."""
    kind = type(renderer)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **getattr(renderer, "identity", {})}


def read_samples(path: Path, reader: SampleReader, limits: Limits) -> Samples:
    """The units of a plain, gzip or zstd file of rows.

    Raises DataError with path and line for a row that is refused, ConfigError for a file that cannot be read or has no row left.
    """
    read_row = reader.open(path)
    units: list[Unit] = []
    lines: list[int] = []
    dropped: Counter[str] = Counter()
    num_cut = 0
    for line, text in read_lines(path):
        found = "not_a_rollout" if text.strip() == PLACEHOLDER else _unit(read_row, text, path, line, limits)
        fitted = found if isinstance(found, str) else _fitted(found, limits, whole=reader.whole)
        if isinstance(fitted, str):
            dropped[fitted] += 1
            continue
        num_cut += fitted is not found
        origin = f"{path}:{line}"
        units.append(tuple(replace(one, origin=origin) for one in fitted))
        lines.append(line)
    if not units:
        raise ConfigError(_nothing_left(path, dropped, limits))
    return Samples(units=units, lines=lines, dropped=dropped, num_cut=num_cut)


def _unit(read_row: ReadRow, text: bytes, path: Path, line: int, limits: Limits) -> Unit | str:
    row = parse_line(text, path=path, line=line)
    try:
        unit = read_row(row)
        if not isinstance(unit, str):
            _check(unit, limits)
    except RecursionError:
        raise DataError("objects are nested too deeply for it to be read", path=path, line=line) from None
    except DataError as error:
        raise DataError(str(error), path=path, line=line) from error
    except ConfigError as error:
        raise ConfigError(f"{path}:{line}: {error}") from error
    return unit


def _check(unit: Unit, limits: Limits) -> None:
    for one in unit:
        if one.train_mask[0]:
            raise DataError("its first token trains, but nothing predicts it: the prompt is empty")
        low, high = int(one.token_ids.min()), int(one.token_ids.max())
        if limits.vocab_size is not None and not 0 <= low <= high < limits.vocab_size:
            strange = high if high >= limits.vocab_size else low
            raise DataError(
                f"token id {strange} is outside the model's vocabulary of {limits.vocab_size}; another model or tokenizer made it"
            )


def _fitted(unit: Unit, limits: Limits, *, whole: bool) -> Unit | str:
    """`unit` itself where it fits, else what is left of it."""
    most = limits.max_length
    if all(len(one.token_ids) <= most for one in unit):
        return unit
    if limits.over_length == "drop":
        return "too_long"
    cut = tuple(one for one in (_cut(one, most) for one in unit) if one.train_mask.any())
    alike = whole and len({one.token_ids.tobytes() for one in cut}) < len(unit)
    return "too_long" if not cut or alike else cut


def _cut(sequence: TrainingSequence, most: int) -> TrainingSequence:
    logprobs = sequence.rollout_logprobs
    return replace(
        sequence,
        token_ids=sequence.token_ids[:most],
        train_mask=sequence.train_mask[:most],
        rollout_logprobs=None if logprobs is None else logprobs[:most],
    )


def _nothing_left(path: Path, dropped: Counter[str], limits: Limits) -> str:
    if not dropped:
        return f"{path}: the file is empty; expected one JSON object a line"
    hints = {
        "too_long": f"raise data.max_length={limits.max_length}",
        "low_reward": "lower data.min_reward",
        "no_token_ids": "rollouts without token ids train as `gym-bridge transform --to sft` writes them",
        "history_rewritten": "set data.train_on=final, which trains the last answer only",
    }
    told = "; ".join(hint for reason, hint in hints.items() if reason in dropped)
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return f"{path}: no row is left of {dropped.total()}: {counts}" + (f"; {told}" if told else "")
