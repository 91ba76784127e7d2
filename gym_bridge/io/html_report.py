"""A report as one HTML file: tables, line charts and notes, readable offline, with no script and nothing to fetch.

The page is XML as well as HTML, follows the reader's light or dark setting, and shows foreign text escaped.
"""

import html
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Cell = str | int | float | None

MAX_DRAWABLE = 1e100
"""Numbers beyond this are left out of charts like infinite ones: a span of them overflows."""
MAX_DOTS = 240
"""A longer curve is drawn whole, with dots and their tooltips on this many of its points."""
WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 548, 12, 212
"""Edges of the plotting area within the chart, in pixels of its viewBox; the labels of the axes stand outside."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line chart. Points stand in the order in which the line joins them."""

    title: str
    y_label: str
    points: Sequence[Point]
    x_label: str = "step"


@dataclass(frozen=True, slots=True)
class Table:
    """One table, every row as long as the header. Numbers stand right-aligned, floats with four significant digits."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def render_page(title: str, subtitle: str, tables: Sequence[Table], curves: Sequence[Curve], notes: Sequence[str]) -> str:
    """The whole page as text, to be written as UTF-8."""
    sections = []
    if curves:
        sections.append('<section class="charts">' + "".join(_figure(one) for one in curves) + "</section>")
    sections += [_table(one) for one in tables]
    if notes:
        sections.append("<section><h2>Notes</h2><ul>" + "".join(f"<li>{_escaped(one)}</li>" for one in notes) + "</ul></section>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
        f"<title>{_escaped(title)}</title><style>{_STYLE}</style></head>\n<body><main>"
        f'<header><h1>{_escaped(title)}</h1><p class="muted">{_escaped(subtitle)}</p></header>\n'
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


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


def _axis(values: Sequence[float], *, start: float, end: float, margin: float, num_ticks: int) -> _Axis:
    """The axis for `values`, wider than they are by `margin`, a fraction of their span, at either side."""
    low, high = min(values), max(values)
    magnitude = max(abs(low), abs(high))
    if high - low <= max(1e-7 * magnitude, 1 / MAX_DRAWABLE):
        widening = magnitude / 2 if magnitude > 1e-9 else 0.5
        low, high = low - widening, high + widening
    low, high = low - margin * (high - low), high + margin * (high - low)
    power = 10.0 ** math.floor(math.log10((high - low) / num_ticks))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * num_ticks >= (high - low) * (1 - 1e-9))
    if all(float(value).is_integer() for value in values):
        step = max(step, 1.0)
    return _Axis(low=low, high=high, step=step, start=start, end=end)


def _figure(curve: Curve) -> str:
    """The chart of a curve under its title and last value, above what it says in words."""
    drawn = [point for point in curve.points if _drawable(point)]
    skipped = len(curve.points) - len(drawn)
    words = [f"{len(drawn)} points" if len(drawn) != 1 else "1 point"]
    last = ""
    if drawn:
        values = [y for _, y in drawn]
        words.append(f"lowest {_number(min(values))}, highest {_number(max(values))}, last {_number(values[-1])}")
        last = f'<span class="last">{_number(values[-1])}</span>'
    if skipped:
        words.append(f"{skipped} not drawn: not a finite number, or beyond {MAX_DRAWABLE:g}")
    chart = _svg(curve, drawn) if drawn else '<p class="empty">Nothing to draw</p>'
    caption = f'<figcaption class="muted">{"; ".join(words)}.</figcaption>'
    return f'<figure class="card"><h2>{_escaped(curve.title)}{last}</h2>{chart}{caption}</figure>'


def _svg(curve: Curve, drawn: Sequence[Point]) -> str:
    """Grid, axes, line and dots; the line breaks where points are skipped."""
    x_axis = _axis([x for x, _ in drawn], start=LEFT, end=RIGHT, margin=0.0, num_ticks=6)
    y_axis = _axis([y for _, y in drawn], start=BOTTOM, end=TOP, margin=0.06, num_ticks=5)
    runs = [list(run) for drawable, run in itertools.groupby(curve.points, key=_drawable) if drawable]
    path = " ".join(_path(run, x_axis, y_axis) for run in runs)
    x_label, y_label = _escaped(curve.x_label), _escaped(curve.y_label)
    name = f"{_escaped(curve.title)}: {y_label} against {x_label}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        + _grid(x_axis, y_axis)
        + f'<text class="axis" x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 8}" text-anchor="middle">{x_label}</text>'
        + f'<text class="axis" transform="translate(13 {(TOP + BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle">{y_label}</text>'
        + f'<path class="line" d="{path}"/>'
        + _dots(curve, drawn, x_axis, y_axis)
        + "</svg>"
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


def _dots(curve: Curve, drawn: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> str:
    """Tooltips: a visible dot on a short curve, on a long one a dot that shows under the pointer; the last is always there."""
    stride = math.ceil(len(drawn) / MAX_DOTS)
    kind = "dot" if len(drawn) <= MAX_DOTS // 4 else "dot faint"
    dots = []
    for index in sorted({*range(0, len(drawn), stride), len(drawn) - 1}):
        x, y = drawn[index]
        words = f"{_escaped(curve.x_label)} {_number(x)}: {_escaped(curve.y_label)} {_number(y)}"
        shown = "dot" if index == len(drawn) - 1 else kind
        place = f'cx="{x_axis.pixel(x):.2f}" cy="{y_axis.pixel(y):.2f}"'
        dots.append(f'<circle class="{shown}" {place} r="3"><title>{words}</title></circle>')
    return "".join(dots)


def _table(table: Table) -> str:
    columns = list(zip(table.header, *table.rows, strict=True))
    header = "".join(f'<th scope="col"{_NUMBER if _numeric(cells) else ""}>{_escaped(name)}</th>' for name, *cells in columns)
    rows = "".join("<tr>" + "".join(_cell(one) for one in row) + "</tr>" for row in table.rows)
    caption = f"<caption>{_escaped(table.title)}</caption>"
    return f'<section class="card scroll"><table>{caption}<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></section>'


_NUMBER = ' class="number"'


def _numeric(cells: Sequence[Cell]) -> bool:
    return bool(cells) and not any(isinstance(one, bool | str) for one in cells)


def _cell(value: Cell) -> str:
    if value is None:
        return f"<td{_NUMBER}>–</td>"
    if isinstance(value, bool | str):
        return f"<td>{_escaped(str(value))}</td>"
    return f"<td{_NUMBER}>{_number(value)}</td>"


def _drawable(point: Point) -> bool:
    return all(abs(value) <= MAX_DRAWABLE for value in point)


def _number(value: float) -> str:
    """Whole numbers with thousands marked, others with four significant digits."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e9):
        return f"{int(value):,}"
    return f"{value:.4g}"


