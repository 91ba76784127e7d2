"""Rows and groups as tables show them."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from gym_bridge.errors import DataError
from gym_bridge.io.charts import number_text
from gym_bridge.io.rollout_reader import RolloutView, view_row
from gym_bridge.schemas.rollouts import Ledger, Row
from gym_bridge.viewer.conversation import Entry, asked, conversation_of, last_words
from gym_bridge.viewer.links import Links
from gym_bridge.viewer.outcomes import OUTCOMES
from gym_bridge.viewer.rollout_file import RolloutFile, Rows
from gym_bridge.viewer.shown import Cut, cut
from gym_bridge.viewer.templating import seconds

REWARD_CLASSES = 5
MAX_CHIPS = 64
"""Siblings that a table of groups shows."""
LEDGER_CLASSES = {"completed": "ok", "truncated": "cut", "not attempted": "idle"}
Line = dict[str, Any]


class FileShown:
    """One rollouts file, as tables show it."""

    def __init__(self, file: RolloutFile, rows: Rows, number: int, links: Links):
        """`number` is the file's in the library."""
        self.file, self.rows, self.number, self.links = file, rows, number, links
        low, high = rows.frame["reward"].min(), rows.frame["reward"].max()
        self._low = float(low) if isinstance(low, int | float) else 0.0
        self._high = float(high) if isinstance(high, int | float) else 0.0

    def view(self, number: int) -> tuple[Row, RolloutView | None]:
        """A row with its view; None where it cannot be read."""
        try:
            row = self.file.row(self.rows, number)
            return row, view_row(row)
        except DataError:
            return {}, None

    def rollout(self, told: Line, *, query: dict[str, str] | None = None) -> Line:
        """A line of a table, or the head of a page, of a row of the frame."""
        place = self.rows.place(told["number"])
        view = self.view(told["number"])[1]
        return {
            **told,
            "place": place,
            "name": self.name(told),
            "href": self.links.rollout(self.number, place, query),
            "class": self.reward_class(told),
            "reward_text": reward_text(told),
            "says": last_words(view) if view is not None else "",
        }

    def name(self, told: Line) -> str:
        """What a rollout is called: its task and its index, else its line."""
        if told["task_index"] is None or told["rollout_index"] is None:
            return f"line {self.rows.place(told['number'])}"
        again = f", attempt {told['attempt'] + 1}" if told["outcome"] in ("failed", "retried") and told["attempt"] else ""
        return f"{told['task_index']}-{told['rollout_index']}{again}"

    def reward_class(self, told: Line) -> str:
        """The colour of a reward: r0 is the file's least, r4 its highest."""
        if told["reward"] is None:
            return "none"
        if self._high <= self._low:
            return f"r{REWARD_CLASSES - 1 if told['reward'] > 0 else 0}"
        share = (told["reward"] / 2 - self._low / 2) / (
            self._high / 2 - self._low / 2
        )  # of halves, whose difference no float exceeds
        return f"r{round((REWARD_CLASSES - 1) * min(1.0, max(0.0, share)))}"

    def chip(self, told: Line) -> Line:
        """A rollout in a few characters."""
        place = self.rows.place(told["number"])
        words = f"rollout {self.name(told)}: {reward_text(told)}, {told['stop_reason'] or told['failure'] or told['outcome']}"
        return {"text": reward_text(told), "class": self.reward_class(told), "words": words} | {
            "href": self.links.rollout(self.number, place)
        }

    def groups(self, groups: pl.DataFrame) -> list[Line]:
        """Lines of a table of groups."""
        return [self.group(one) for one in groups.iter_rows(named=True)]

    def group(self, told: Line) -> Line:
        """A line of a table of groups."""
        numbers = told["numbers"][:MAX_CHIPS]
        lines = self.rows.frame[numbers].iter_rows(named=True)
        view = self.view(told["first"])[1]
        return {
            "name": group_name(told),
            "href": self.links.group(self.number, self.rows.place(told["first"])),
            "version": told["version"],
            "chips": [self.chip(one) for one in lines],
            "num_more": len(told["numbers"]) - len(numbers),
            "mean": told["mean_reward"],
            "spread": told["spread"],
            "signal": told["signal"],
            "why": why_dead(told),
            "asked": asked(view) if view is not None else "",
        }

    def entries(self, view: RolloutView | None, *, whole: bool = False) -> list[Line]:
        """The pieces of a conversation, long ones cut."""
        return [shown_entry(one, whole=whole) for one in conversation_of(view)] if view is not None else []

    def facts(self, told: Line, row: Row) -> list[tuple[str, object]]:
        """What is worth knowing of a rollout, in words."""
        found: list[tuple[str, object]] = [
            (word, number_text(told[name]) if isinstance(told[name], int | float) else told[name])
            for name, word in FACTS.items()
            if told[name] is not None and told[name] is not False
        ]
        components = row.get("reward_components")
        for name, value in components.items() if isinstance(components, dict) else ():
            found.append((f"reward: {name}", value))
        return found + _timings(row)


