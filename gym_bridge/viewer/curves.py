"""The numbers of trainings as charts: the curated ones in four sections, of one run or of several side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from gym_bridge.io.charts import Curve, Line, Point
from gym_bridge.schemas.rollouts import Row
from gym_bridge.trainers.overview import DETAILS, HELD_OUT, OVERVIEW, SPEED, STABILITY, TRAINING, in_sections

SECTIONS = (TRAINING, HELD_OUT, STABILITY, SPEED, DETAILS)
TITLES = {TRAINING: "Training", HELD_OUT: "Held out", STABILITY: "Stability", SPEED: "Speed", DETAILS: "Details"}
STEP = "step"


@dataclass(frozen=True, slots=True)
class CurveSection:
    """Charts under one title."""

    name: str
    title: str
    curves: Sequence[Curve]


def curve_sections(runs: Mapping[str, Sequence[Row]], *, details: bool = False) -> list[CurveSection]:
    """The charts of runs' metrics by the runs' names; the long rest only where `details` are asked for."""
    series = {name: _series(rows) for name, rows in runs.items()}
    metrics = dict.fromkeys(chain.from_iterable(series.values()))
    placed: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for metric in metrics:
        placed[_section(metric)].append(metric)
    shown = SECTIONS if details else SECTIONS[:-1]
    return [
        CurveSection(section, TITLES[section], [_curve(metric, series) for metric in _in_order(placed[section])])
        for section in shown
        if placed[section]
    ]


def num_details(runs: Mapping[str, Sequence[Row]]) -> int:
    """How many charts `details` adds."""
    metrics = dict.fromkeys(chain.from_iterable(_series(rows) for rows in runs.values()))
    return sum(_section(metric) == DETAILS for metric in metrics)


def _section(metric: str) -> str:
    """The section that any of the verbs gives a metric: none has two."""
    places = (next(iter(in_sections({metric: 0.0}, verb=verb))).partition("/")[0] for verb in OVERVIEW)
    return next((place for place in places if place != DETAILS), DETAILS)


def _in_order(metrics: Sequence[str]) -> list[str]:
    """Those that an overview names come in its order."""
    known = {name: place for place, name in enumerate(chain.from_iterable(OVERVIEW[verb] for verb in ("grpo", "dpo")))}
    return sorted(metrics, key=lambda name: known.get(name, len(known)))


def _series(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Points by metric; what is no finite number breaks the line."""
    found: dict[str, list[Point]] = {}
    for place, row in enumerate(rows):
        step = row.get(STEP, place)
        for name, value in row.items():
            if name != STEP and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
                found.setdefault(name, []).append((float(step), float("nan") if value is None else float(value)))
    return {name: points for name, points in found.items() if any(y == y for _, y in points)}


def _curve(metric: str, series: Mapping[str, Mapping[str, Sequence[Point]]]) -> Curve:
    lines = [Line(name, points[metric]) for name, points in series.items() if metric in points]
    return Curve(metric, metric, lines[0].points, name=lines[0].name, others=lines[1:])
