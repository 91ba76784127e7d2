"""Two rollouts side by side, and two files, or two policy versions of one, task by task."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from gym_bridge.errors import ConfigError
from gym_bridge.evaluation.estimates import paired_difference, task_mean
from gym_bridge.evaluation.summary import Paired
from gym_bridge.io.charts import number_text
from gym_bridge.viewer.rows_shown import FileShown, or_dash
from gym_bridge.viewer.site import Site

SIDE = re.compile(r"[0-9]{1,9}(@-?[0-9]{1,9})?")
PAGE_TASKS = 50
MAX_CHIPS = 32
MAX_VERSIONS = 200
COMPARED = ("reward", "outcome", "stop_reason", "failure", "policy_version", "model", "num_turns", "num_tool_calls")
COUNTED = ("num_tool_errors", "num_input_tokens", "num_output_tokens", "elapsed_s", "answer_chars")
Shown = dict[str, Any]


class Comparisons:
    """Pages that show two things side by side."""

    def __init__(self, site: Site):
        self._site = site

    def rollouts(self, first: tuple[int, str], second: tuple[int, str]) -> str:
        """Two rollouts, of one file or of two. Raises ConfigError for one that is not there."""
        sides, views, lines = [], [], []
        for number, place in (first, second):
            shown = self._site.shown(number)
            told = shown.rows.frame.row(shown.rows.number(place), named=True)
            _, view = shown.view(told["number"])
            name = f"{shown.file.name}: {shown.name(told)}"
            sides.append({"name": name, "href": shown.links.rollout(number, place), "one": told, "shown": shown})
            views.append(view)
            lines.append(told)
        same = views[0] is not None and views[1] is not None and views[0].context == views[1].context
        for side, view in zip(sides, views, strict=True):
            found = side["shown"].entries(view)
            side["prompt"] = [one for one in found if one["entry"].turn is None]
            side["entries"] = [one for one in found if one["entry"].turn is not None] if same else found
        facts = [(name, [_cell(one[name]) for one in lines]) for name in (*COMPARED, *COUNTED)]
        return self._site.page(
            "compare.html",
            "Two rollouts side by side",
            [
                {"text": sides[0]["shown"].file.name, "href": self._site.links.rollouts(first[0]), "key": "r"},
                {"text": "compare", "href": None},
            ],
            note=None if same else "They have different prompts.",
            sides=sides,
            facts=[(name.replace("num_", "").replace("_", " "), values) for name, values in facts if values != ["–", "–"]],
            prompt=sides[0]["prompt"] if same else [],
        )

    def files(self, before: str, after: str, *, page: int = 1) -> str:
        """Two sides, `FILE` or `FILE@VERSION`, over the tasks that both have. Raises ConfigError for a side that is not there."""
        sides = [self._side(one) for one in (before, after)]
        choices = self._choices()
        joined = _joined(sides[0][1], sides[1][1])
        context: dict[str, Any] = {"sides": [before, after], "side_choices": choices, "told": [], "problem": ""}
        if not joined.height:
            context["problem"] = "No task has a reward on both sides: tasks are matched by their prompt and tools."
        else:
            context |= self._told(sides, joined, page, [before, after])
        return self._site.page("versus.html", "Two policies on the same tasks", [{"text": "compare", "href": None}], **context)

    def _told(self, sides: Sequence[tuple[FileShown, pl.DataFrame]], joined: pl.DataFrame, page: int, asked: list[str]) -> Shown:
        rewards = [dict(zip(joined["content"], joined[name].to_list(), strict=True)) for name in ("before", "after")]
        gains = joined["gain"]
        paired = Paired(
            difference=paired_difference(rewards[0], rewards[1]),
            tasks_won=int((gains > 0).sum()),
            tasks_lost=int((gains < 0).sum()),
            tasks_tied=int((gains == 0).sum()),
            num_tasks_unpaired=sum(one["content"].n_unique() for _, one in sides) - 2 * joined.height,
        )
        query = f"/versus?side={asked[0]}&side={asked[1]}&page="
        means = [task_mean([task_mean(one) for one in side.values()]) for side in rewards]
        return {
            "tiles": [
                ("before", number_text(means[0])),
                ("after", number_text(means[1])),
                ("tasks", number_text(joined.height)),
                ("won", number_text(paired.tasks_won)),
                ("lost", number_text(paired.tasks_lost)),
            ],
            "told": paired.sentences(),
            "tasks": [self._task(sides, one) for one in joined.slice((page - 1) * PAGE_TASKS, PAGE_TASKS).iter_rows(named=True)],
            "pages": self._site.pager(page, joined.height, PAGE_TASKS, lambda one: f"{query}{one}"),
        }

    def _task(self, sides: Sequence[tuple[FileShown, pl.DataFrame]], told: Mapping[str, Any]) -> Shown:
        """A line of the table: both sides' rollouts; it leads to the first of each, side by side."""
        shown = []
        for side, name in zip(sides, ("numbers_before", "numbers_after"), strict=True):
            lines = side[0].rows.frame[told[name][:MAX_CHIPS]].rows(named=True)
            shown.append([side[0].chip(one) for one in lines])
        first, second = (
            f"{side[0].number}:{side[0].rows.place(told[name][0])}"
            for side, name in zip(sides, ("numbers_before", "numbers_after"), strict=True)
        )
        group = sides[0][0].group(sides[0][0].rows.groups.row(_group_number(sides[0][0], told), named=True))
        gain = told["gain"]
        return {
            "name": group["name"],
            "href": f"/compare?a={first}&b={second}",
            "before": shown[0],
            "after": shown[1],
            "difference": f"{gain:+.3g}",
            "class": "good" if gain > 0 else "bad" if gain < 0 else "muted",
            "asked": group["asked"],
        }

    def _side(self, text: str) -> tuple[FileShown, pl.DataFrame]:
        """A side, and its rollouts that have a reward."""
        file, _, version = text.partition("@")
        if not SIDE.fullmatch(text):
            raise ConfigError(f"there is no side {text!r} here; tick two files")
        shown = self._site.shown(int(file))
        rows = shown.rows.frame.filter(pl.col("outcome").is_in(["completed", "truncated"]))
        return shown, rows.filter(pl.col("version") == int(version)) if version else rows

    def _choices(self) -> list[tuple[str, str]]:
        """Every file, and each policy version of a file that has several."""
        choices = []
        for number, file in enumerate(self._site.library.files):
            choices.append((str(number), file.name))
            versions = file.look().frame["version"].drop_nulls().unique().sort().to_list()
            if 1 < len(versions) <= MAX_VERSIONS:
                choices += [(f"{number}@{one}", f"{file.name}, policy version {one}") for one in versions]
        return choices


def _joined(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Tasks that both sides have, what they lost most by first: `before`, `after` rewards, their `numbers_*`, and the `gain` in the
    mean reward."""

    def side(frame: pl.DataFrame, name: str) -> pl.DataFrame:
        made = frame.sort("rollout_index", "number").group_by("content", maintain_order=True)
        return made.agg(pl.col("reward").alias(name), pl.col("number").alias(f"numbers_{name}"))

    joined = side(before, "before").join(side(after, "after"), on="content", maintain_order="left")
    gain = pl.col("after").list.mean() - pl.col("before").list.mean()
    return joined.with_columns(gain=gain.round(12)).sort("gain", maintain_order=True)


def _group_number(shown: FileShown, told: Mapping[str, Any]) -> int:
    group = shown.rows.frame.item(told["numbers_before"][0], "group")
    number = shown.rows.groups["group"].index_of(group)
    assert number is not None, "every row with a reward has a group"
    return number


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, str | bool) else or_dash(value)
