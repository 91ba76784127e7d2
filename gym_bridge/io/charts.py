"""Line charts and histograms as inline SVG, for `gym_bridge.io.html_report`: no script, nothing to fetch, foreign text escaped."""

import html
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

MAX_DRAWABLE = 1e100
"""Numbers beyond this are left out of charts like infinite ones: a span of them overflows."""
MAX_DOTS = 240
"""A longer curve is drawn whole, with dots and their tooltips on this many of its points."""
NUM_COLOURS = 8
"""Of lines; the ninth has the first one's again."""
WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 548, 12, 212
"""Edges of the plotting area within the chart, in pixels of its viewBox; the labels of the axes stand outside."""
BEYOND = 52
"""Width of the bar, with the gap before it, for what lies beyond the last edge of a histogram."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line chart. Points stand in the order in which the line joins them."""

    title: str
    y_label: str
    points: Sequence[Point]
    x_label: str = "step"
    name: str = ""
    """What the line is of, where there are others."""
    others: Sequence["Line"] = ()
    """Drawn beside it, each in a colour of its own, which a legend tells."""

    @property
    def lines(self) -> list["Line"]:
        """Its own line and the others."""
        return [Line(self.name, self.points), *self.others]


@dataclass(frozen=True, slots=True)
class Line:
    """One of several lines of a chart."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One histogram. `edges` ascend, one more than there are counts; a last count may stand for all that lies beyond them."""

    title: str
    x_label: str
    y_label: str
    edges: Sequence[float]
    counts: Sequence[int]
    part: Sequence[int] | None = None
    """How many of each of the counts are drawn in full colour; without it, all of them are."""
    legend: tuple[str, str] = ("all", "part of them")
    """What the counts are, and what their part is."""
    whole: bool = False
    """The values are whole numbers: edges at halves hold one value, others hold their lower edge and what follows."""
    headline: str = ""
    caption: str = ""


Figure = Curve | Bars


def figure(one: Figure) -> str:
    """The card of a chart."""
    return _curve_figure(one) if isinstance(one, Curve) else _bars_figure(one)


def number_text(value: float) -> str:
    """Whole numbers with thousands marked, others with four significant digits."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e9):
        return f"{int(value):,}"
    return f"{value:,.4g}"


def escaped(text: str) -> str:
    """`text` as XML shows it; control characters and lone surrogates, which XML has no way to write, become U+FFFD."""
    return html.escape(re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """The numbers from `low` to `high`, spread over the pixels from `start` to `end`, with round numbers marked."""

    low: float
    high: float
    step: float
    start: float
    end: float

    def pixel(self, value: float) -> float:
        """Where `value` stands."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Multiples of the step; the slack keeps one that rounding put a hair outside."""
        first, last = math.ceil(self.low / self.step - 1e-6), math.floor(self.high / self.step + 1e-6)
        return [index * self.step for index in range(first, last + 1)]

    def label(self, value: float) -> str:
        """`value` with the digits that tell neighbouring ticks apart."""
        magnitude = max(abs(self.low), abs(self.high))
        step_exponent = math.floor(math.log10(self.step) + 1e-9)
        if magnitude < 1e6 and step_exponent >= -5:
            return f"{value:,.{max(0, -step_exponent)}f}"
        if value == 0:
            return "0"
        digits = max(0, math.floor(math.log10(magnitude)) - step_exponent)
        mantissa, exponent = f"{value:.{digits}e}".split("e")
        return f"{mantissa}e{int(exponent)}"


def _axis(
    values: Sequence[float], *, start: float, end: float, margin: float = 0.0, num_ticks: int, whole: bool | None = None
) -> _Axis:
    """The axis for `values`, wider than they are by `margin`, a fraction of their span, at either side.

    `whole` says that only whole numbers are worth a mark; None: when all values are such.
    """
    low, high = min(values), max(values)
    magnitude = max(abs(low), abs(high))
    if high - low <= max(1e-7 * magnitude, 1 / MAX_DRAWABLE):
        widening = magnitude / 2 if magnitude > 1e-9 else 0.5
        low, high = low - widening, high + widening
    low, high = low - margin * (high - low), high + margin * (high - low)
    power = 10.0 ** math.floor(math.log10((high - low) / num_ticks))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * num_ticks >= (high - low) * (1 - 1e-9))
    if whole is True or (whole is None and all(float(value).is_integer() for value in values)):
        step = max(step, 1.0)
    return _Axis(low=low, high=high, step=step, start=start, end=end)


