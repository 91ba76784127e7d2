"""All runs and files, and the curves of runs."""

import time
from collections.abc import Sequence
from typing import Any

from gym_bridge.config import validate
from gym_bridge.errors import ConfigError, GymBridgeError
from gym_bridge.schemas.checks import Check
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.settings import AlarmSettings
from gym_bridge.trainers.diagnosis import diagnose
from gym_bridge.viewer.curves import curve_sections, num_details
from gym_bridge.viewer.library import Run
from gym_bridge.viewer.site import Site
from gym_bridge.viewer.templating import seconds


class OverviewPages:
    """The pages that one begins with."""

    def __init__(self, site: Site):
        self._site = site

    def overview(self) -> str:
        """All runs and files, new ones too."""
        self._site.library.look()
        runs = [self._run_line(number, run) for number, run in enumerate(self._site.library.runs)]
        files = [self._file_line(number) for number in range(len(self._site.library.files))]
        return self._site.page("overview.html", "Runs and rollouts", runs=runs, files=files)

    def runs(self, numbers: Sequence[int], *, details: bool = False) -> str:
        """The curves of runs, in the same charts. Raises ConfigError for a run that is not there."""
        known, numbers = self._site.library.runs, list(dict.fromkeys(numbers))
        if not numbers or not all(0 <= number < len(known) for number in numbers):
            raise ConfigError("there is no such run here; tick one")
        runs = [known[number] for number in numbers]
        metrics = {run.name: run.metrics() for run in runs}
        count = num_details(metrics)
        return self._site.page(
            "runs.html",
            " and ".join(run.name for run in runs),
            [{"text": "curves", "href": None}],
            files=[
                {"number": one, "name": self._site.library.files[one].path.name}
                for run in runs
                for one in self._site.library.files_of(run)
            ],
            findings=_standing_out(runs[0], metrics[runs[0].name]) if len(runs) == 1 else [],
            sections=curve_sections(metrics, details=details),
            more={"count": count, "href": f"{self._site.links.runs(numbers)}&details=1"} if count and not details else None,
        )

    def _run_line(self, number: int, run: Run) -> dict[str, Any]:
        last: dict[str, Any] = {}
        for row in run.metrics():
            last |= {name: value for name, value in row.items() if name in ("step", "reward", "loss") and value is not None}
        return {"number": number, "name": run.name, "age": _age(run.changed_ns)} | {
            name: last.get(name) for name in ("step", "reward", "loss")
        }

    def _file_line(self, number: int) -> dict[str, Any]:
        file = self._site.file(number)
        line: dict[str, Any] = {"number": number, "name": file.name, "problem": None} | dict.fromkeys(
            ("rollouts", "tasks", "mean", "dead", "truncated", "failed", "age")
        )
        try:
            rows = file.look()
        except GymBridgeError as error:
            return line | {"problem": str(error)}
        ledger, unreadable = rows.ledger, int((rows.frame["outcome"] == "unreadable").sum())
        return line | {
            "problem": f"{unreadable:,} lines cannot be read" if unreadable else None,
            "rollouts": ledger.completed + ledger.truncated,
            "tasks": rows.frame["task"].drop_nulls().n_unique(),
            "mean": rows.frame["reward"].mean(),
            "dead": int((~rows.groups["signal"]).sum()),
            "truncated": ledger.truncated,
            "failed": sum(ledger.failed.values()),
            "age": _age(file.changed_ns),
        }


def _standing_out(run: Run, rows: Sequence[Row]) -> list[Check]:
    """What `doctor RUN` finds wrong."""
    trainer = run.settings().get("trainer")
    alarms = trainer.get("alarms") if isinstance(trainer, dict) else None
    return [check for check in diagnose(rows, validate(AlarmSettings, alarms or {})) if not check.ok]


def _age(changed_ns: int) -> str:
    return f"{seconds(max(0.0, time.time() - changed_ns / 1e9))} ago" if changed_ns else "–"
