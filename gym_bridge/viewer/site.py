"""What all pages share: the library, addresses, the rows that filters leave, and the frame of a page."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import polars as pl

from gym_bridge.errors import ConfigError
from gym_bridge.viewer.filters import Filter, chosen_rows
from gym_bridge.viewer.library import Library
from gym_bridge.viewer.links import Links, LiveLinks
from gym_bridge.viewer.rollout_file import RolloutFile, Rows, changed_at
from gym_bridge.viewer.rows_shown import FileShown, ledger_shown
from gym_bridge.viewer.templating import render

MAX_KEPT = 8
"""Choices of rows that are remembered: paging through one does not search again."""
Trail = list[dict[str, str | None]]
"""The way to a page: each with its `text`, `href` and perhaps the `key` that leads there."""


class Site:
    """A library as pages see it, each time as it stands now."""

    def __init__(self, library: Library, *, links: Links | None = None):
        self.library, self.links = library, links or LiveLinks()
        self._chosen: OrderedDict[tuple[int, int, Filter], pl.DataFrame] = OrderedDict()
        self._lock = threading.Lock()

    def version(self) -> str:
        """Changes when any file does; told without reading one."""
        self.library.look()
        changed = [run.changed_ns for run in self.library.runs]
        for file in self.library.files:
            changed += changed_at((file.path, file.failures, *file.tellers))
        return f"{len(changed)}-{sum(changed)}"

    def file(self, number: int) -> RolloutFile:
        """A file by its number. Raises ConfigError for one that is not there."""
        if 0 <= number < len(self.library.files):
            return self.library.files[number]
        raise ConfigError(f"there is no file {number} here")

    def shown(self, number: int) -> FileShown:
        """A file as tables show it, with its rows as they stand now."""
        file = self.file(number)
        return FileShown(file, file.look(), number, self.links)

    def chosen(self, number: int, rows: Rows, asked: Filter) -> pl.DataFrame:
        """The rows that a filter leaves of a file. Raises as `chosen_rows`."""
        key = (number, rows.generation, asked.model_copy(update={"page": 1, "group_sort": "file"}))
        with self._lock:
            if key in self._chosen:
                self._chosen.move_to_end(key)
                return self._chosen[key]
        found = chosen_rows(self.file(number), rows, asked)
        with self._lock:
            self._chosen[key] = found
            while len(self._chosen) > MAX_KEPT:
                self._chosen.popitem(last=False)
        return found

    def page(self, template: str, title: str, trail: Trail | None = None, **context: Any) -> str:
        """A rendered page."""
        base = {"title": title, "trail": trail or [], "version": self.version(), "links": self.links}
        return render(template, base | context)

    def ledger(self, shown: FileShown) -> dict[str, Any]:
        """The ledger of a file; its parts lead to their rollouts."""
        rows, links, number = shown.rows, self.links, shown.number
        hrefs = {outcome: links.rollouts(number, {"outcome": outcome}) for outcome in ("completed", "truncated", "no reward")}
        for name in rows.ledger.failed:
            hrefs.setdefault(name, links.rollouts(number, {"outcome": "failed", "failure": name}))
        hrefs["unreadable"] = links.rollouts(number, {"outcome": "unreadable"})
        unreadable = int((rows.frame["outcome"] == "unreadable").sum())
        return ledger_shown(rows.ledger, hrefs, requested=rows.requested, num_unreadable=unreadable)

    def pager(self, page: int, count: int, size: int, href: Callable[[int], str | None]) -> dict[str, Any]:
        """Where one may go from a page of `count` lines, `size` a page; `href` is the address of a page."""
        last = max(1, -(-count // size))
        return {
            "page": page,
            "last": last,
            "before": href(min(page - 1, last)) if page > 1 else None,
            "after": href(page + 1) if page < last else None,
        }