def _curve_figure(curve: Curve) -> str:
    """The chart of a curve under its title and last value, above what it says in words."""
    drawn = [point for line in curve.lines for point in line.points if _drawable(point)]
    skipped = sum(len(line.points) for line in curve.lines) - len(drawn)
    words = [f"{len(drawn)} points" if len(drawn) != 1 else "1 point"]
    last = ""
    if drawn:
        values = [y for _, y in drawn]
        words.append(f"lowest {number_text(min(values))}, highest {number_text(max(values))}")
        if not curve.others:
            words[-1] += f", last {number_text(values[-1])}"
            last = f'<span class="last">{number_text(values[-1])}</span>'
    if skipped:
        words.append(f"{skipped} not drawn: not a finite number, or beyond {MAX_DRAWABLE:g}")
    chart = _curve_svg(curve, drawn) if drawn else '<p class="empty">Nothing to draw</p>'
    caption = f'<figcaption class="muted">{"; ".join(words)}.</figcaption>'
    return f'<figure class="card"><h2>{escaped(curve.title)}{last}</h2>{_lines_legend(curve)}{chart}{caption}</figure>'


def _lines_legend(curve: Curve) -> str:
    """Which colour is whose, with the last value of each line."""
    if not curve.others:
        return ""
    told = []
    for number, line in enumerate(curve.lines):
        last = next((number_text(y) for x, y in reversed(line.points) if _drawable((x, y))), "none")
        told.append(f'<span class="swatch {_colour(number)}"></span>{escaped(line.name)} {last}')
    return f'<p class="legend">{" ".join(told)}</p>'


def _colour(number: int) -> str:
    return f"c{number % NUM_COLOURS}"


def _curve_svg(curve: Curve, drawn: Sequence[Point]) -> str:
    """Grid, axes, line and dots; the line breaks where points are skipped."""
    x_axis = _axis([x for x, _ in drawn], start=LEFT, end=RIGHT, num_ticks=6)
    y_axis = _axis([y for _, y in drawn], start=BOTTOM, end=TOP, margin=0.06, num_ticks=5)
    marks = [_grid(x_axis, y_axis), _labels(curve)]
    for number, line in enumerate(curve.lines):
        runs = [list(run) for drawable, run in itertools.groupby(line.points, key=_drawable) if drawable]
        path = " ".join(_path(run, x_axis, y_axis) for run in runs)
        marks.append(f'<path class="line {_colour(number)}" d="{path}"/>' if curve.others else f'<path class="line" d="{path}"/>')
        marks.append(_dots(curve, number, x_axis, y_axis))
    return _drawing(f"{curve.title}: {curve.y_label} against {curve.x_label}", "".join(marks))


def _drawing(name: str, marks: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(name)}">{marks}</svg>'


def _labels(one: Figure) -> str:
    """The names of the axes."""
    x_label, y_label = escaped(one.x_label), escaped(one.y_label)
    return (
        f'<text class="axis" x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 8}" text-anchor="middle">{x_label}</text>'
        f'<text class="axis" transform="translate(13 {(TOP + BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle">{y_label}</text>'
    )


def _grid(x_axis: _Axis, y_axis: _Axis) -> str:
    marks = [f'<line class="base" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>']
    for value in y_axis.ticks():
        y, label = y_axis.pixel(value), y_axis.label(value)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>')
        marks.append(f'<text x="{LEFT - 8}" y="{y + 4:.2f}" text-anchor="end"{_squeezed(label)}>{label}</text>')
    for value in x_axis.ticks():
        x, label = x_axis.pixel(value), x_axis.label(value)
        marks.append(f'<line class="base" x1="{x:.2f}" x2="{x:.2f}" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>')
        marks.append(f'<text x="{x:.2f}" y="{BOTTOM + 20}" text-anchor="middle"{_squeezed(label)}>{label}</text>')
    return "".join(marks)


def _squeezed(label: str) -> str:
    """Narrows a label too long for its place: values that differ in their last digits only have such."""
    return ' textLength="48" lengthAdjust="spacingAndGlyphs"' if len(label) > 8 else ""


