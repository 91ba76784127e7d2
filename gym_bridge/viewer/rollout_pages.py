"""One group with its siblings, and one rollout as a conversation."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from gym_bridge.io.charts import number_text
from gym_bridge.viewer.conversation import conversation_of
from gym_bridge.viewer.filters import Filter
from gym_bridge.viewer.rollout_file import Rows
from gym_bridge.viewer.rows_shown import FileShown, group_name, or_dash, shown_entry, shown_text, why_dead
from gym_bridge.viewer.site import Site, Trail


class RolloutPages:
    """Pages of few rows."""

    def __init__(self, site: Site):
        self._site = site

    def group(self, number: int, place: str) -> str:
        """One group: what it was asked, and its siblings. Raises ConfigError for a place without a rollout."""
        shown = self._site.shown(number)
        members = shown.rows.group(shown.rows.number(place))
        told = _group_of(shown.rows, members)
        first = shown.view(members.item(0, "number"))[1]
        prompt = [shown_entry(one) for one in conversation_of(first) if one.turn is None] if first is not None else []
        lines = members.rows(named=True)
        mean = told["mean_reward"]
        tiles = [
            ("rollouts with a reward", number_text(told["num_rollouts"])),
            ("mean reward", or_dash(mean)),
            ("spread", or_dash(told["spread"])),
            ("deviation", or_dash(told["std_reward"])),
            ("failed", number_text(told["num_failed"])),
            ("truncated", number_text(told["num_truncated"])),
        ]
        return self._site.page(
            "group.html",
            group_name(told) + (f", policy version {told['version']}" if told["version"] is not None else ""),
            self._trail(number, shown, group_name(told)),
            file=number,
            group=told | {"why": why_dead(told)},
            tiles=tiles,
            prompt=prompt,
            rollouts=[shown.rollout(one) for one in lines],
            elsewhere=self._elsewhere(number, members.item(0, "content"), told),
        )

    def rollout(self, number: int, place: str, asked: Filter, *, whole: str | None = None) -> str:
        """One rollout as a conversation. `whole`: what is not to be cut, its `text` or its `row`. Raises ConfigError for a place
        without one."""
        shown = self._site.shown(number)
        rows = shown.rows
        here = rows.number(place)
        told = rows.frame.row(here, named=True)
        row, view = shown.view(here)
        query = asked.asks | ({"sort": asked.sort} if asked.sort != "file" else {})
        ways = self._ways(number, shown, here, asked, query)
        return self._site.page(
            "rollout.html",
            f"rollout {shown.name(told)}",
            self._trail(number, shown, f"rollout {shown.name(told)}", query),
            file=number,
            place=place,
            one=told,
            entries=shown.entries(view, whole=whole == "text"),
            facts=shown.facts(told, row),
            has_tokens=view is not None and bool(shown.file.turns(row, view)),
            raw=shown_text(shown.file.text(rows, here).decode(errors="replace"), whole=whole == "row"),
            whole_text=self._site.links.rollout(number, place, query | {"whole": "text"}),
            whole_row=self._site.links.rollout(number, place, query | {"whole": "row"}),
            open_row=whole == "row",
            **ways,
        )

    def _ways(self, number: int, shown: FileShown, here: int, asked: Filter, query: Mapping[str, str]) -> dict[str, Any]:
        """Where one may go from a rollout: along the filtered list, and to its siblings."""
        rows = shown.rows
        numbers = self._site.chosen(number, rows, asked)["number"]
        at = numbers.index_of(here)
        ways: dict[str, Any] = dict.fromkeys(("before", "after", "position", "sibling_before", "sibling_after"))
        if at is not None:
            ways["position"] = f"{number_text(at + 1)} of {number_text(len(numbers))}"
            for name, place in (("before", at - 1), ("after", at + 1)):
                if 0 <= place < len(numbers):
                    ways[name] = self._site.links.rollout(number, rows.place(numbers[place]), query)
        siblings = rows.group(here)
        order = siblings["number"].to_list()
        for name, place in (("sibling_before", order.index(here) - 1), ("sibling_after", order.index(here) + 1)):
            if 0 <= place < len(order):
                ways[name] = self._site.links.rollout(number, rows.place(order[place]), query)
        chips = [shown.chip(one) | ({"href": None} if one["number"] == here else {}) for one in siblings.iter_rows(named=True)]
        return ways | {"siblings": chips}

    def _trail(self, number: int, shown: FileShown, last: str, query: Mapping[str, str] | None = None) -> Trail:
        return [
            {"text": shown.file.name, "href": self._site.links.rollouts(number, query), "key": "r"},
            {"text": last, "href": None},
        ]

    def _elsewhere(self, number: int, content: int | None, own: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The groups of the same prompt in this file and in the others."""
        found: list[dict[str, Any]] = []
        for other in range(len(self._site.library.files)) if content is not None else ():
            rows = self._site.file(other).look()
            same = rows.frame.filter(pl.col("content") == content)["group"].unique()
            for one in rows.groups.filter(pl.col("group").is_in(same.implode())).iter_rows(named=True):
                if other == number and one["group"] == own["group"]:
                    continue
                version = "" if one["version"] is None else f", policy version {one['version']}"
                found.append(
                    {
                        "name": f"{self._site.file(other).name}{version}",
                        "href": self._site.links.group(other, rows.place(one["first"])),
                        "told": f"{number_text(one['num_rollouts'])} rollouts, mean reward {or_dash(one['mean_reward'])}",
                    }
                )
        return found


def _group_of(rows: Rows, members: pl.DataFrame) -> dict[str, Any]:
    """The line of the group of some rows; one of its own for a row without a group."""
    found = rows.groups.filter(pl.col("group") == members.item(0, "group")) if members.item(0, "group") is not None else None
    if found is not None and found.height:
        return found.row(0, named=True)
    empty = dict.fromkeys(rows.groups.columns)
    return empty | {"num_rollouts": 0, "num_failed": 0, "num_truncated": 0, "signal": False, "group": None}