FACTS = {
    "reward": "reward",
    "outcome": "outcome",
    "stop_reason": "stop reason",
    "masked": "masked",
    "policy_version": "policy version",
    "model": "model",
    "agent": "agent",
    "num_turns": "turns",
    "num_tool_calls": "tool calls",
    "num_tool_errors": "failed tool calls",
    "num_input_tokens": "prompt tokens",
    "num_output_tokens": "sampled tokens",
    "attempt": "attempts before",
}


def shown_entry(entry: Entry, *, whole: bool = False) -> Line:
    """An entry with its text, or the beginning of it."""
    return {"entry": entry, "cut": cut(entry.text, whole=whole)}


def shown_text(text: str, *, whole: bool = False) -> dict[str, Cut]:
    """A text as `parts.text` takes it."""
    return {"cut": cut(text, whole=whole)}


def reward_text(told: Line) -> str:
    """The reward, or why there is none."""
    if told["reward"] is not None:
        return number_text(told["reward"])
    return {"failed": "✕", "retried": "↻", "unreadable": "?"}.get(told["outcome"], "–")


def or_dash(value: float | None) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else number_text(value)


def group_name(told: Line) -> str:
    """What a group is called."""
    return "a task without an index" if told["task_index"] is None else f"task {told['task_index']}"


def why_dead(told: Line) -> str:
    """Why nothing of a group trains."""
    if not told["num_rollouts"]:
        return "dead: none has a reward"
    if told["num_rollouts"] == 1:
        return "dead: one rollout with a reward"
    return f"dead: all have {number_text(told['max_reward'])}"


def ledger_shown(ledger: Ledger, hrefs: dict[str, str | None], *, requested: int | None, num_unreadable: int) -> Line:
    """The ledger as a bar and a table, whose parts add up to what was requested, or else to what the file holds."""
    parts = [("completed", ledger.completed), ("truncated", ledger.truncated)]
    parts += [(name, count) for name, count in sorted(ledger.failed.items(), key=lambda one: (-one[1], one[0]))]
    parts += [("not attempted", ledger.not_attempted)]
    total, start, shown = max(1, ledger.requested), 0.0, []
    for name, count in parts:
        if count:
            width = 100 * count / total
            shown.append(
                {"name": name, "count": count, "share": f"{width:.1f} %", "start": f"{start:.3f}", "width": f"{width:.3f}"}
                | {"class": LEDGER_CLASSES.get(name, "fail"), "about": _about(name), "href": hrefs.get(name)}
            )
            start += width
    return {
        "parts": shown,
        "requested": ledger.requested,
        "sentence": ledger.describe(),
        "requested_word": "requested" if requested == ledger.requested else "in the file",
        "note": _ledger_note(ledger, requested),
        "num_unreadable": num_unreadable,
        "unreadable_href": hrefs.get("unreadable"),
    }


def _ledger_note(ledger: Ledger, requested: int | None) -> str:
    if requested is None:
        return "How many were requested is not told beside the file."
    more = ledger.requested - requested
    return f"{requested:,} were requested: {more:,} rows are more than that; a rollout may stand twice." if more else ""


def _about(name: str) -> str:
    if name in OUTCOMES:
        return OUTCOMES[name]
    return "It was asked for and has no row." if name == "not attempted" else "It has no reward: this went wrong."


def _timings(row: Row) -> list[tuple[str, object]]:
    ours = row.get("gym_bridge")
    timings: Any = ours.get("timings_s") if isinstance(ours, dict) else None
    pairs: Iterable[tuple[str, Any]] = timings.items() if isinstance(timings, dict) else ()
    return [(f"{name} took", seconds(float(value))) for name, value in pairs if isinstance(value, int | float)]
