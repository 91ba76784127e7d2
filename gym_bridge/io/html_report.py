"""A report as one HTML file: tables, charts and notes, readable offline, with no script and nothing to fetch.

The page is XML as well as HTML, follows the reader's light or dark setting, and shows foreign text escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gym_bridge.io.charts import Curve, Figure, escaped, figure, number_text


@dataclass(frozen=True, slots=True)
class Share:
    """A cell that shows a share, from 0 to 1, as a bar and in percent."""

    value: float


Cell = str | int | float | Share | None


@dataclass(frozen=True, slots=True)
class Table:
    """One table, every row as long as the header. Numbers stand right-aligned, floats with four significant digits."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Tiles:
    """A few numbers, each with what it is, side by side."""

    tiles: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Charts:
    """Charts side by side."""

    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True)
class Notes:
    """Sentences under a title."""

    title: str
    lines: Sequence[str]


Section = Table | Tiles | Charts | Notes


def render_page(title: str, subtitle: str, tables: Sequence[Table], curves: Sequence[Curve], notes: Sequence[str]) -> str:
    """The whole page as text, to be written as UTF-8: charts, tables, notes."""
    return render_sections(title, subtitle, [Charts(curves), *tables, Notes("Notes", notes)])


def render_sections(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page as text, to be written as UTF-8; sections without content but tables are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n<body><main>"
        f'<header><h1>{escaped(title)}</h1><p class="muted">{escaped(subtitle)}</p></header>\n'
        + "\n".join(filter(None, map(_section, sections)))
        + "\n</main></body></html>\n"
    )


def _section(section: Section) -> str:
    match section:
        case Table():
            return _table(section)
        case Tiles(tiles) if tiles:
            cards = [f'<b>{escaped(value)}</b><span class="muted">{escaped(what)}</span>' for what, value in tiles]
            shown = "".join(f'<div class="card">{one}</div>' for one in cards)
            return f'<section class="tiles">{shown}</section>'
        case Charts(figures) if figures:
            return f'<section class="charts">{"".join(map(figure, figures))}</section>'
        case Notes(title, lines) if lines:
            told = "".join(f"<li>{escaped(one)}</li>" for one in lines)
            return f"<section><h2>{escaped(title)}</h2><ul>{told}</ul></section>"
    return ""


def _table(table: Table) -> str:
    columns = list(zip(table.header, *table.rows, strict=True))
    header = "".join(f'<th scope="col"{_NUMBER if _numeric(cells) else ""}>{escaped(name)}</th>' for name, *cells in columns)
    rows = "".join("<tr>" + "".join(_cell(one) for one in row) + "</tr>" for row in table.rows)
    caption = f"<caption>{escaped(table.title)}</caption>"
    return f'<section class="card scroll"><table>{caption}<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></section>'


_NUMBER = ' class="number"'


def _numeric(cells: Sequence[Cell]) -> bool:
    return bool(cells) and not any(isinstance(one, bool | str | Share) for one in cells)


def _cell(value: Cell) -> str:
    if value is None:
        return f"<td{_NUMBER}>–</td>"
    if isinstance(value, Share):
        bar = f'<rect class="bar soft" width="60" height="10"/><rect class="bar" width="{60 * value.value:.1f}" height="10"/>'
        return f'<td class="share"><svg viewBox="0 0 60 10" aria-hidden="true">{bar}</svg>{100 * value.value:.1f} %</td>'
    if isinstance(value, bool | str):
        return f"<td>{escaped(str(value))}</td>"
    return f"<td{_NUMBER}>{number_text(value)}</td>"


STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1b1f24; --muted: #5c6570; --rule: #e1e4e8; --line: #2458d3;
  --c0: #2458d3; --c1: #c2410c; --c2: #15803d; --c3: #9333ea; --c4: #be185d; --c5: #0e7490; --c6: #a16207; --c7: #57534e;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1216; --card: #181c22; --ink: #e6e9ee; --muted: #9aa4b0; --rule: #2b313a; --line: #7aa8ff;
    --c0: #7aa8ff; --c1: #fb923c; --c2: #4ade80; --c3: #c084fc; --c4: #f472b6; --c5: #22d3ee; --c6: #facc15; --c7: #a8a29e; }
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
.c0 { --line: var(--c0); } .c1 { --line: var(--c1); } .c2 { --line: var(--c2); } .c3 { --line: var(--c3); }
.c4 { --line: var(--c4); } .c5 { --line: var(--c5); } .c6 { --line: var(--c6); } .c7 { --line: var(--c7); }
.line { fill: none; stroke: var(--line); stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
.dot { fill: var(--line); stroke: transparent; stroke-width: 8; }
.faint { opacity: 0; }
.dot:hover { opacity: 1; stroke: var(--line); stroke-opacity: 0.25; }
.bar { fill: var(--line); }
.soft { opacity: 0.25; }
.legend { display: flex; align-items: center; gap: 6px; margin: 0 0 6px; color: var(--muted); font-size: 13px; }
.swatch { width: 12px; height: 12px; border-radius: 2px; background: var(--line); }
.legend .swatch:not(:first-child) { margin-left: 12px; }
.share { font-variant-numeric: tabular-nums; white-space: nowrap; }
.share svg { display: inline-block; width: 60px; height: 10px; margin-right: 8px; vertical-align: baseline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 16px; margin-bottom: 20px; }
.tiles .card { margin: 0; }
.tiles b { display: block; font-size: 24px; font-weight: 600; line-height: 1.2; overflow-wrap: normal; }
.tiles .muted { font-size: 13px; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
caption { margin-bottom: 8px; font-weight: 600; text-align: left; }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { color: var(--muted); font-size: 13px; font-weight: 500; overflow-wrap: normal; }
tbody tr:last-child td { border-bottom: 0; }
.number { font-variant-numeric: tabular-nums; text-align: right; }
td.number { white-space: nowrap; }
ul { margin: 0 0 20px; padding-left: 22px; }
li { margin: 4px 0; }
"""
