"""Where every rollout of a transform went, and what the file is good for: as JSON, and as a page to read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import polars as pl
from pydantic import Field, model_validator

from gym_bridge.config import StrictModel
from gym_bridge.io.jsonl import written_aside
from gym_bridge.transforms.plan import Plan
from gym_bridge.transforms.reasons import meaning_of
from gym_bridge.transforms.report_page import report_page
from gym_bridge.transforms.statistics import Statistics, make_statistics


@dataclass(slots=True, kw_only=True)
class Evidence:
    """What a run has seen and done."""

    rows_in: int = 0
    rows_used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    num_rows: Sequence[int] = (0,)
    """Rows of each output."""
    num_joined_prompts: int = 0
    """Rows whose prompt is one text of several messages."""
    index: pl.DataFrame | None = None
    """`transforms.index.SCHEMA`, when two passes or a report asked for it; its columns of statistics only for a report."""
    pairs: pl.DataFrame | None = None
    """The pairs that were written: `first` and `second` are row numbers of the index."""
    tools: Counter[str] = field(default_factory=Counter)
    """In how many rollouts each tool was called."""
    components: Counter[str] = field(default_factory=Counter)
    """In how many rollouts that count each part of `reward_components` is a number; gathered for a report alone."""


class TransformReport(StrictModel):
    """Where every rollout of a transform went: rows_in = rows_used + the sum of dropped."""

    rows_in: int
    """Lines read."""
    rows_used: int
    """Rollouts that are in the output; one in several pairs counts once."""
    rows_out: int
    """Rows written, to train and validation together."""
    dropped: dict[str, int]
    """Number of rollouts by the reason they are not in the output."""
    num_validation_rows: int | None = None
    """Rows of the validation file, where there is one."""
    num_joined_prompts: int = 0
    """Rows whose prompt is one text that several messages were joined to, a blank line between them."""
    min_reward: float | None = None
    """Rollouts below were dropped."""
    spooled: list[str] = Field(default_factory=list)
    """Inputs that were copied to a temporary file first: stdin, pipes, and what two passes cannot find their way in."""
    tasks_from_rollouts: list[str] = Field(default_factory=list)
    """Inputs without materialized inputs, so that their task rows are rollouts' rows, in which fields of a verifier may stand."""
    statistics: Statistics | None = None
    """What the rollouts are like; null when no report was asked for."""

    def describe(self) -> str:
        """What happened, in a few lines for a terminal."""
        split = ""
        if self.num_validation_rows is not None:
            split = f" ({self.rows_out - self.num_validation_rows:,} to train on, {self.num_validation_rows:,} for validation)"
        rows = f"{self.rows_out:,} {'row' if self.rows_out == 1 else 'rows'}"
        lines = [f"{rows}{split} from {self.rows_used:,} of {self.rows_in:,} rollouts"]
        width = max((len(f"{count:,}") for count in self.dropped.values()), default=0)
        longest = max(map(len, self.dropped), default=0)
        for reason, count in sorted(self.dropped.items(), key=lambda drop: (-drop[1], drop[0])):
            lines.append(f"  dropped {count:>{width},} {reason:<{longest}}  {meaning_of(reason)}")
        if self.num_joined_prompts:
            lines.append(f"prompts of several messages, joined by blank lines into one text: {self.num_joined_prompts:,}")
        if self.min_reward is not None:
            lines.append(f"--min-reward {self.min_reward:g} is in force; --min-reward none lifts it")
        if self.spooled:
            lines.append(f"copied to a temporary file first: {', '.join(self.spooled)}")
        if self.tasks_from_rollouts:
            beside = "without materialized inputs beside it, tasks are rows of rollouts, and fields that a verifier added stay"
            lines.append(f"{beside}: {', '.join(self.tasks_from_rollouts)}")
        return "\n".join(lines)

    @model_validator(mode="after")
    def _closes(self) -> Self:
        if self.rows_in != self.rows_used + sum(self.dropped.values()):
            raise ValueError(f"the report does not close: {self.rows_in} rows in, {self.rows_used} used, {self.dropped}")
        return self


def make_report(evidence: Evidence, plan: Plan, *, spooled: list[str]) -> TransformReport:
    """The report on a run."""
    statistics = None
    if plan.with_statistics and evidence.index is not None:
        index, pairs = evidence.index, evidence.pairs
        statistics = make_statistics(index, plan, pairs=pairs, tools=evidence.tools, components=evidence.components)
    return TransformReport(
        rows_in=evidence.rows_in,
        rows_used=evidence.rows_used,
        rows_out=sum(evidence.num_rows),
        dropped=dict(sorted(evidence.dropped.items())),
        num_validation_rows=evidence.num_rows[1] if plan.split is not None else None,
        num_joined_prompts=evidence.num_joined_prompts,
        min_reward=plan.min_reward,
        spooled=spooled,
        tasks_from_rollouts=_tasks_from_rollouts(plan),
        statistics=statistics,
    )


def _tasks_from_rollouts(plan: Plan) -> list[str]:
    if plan.format.task_line is None:
        return []
    return [str(path) for path, inputs in zip(plan.inputs, plan.task_inputs, strict=True) if inputs is None]


def write_report(report: TransformReport, path: Path) -> None:
    """Write the report as JSON to `path`, and as a page beside it, with the suffix .html.

    Raises ConfigError when the disk refuses.
    """
    page = report_page(report).encode()
    with written_aside(path) as file:
        file.write(report.model_dump_json(indent=2).encode() + b"\n")
    with written_aside(path.with_suffix(".html")) as file:
        file.write(page)