def _path(run: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> str:
    places = [f"{x_axis.pixel(x):.2f},{y_axis.pixel(y):.2f}" for x, y in run]
    # The first place twice: a run of one point becomes a dot under round line caps.
    return f"M{places[0]} L{' '.join([places[0], *places[1:]])}"


def _dots(curve: Curve, number: int, x_axis: _Axis, y_axis: _Axis) -> str:
    """Tooltips: a visible dot on a short curve, on a long one a dot that shows under the pointer; the last is always there."""
    line = curve.lines[number]
    drawn = [point for point in line.points if _drawable(point)]
    whose = f"{escaped(line.name)}, " if curve.others else ""
    stride = math.ceil(len(drawn) / MAX_DOTS)
    kind = "dot" if len(drawn) <= MAX_DOTS // 4 else "dot faint"
    dots = []
    for index in sorted({*range(0, len(drawn), stride or 1), len(drawn) - 1} if drawn else ()):
        x, y = drawn[index]
        words = f"{whose}{escaped(curve.x_label)} {number_text(x)}: {escaped(curve.y_label)} {number_text(y)}"
        shown = ("dot" if index == len(drawn) - 1 else kind) + (f" {_colour(number)}" if curve.others else "")
        place = f'cx="{x_axis.pixel(x):.2f}" cy="{y_axis.pixel(y):.2f}"'
        dots.append(f'<circle class="{shown}" {place} r="3"><title>{words}</title></circle>')
    return "".join(dots)


def _bars_figure(bars: Bars) -> str:
    headline = f'<span class="last">{escaped(bars.headline)}</span>' if bars.headline else ""
    chart = _bars_svg(bars) if sum(bars.counts) else '<p class="empty">Nothing to draw</p>'
    legend = ""
    if bars.part is not None:
        whole, part = map(escaped, bars.legend)
        legend = f'<p class="legend"><span class="swatch soft"></span>{whole}<span class="swatch"></span>{part}</p>'
    caption = f'<figcaption class="muted">{escaped(bars.caption)}</figcaption>' if bars.caption else ""
    return f'<figure class="card"><h2>{escaped(bars.title)}{headline}</h2>{legend}{chart}{caption}</figure>'


def _bars_svg(bars: Bars) -> str:
    """Grid, axes, and a bar for each count: soft for the whole, with its part in full colour before it."""
    beyond = len(bars.counts) == len(bars.edges)
    end = RIGHT - BEYOND if beyond else RIGHT
    x_axis = _axis((bars.edges[0], bars.edges[-1]), start=LEFT, end=end, num_ticks=6, whole=bars.whole)
    y_axis = _axis((0.0, max(bars.counts) * 1.05), start=BOTTOM, end=TOP, num_ticks=5, whole=True)
    places = [(x_axis.pixel(edge), _span(edge, upper, whole=bars.whole)) for edge, upper in itertools.pairwise(bars.edges)]
    rights = [x_axis.pixel(edge) for edge in bars.edges[1:]]
    marks = [_grid(x_axis, y_axis), _labels(bars)]
    if beyond:
        places.append((end + BEYOND / 2, f"{number_text(math.ceil(bars.edges[-1]) if bars.whole else bars.edges[-1])} and more"))
        rights.append(RIGHT)
        marks.append(f'<text x="{RIGHT - BEYOND / 4:g}" y="{BOTTOM + 20}" text-anchor="middle">more</text>')
    part = bars.counts if bars.part is None else bars.part
    for (left, span), right, count, inner in zip(places, rights, bars.counts, part, strict=True):
        words = f"{bars.x_label} {span}: {number_text(count)}"
        words += "" if bars.part is None else f", {bars.legend[1]} {number_text(inner)}"
        soft = _bar("bar soft", left, right, y_axis.pixel(count)) if inner < count else ""
        full = _bar("bar", left, right, y_axis.pixel(inner)) if inner else ""
        marks.append(f"<g><title>{escaped(words)}</title>{soft}{full}</g>" if count else "")
    return _drawing(f"{bars.title}: {bars.y_label} by {bars.x_label}", "".join(marks))


def _bar(kind: str, left: float, right: float, top: float) -> str:
    gap = min(1.0, (right - left) / 8)
    place = f'x="{left + gap:.2f}" y="{top:.2f}" width="{right - left - 2 * gap:.2f}" height="{BOTTOM - top:.2f}"'
    return f'<rect class="{kind}" {place}/>'


def _span(low: float, high: float, *, whole: bool) -> str:
    """The values of a bar, in words."""
    if not whole:
        return f"{number_text(low)} to {number_text(high)}"
    first, last = math.ceil(low), math.ceil(high) - 1
    return number_text(first) if first == last else f"{number_text(first)} to {number_text(last)}"


def _drawable(point: Point) -> bool:
    return all(abs(value) <= MAX_DRAWABLE for value in point)
