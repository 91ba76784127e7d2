"""What a recipe's run came to, read from the files of its stages: report.json, report.md, report.html."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ConfigDict, Field

from gym_bridge.config import StrictModel
from gym_bridge.errors import UNFIT
from gym_bridge.evaluation.reward_check import RewardCheck
from gym_bridge.evaluation.suite_report import SuiteReport
from gym_bridge.evaluation.summary import side_by_side
from gym_bridge.evaluation.telling import Cells, aligned, markdown_table
from gym_bridge.io.charts import Curve, Line
from gym_bridge.io.collection_manifest import CollectionManifest
from gym_bridge.io.html_report import Charts, Notes, Section, Table, render_sections
from gym_bridge.io.jsonl import read_jsonl, written_aside
from gym_bridge.io.rollout_log import sibling
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.recipes.following import NextCommand, next_commands
from gym_bridge.recipes.planning import Plan, Stage
from gym_bridge.schemas.rollouts import Ledger

CURVES = {
    "sft": ("loss", "validation/*/loss"),
    "dpo": ("accuracy", "margin", "kl", "validation/*/accuracy"),
    "rm": ("loss", "accuracy", "validation/*/loss", "validation/*/accuracy"),
    "grpo": (
        "reward",
        "reward_std",
        "validation/*/reward",
        "kl",
        "entropy",
        "completion_tokens",
        "num_groups_without_signal",
        "gap",
        "reward_component/*",
        "reward/*",
    ),
}
"""What is told of a training, by its verb, where it has it; * stands for a name of the run's own."""
TOGETHER = {"reward_component/": "parts of the reward", "reward/": "reward by environment"}
"""Beginnings of metrics that are lines of one chart, and its title."""


class StageReport(StrictModel):
    """A stage whose command has ended."""

    stage: str
    command: str
    seconds: float
    """With those of the calls that it went on with."""
    memory_gib: float
    code: int = 0
    read: dict[str, str] = Field(default={})
    """By path the digest of each file and model that it read outside of the run's directory."""

    @property
    def done(self) -> bool:
        """Whether the command came to its end, were it a gate's no."""
        return self.code in (0, UNFIT)

    def after(self, before: "StageReport | None") -> "StageReport":
        """This end of a command, with what the call before cost where it goes on with it."""
        if before is None or before.done or before.command != self.command:
            return self
        memory = max(before.memory_gib, self.memory_gib)
        return self.model_copy(update={"seconds": before.seconds + self.seconds, "memory_gib": memory})


class TrainingReport(StrictModel):
    """A training in numbers."""

    verb: str
    steps: int
    metrics: dict[str, tuple[tuple[int, float], ...]]
    """By name: step and value."""

    def curves(self, title: str) -> list[Curve]:
        """A chart for each metric; parts of the reward are in one, and environments."""
        apart = {key: points for key, points in self.metrics.items() if not key.startswith(tuple(TOGETHER))}
        found = [Curve(f"{title}: {key}", key, points) for key, points in apart.items()]
        for beginning, told in TOGETHER.items():
            lines = [(key.removeprefix(beginning), points) for key, points in self.metrics.items() if key.startswith(beginning)]
            for name, points in lines[:1]:
                others = [Line(*one) for one in lines[1:]]
                found.append(Curve(f"{title}: {told}", "mean", points, name=name, others=others))
        return found

    def lines(self) -> Cells:
        """A line for each metric: its first and its last value."""
        return [(name, _number(points[0][1]), _number(points[-1][1])) for name, points in self.metrics.items()]


class RecipeReport(StrictModel):
    """A run of a recipe."""

    model_config = ConfigDict(ser_json_inf_nan="strings", allow_inf_nan=True)

    recipe: str
    config: str
    output: str
    notes: tuple[str, ...]
    stages: tuple[StageReport, ...]
    checks: dict[str, RewardCheck]
    trainings: dict[str, TrainingReport]
    suites: dict[str, SuiteReport]
    collections: dict[str, Ledger] = Field(default={})
    """By stage how the rollouts that were asked for ended."""
    next: tuple[NextCommand, ...] = ()
    """What goes on with what this run left."""

    @property
    def regressions(self) -> list[str]:
        """A sentence for each policy that may have lost more than its suite allows."""
        return [told for one in self.suites.values() for told in one.regressions]

    def to_text(self) -> str:
        """For a terminal."""
        parts = [aligned([STAGE_HEADER, *self._stage_lines()])]
        parts += [aligned(self._collected())] if self.collections else []
        parts += [f"{name}\n" + aligned([METRIC_HEADER, *one.lines()]) for name, one in self.trainings.items() if one.metrics]
        parts += [f"{name}\n{one.to_text()}" for name, one in self.suites.items()]
        parts += ["next\n" + "\n".join(f"# {one.when}\n{one.command}" for one in self.next)] if self.next else []
        return "\n\n".join([*parts, *self.notes])

    def to_markdown(self) -> str:
        """For a page of docs."""
        parts = [f"# {self._title()}", *(f"- {one}" for one in self.notes), markdown_table(STAGE_HEADER, self._stage_lines())]
        parts += ["```bash\n" + "\n".join(one.command for one in self.stages) + "\n```"]
        parts += [markdown_table(COLLECTION_HEADER, self._collected())] if self.collections else []
        for name, check in self.checks.items():
            parts += [
                f"## {name}",
                "\n".join(f"- {'ok' if one.ok else 'broken'}: {one.name}: {one.told}" for one in check.findings),
            ]
        for name, training in self.trainings.items():
            parts += [f"## {name}: {training.steps} steps", markdown_table(METRIC_HEADER, training.lines())]
        for name, suite in self.suites.items():
            parts += [f"## {name}", suite.to_markdown().replace("## ", "### ")]
        parts += ["## Next", *(f"- {one.when}: `{one.command}`" for one in self.next)] if self.next else []
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """One page that opens from disk."""
        return render_sections(self._title(), self.output, list(self._sections()))

    def _sections(self) -> Iterator[Section]:
        yield Notes("What was found", [*self.notes, *self._gains()])
        for name, suite in self.suites.items():
            for task_set, one in suite.sets.items():
                lines = side_by_side([*one.policies.values()])
                yield Table(f"{name}: {task_set}", ("", *one.policies), lines)
        for name, check in self.checks.items():
            lines = [(one.name, "ok" if one.ok else "broken", one.told) for one in check.findings]
            yield Table(name, ("", "", "found"), lines)
        for name, training in self.trainings.items():
            yield Charts(training.curves(name))
        yield Table("Stages", STAGE_HEADER, self._stage_lines())
        if self.collections:
            yield Table("Rollouts", COLLECTION_HEADER, self._collected())
        yield Notes("Commands", [one.command for one in self.stages])
        yield Notes("Next", [f"{one.when}: {one.command}" for one in self.next])

    def _gains(self) -> Iterator[str]:
        for name, suite in self.suites.items():
            for task_set, one in suite.sets.items():
                for policy, gains in one.sentences().items():
                    yield f"{name}, {task_set}: {policy} against {suite.baseline}, {'; '.join(gains)}"

    def _collected(self) -> list[tuple[str, ...]]:
        return [(name, one.describe()) for name, one in self.collections.items()]

    def _stage_lines(self) -> list[tuple[str, ...]]:
        return [(one.stage, f"{one.seconds:.0f}", f"{one.memory_gib:.2f}", str(one.code)) for one in self.stages]

    def _title(self) -> str:
        return f"recipe {self.recipe}, {self.config}"


