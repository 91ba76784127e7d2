"""The lists of a file: its rollouts, its groups, its failures."""

from typing import Any

import polars as pl

from gym_bridge.schemas.columns import ROLLOUT_COLUMNS
from gym_bridge.viewer.exports import FORMATS
from gym_bridge.viewer.filters import Filter, chosen_groups
from gym_bridge.viewer.outcomes import OUTCOMES
from gym_bridge.viewer.rows_shown import FileShown
from gym_bridge.viewer.site import Site

PAGE_ROWS, PAGE_GROUPS = 50, 40
MAX_CHOICES = 200
MAX_FAILURES = 200
SORTS = {
    "file": "as in the file",
    "newest": "newest first",
    "reward": "highest reward",
    "worst": "lowest reward",
    "turns": "most turns",
    "tokens": "most tokens",
    "time": "longest",
}
GROUP_SORTS = {
    "file": "as in the file",
    "newest": "newest first",
    "spread": "widest spread",
    "mean": "highest mean",
    "hardest": "lowest mean",
    "failures": "most failures",
}


class ListPages:
    """Pages of many rows."""

    def __init__(self, site: Site):
        self._site = site

    def rollouts(self, number: int, asked: Filter) -> str:
        """A file's rollouts, a page of those that a filter leaves. Raises as `chosen_rows`."""
        shown = self._site.shown(number)
        chosen = self._site.chosen(number, shown.rows, asked)
        query = asked.asks | ({"sort": asked.sort} if asked.sort != "file" else {})
        lines = chosen.slice((asked.page - 1) * PAGE_ROWS, PAGE_ROWS).rows(named=True)
        pages = self._site.pager(
            asked.page, chosen.height, PAGE_ROWS, lambda page: self._site.links.rollouts(number, query | {"page": page})
        )
        return self._page(
            shown,
            asked,
            "Rollouts",
            found=chosen.height,
            total=shown.rows.frame.height,
            rollouts=[shown.rollout(one, query=query) for one in lines],
            pages=pages,
            clear=self._site.links.rollouts(number),
        )

    def groups(self, number: int, asked: Filter) -> str:
        """A file's groups, a page of those with a row that a filter leaves. Raises as `chosen_rows`."""
        shown = self._site.shown(number)
        groups = chosen_groups(shown.rows, self._site.chosen(number, shown.rows, asked), asked)
        query = asked.asks | ({"group_sort": asked.group_sort} if asked.group_sort != "file" else {})
        pages = self._site.pager(
            asked.page, groups.height, PAGE_GROUPS, lambda page: self._site.links.groups(number, query | {"page": page})
        )
        return self._page(
            shown,
            asked,
            "Groups",
            found=groups.height,
            total=shown.rows.groups.height,
            groups=shown.groups(groups.slice((asked.page - 1) * PAGE_GROUPS, PAGE_GROUPS)),
            pages=pages,
            clear=self._site.links.groups(number),
        )

    def _page(self, shown: FileShown, asked: Filter, here: str, **listed: Any) -> str:
        """The page with filters, and below them what is listed."""
        place = [{"text": shown.file.name, "href": None}]
        return self._site.page("rollouts.html", shown.file.name, place, **_filter_context(shown, asked, here), **listed)

    def failures(self, number: int) -> str:
        """How the rollouts of a file ended, and why attempts failed."""
        shown = self._site.shown(number)
        failures = shown.rows.failures
        lines = [
            {
                "failure": one["failure"],
                "stage": one["failure_stage"],
                "message": one["failure_message"],
                "count": one["count"],
                "retried": one["retried"],
                "href": self._site.links.rollout(number, shown.rows.place(one["first"])),
            }
            for one in failures.head(MAX_FAILURES).iter_rows(named=True)
        ]
        return self._site.page(
            "failures.html",
            shown.file.name,
            [{"text": shown.file.name, "href": None}],
            file=number,
            ledger=self._site.ledger(shown),
            failures=lines,
            num_more=failures.height - len(lines),
        )


def _filter_context(shown: FileShown, asked: Filter, here: str) -> dict[str, Any]:
    frame = shown.rows.frame
    choices = {
        "outcome": [one for one in OUTCOMES if one in set(frame["outcome"].unique())],
        "stop": _values(frame["stop_reason"]),
        "failure": _values(frame["failure"]),
        "tool": _values(frame["tools_used"].explode()),
        "version": _values(frame["version"]),
    }
    return {
        "file": shown.number,
        "here": here,
        "asked": asked,
        "choices": choices,
        "columns": list(ROLLOUT_COLUMNS),
        "sorts": SORTS,
        "group_sorts": GROUP_SORTS,
        "formats": FORMATS,
    }


def _values(column: pl.Series) -> list[Any]:
    """The commonest values of a column, in their order."""
    counts = column.drop_nulls().value_counts(sort=True)
    return sorted(counts[column.name].head(MAX_CHOICES).to_list())