def _escaped(text: str) -> str:
    """`text` as XML shows it; control characters and lone surrogates, which XML has no way to write, become U+FFFD."""
    return html.escape(re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1b1f24; --muted: #5c6570; --rule: #e1e4e8; --line: #2458d3;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1216; --card: #181c22; --ink: #e6e9ee; --muted: #9aa4b0; --rule: #2b313a; --line: #7aa8ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 20px 64px; }
header { margin-bottom: 28px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; letter-spacing: -0.02em; }
h2 { margin: 0 0 8px; font-size: 15px; font-weight: 600; }
p { margin: 6px 0 0; }
.muted { color: var(--muted); }
.card { margin: 0 0 20px; padding: 18px 20px; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px; margin-bottom: 20px; }
.charts .card { margin: 0; }
.charts h2 { display: flex; justify-content: space-between; gap: 16px; }
.last { color: var(--line); font-variant-numeric: tabular-nums; white-space: nowrap; }
.empty { padding: 60px 0; color: var(--muted); text-align: center; }
figcaption { margin-top: 6px; font-size: 13px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--muted); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .axis { font-size: 12px; }
.grid { stroke: var(--rule); }
.base { stroke: var(--muted); }
.line { fill: none; stroke: var(--line); stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
.dot { fill: var(--line); stroke: transparent; stroke-width: 8; }
.faint { opacity: 0; }
.dot:hover { opacity: 1; stroke: var(--line); stroke-opacity: 0.25; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
caption { margin-bottom: 8px; font-weight: 600; text-align: left; }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { color: var(--muted); font-size: 13px; font-weight: 500; }
tbody tr:last-child td { border-bottom: 0; }
.number { font-variant-numeric: tabular-nums; text-align: right; }
li { margin: 4px 0; }
"""