REPORTS = ("json", "md", "html")
"""Suffixes of the report's files."""
STAGE_HEADER = ("stage", "seconds", "GiB", "exit code")
METRIC_HEADER = ("metric", "first", "last")
COLLECTION_HEADER = ("rollouts of", "how they ended")


def write_report(
    plan: Plan, ended: Sequence[tuple[Stage, StageReport]], *, notes: Sequence[str], last_gain: int | None = None
) -> RecipeReport:
    """The report of the stages that have ended, written to the recipe's directory; `last_gain` as of `next_commands`."""
    stages = [stage for stage, _ in ended]
    trainings = {one.name: _training(one) for one in _of(stages, "train")}
    collections = {one.name: ledger for one in _of(stages, "collect") if (ledger := _ledger(_leaf(one))) is not None}
    report = RecipeReport(
        recipe=plan.recipe.manifest.step.id,
        config=plan.config,
        output=str(plan.output),
        notes=(*notes, *_shortcomings(collections, trainings)),
        stages=tuple(one for _, one in ended),
        checks={one.name: RewardCheck.model_validate_json(_leaf(one).read_bytes()) for one in _of(stages, "check-reward")},
        trainings=trainings,
        suites={one.name: SuiteReport.model_validate_json(_leaf(one).read_bytes()) for one in _of(stages, "eval")},
        collections=collections,
        next=next_commands(plan, last_gain=last_gain),
    )
    texts = (report.model_dump_json(indent=2), report.to_markdown(), report.to_html())
    for suffix, text in zip(REPORTS, texts, strict=True):
        with written_aside(plan.output / f"report.{suffix}") as file:
            file.write(text.encode())
    return report


def _shortcomings(collections: Mapping[str, Ledger], trainings: Mapping[str, TrainingReport]) -> Iterator[str]:
    """Sentences on what is less than was asked for."""
    for name, one in collections.items():
        if one.failed:
            yield f"{name}: {sum(one.failed.values())} of {one.requested} rollouts failed; what follows goes by the others"
        if one.not_attempted:
            yield f"{name}: {one.not_attempted} of {one.requested} rollouts were not attempted, as a budget ended"
    for name, training in trainings.items():
        if training.verb == "grpo" and training.steps and "kl" not in training.metrics:
            yield f"{name}: no KL was measured; algorithm.beta above 0 holds a reference to measure it by"


def _ledger(rollouts: Path) -> Ledger | None:
    """How the rollouts of a collection ended; None where it does not say."""
    manifest = CollectionManifest(sibling(rollouts, "_manifest.json")).read() or {}
    return Ledger(**manifest["ledger"]) if "ledger" in manifest else None


def _of(stages: Sequence[Stage], verb: str) -> list[Stage]:
    return [one for one in stages if one.command.argv[:1] == (verb,)]


def _leaf(stage: Stage) -> Path:
    return stage.command.leaves[0]


def _training(stage: Stage) -> TrainingReport:
    verb = stage.command.argv[1]
    rows = [row for _, row in read_jsonl(RunDirectory(_leaf(stage).parent).metrics)]
    known = sorted({key for row in rows for key in row})
    names = [key for pattern in CURVES[verb] for key in fnmatch.filter(known, pattern)]
    found = {name: tuple((row["step"], float(row[name])) for row in rows if name in row) for name in names}
    steps = max((row["step"] for row in rows), default=0)
    return TrainingReport(verb=verb, steps=steps, metrics={name: points for name, points in found.items() if points})


def _number(value: float) -> str:
    return f"{value:.4g}"
