"""One HTML file that opens from disk, with no script and nothing to fetch: curves, ledgers, groups, and some rollouts whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from gym_bridge.io.charts import number_text
from gym_bridge.io.html_report import STYLE
from gym_bridge.version import __version__
from gym_bridge.viewer.curves import curve_sections
from gym_bridge.viewer.exports import Exported, Exports
from gym_bridge.viewer.library import Library
from gym_bridge.viewer.links import PageLinks
from gym_bridge.viewer.rows_shown import FileShown, or_dash
from gym_bridge.viewer.site import Site
from gym_bridge.viewer.templating import asset, render

MAX_ROLLOUTS, MAX_GROUPS = 200, 200
"""Of one file, in a page: browsers grow slow beyond."""
Shown = dict[str, Any]


def shared_page(library: Library, *, title: str) -> str:
    """All runs and files of a library in one page."""
    site = Site(library)
    chosen = {number: site.shown(number).rows.frame for number in range(len(library.files))}
    return _page(library, chosen, range(len(library.runs)), title=title)


def export_selection(site: Site, exports: Exports, number: int, chosen: pl.DataFrame) -> str:
    """The key of a page of some rollouts of a file."""
    shown = min(MAX_ROLLOUTS, chosen.height)
    left_out = chosen.height - shown
    dropped = {f"a page holds the first {MAX_ROLLOUTS}": left_out} if left_out else {}

    def make(place: Path) -> Exported:
        path = place / "report.html"
        text = _page(site.library, {number: chosen}, (), title=site.file(number).name)
        path.write_text(text, encoding="utf-8", errors="replace")
        return Exported(path=path, to="page", of=number, num_rows=shown, num_selected=chosen.height, dropped=dropped)

    return exports.add(make)


def _page(library: Library, chosen: Mapping[int, pl.DataFrame], runs: Sequence[int], *, title: str) -> str:
    live = Site(library)
    parts = {number: frame.head(MAX_ROLLOUTS) for number, frame in chosen.items()}
    rows = {number: live.shown(number).rows for number in chosen}
    places = {(number, rows[number].place(one)) for number, frame in parts.items() for one in frame["number"]}
    links = PageLinks(places)
    site = Site(library, links=links)
    return render(
        "report.html",
        {
            "title": title,
            "subtitle": f"made by gym-bridge {__version__}; it needs no server and fetches nothing",
            "style": STYLE + asset("page.css"),
            "links": links,
            "runs": [_run(library, number) for number in runs],
            "files": [_file(site, number, chosen[number], frame) for number, frame in parts.items()],
        },
    )


def _run(library: Library, number: int) -> Shown:
    run = library.runs[number]
    return {"number": number, "name": run.name, "sections": curve_sections({run.name: run.metrics()})}


def _file(site: Site, number: int, chosen: pl.DataFrame, shown_rows: pl.DataFrame) -> Shown:
    shown = site.shown(number)
    groups = shown.rows.groups.filter(pl.col("group").is_in(chosen["group"].unique().implode()))
    few, rollouts = groups.head(MAX_GROUPS), [_rollout(shown, one) for one in shown_rows.iter_rows(named=True)]
    return {
        "number": number,
        "name": shown.file.name,
        "tiles": [
            ("rows", number_text(chosen.height)),
            ("groups", number_text(groups.height)),
            ("dead groups", number_text(int((~groups["signal"]).sum()))),
            ("mean reward", or_dash(_mean(chosen["reward"]))),
        ],
        "ledger": site.ledger(shown),
        "groups": shown.groups(few),
        "groups_title": _title("Groups", few.height, groups.height),
        "rollouts": rollouts,
        "rollouts_title": _title("Rollouts", len(rollouts), chosen.height),
    }


def _rollout(shown: FileShown, told: Shown) -> Shown:
    row, view = shown.view(told["number"])
    line = shown.rollout(told)
    return line | {"facts": shown.facts(told, row), "entries": shown.entries(view)}


def _title(what: str, num: int, of: int) -> str:
    return f"{what}, the first {number_text(num)} of {number_text(of)}" if num < of else what


def _mean(column: pl.Series) -> float | None:
    value = column.mean()
    return float(value) if isinstance(value, int | float) else None
