"""What a quickstart came to, read from its files: the table, the verdict, the HTML page."""

from dataclasses import dataclass
from pathlib import Path

import orjson

from gym_bridge.evaluation.estimates import Estimate
from gym_bridge.evaluation.summary import compare
from gym_bridge.io.digests import digest_weights
from gym_bridge.io.html_report import Curve, Table, render_page
from gym_bridge.io.jsonl import read_jsonl, written_aside
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.recipes.quickstart.job import Progress, Quickstart
from gym_bridge.schemas.rollouts import Row

HEADER = ("stage", "seconds", "amount", "held-out reward (95 %)", "dropped", "weights before", "weights after")
CURVES = {
    "sft": (("loss", "loss, nats a token"),),
    "grpo": (("reward", "mean reward of the step"), ("entropy", "entropy, nats a token")),
    "nemo_gym_sft": (("loss", "loss, nats a token"),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """Tells better answers from a better format."""

    readable: float
    """Share of replies in which the verifier found one clear number."""
    right: float
    """Share of right ones among the readable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the policy got better, told from the paired held-out tasks."""

    whole: Estimate
    """Reward after GRPO less reward before training."""
    grpo: Estimate
    """Reward after GRPO less reward after SFT."""
    before: Replies
    after: Replies
    control: bool

    @property
    def improved(self) -> bool:
        """The whole change has its interval above 0, and GRPO's own change is positive."""
        return self.whole.low > 0 and self.grpo.mean > 0

    @property
    def as_expected(self) -> bool:
        """A run must improve; a control, whose rewards were shuffled, must not."""
        return self.improved != self.control

    def sentences(self) -> list[str]:
        """The verdict in words."""
        told = [
            f"held-out reward, after GRPO less before: {_signed(self.whole)}",
            f"GRPO's own change: {_signed(self.grpo)}",
            f"replies with one clear number: {self.before.readable:.1%} before, {self.after.readable:.1%} after",
            f"right ones among those: {self.before.right:.1%} before, {self.after.right:.1%} after",
        ]
        if self.control:
            outcome = (
                "improved, although its rewards were shuffled: something leaks" if self.improved else "did not improve, as it must"
            )
            return [*told, f"This was the control: the training server gave shuffled rewards. The policy {outcome}."]
        outcome = "The policy improved." if self.improved else "No improvement beyond chance was seen."
        return [*told, outcome]


def verdict(run: Path, *, control: bool) -> Verdict:
    """Compare the held-out rollouts before, between and after."""
    before, after_sft, after_grpo = (_rows(run / f"eval_{name}.jsonl") for name in ("before", "after_sft", "after_grpo"))
    return Verdict(
        whole=compare(before, after_grpo).difference,
        grpo=compare(after_sft, after_grpo).difference,
        before=_replies(before),
        after=_replies(after_grpo),
        control=control,
    )


def table(quickstart: Quickstart) -> Table:
    """One line a stage that did something worth telling."""
    rows = [_line(quickstart.directory, name, seconds) for name, seconds in quickstart.progress.seconds.items()]
    return Table("Stages", HEADER, [row for row in rows if row is not None])


def write_html(quickstart: Quickstart, outcome: Verdict, stages: Table) -> Path:
    """`report.html` in the run directory; returns its path."""
    run, progress = quickstart.directory, quickstart.progress
    curves = [_held_out(run)]
    for name, metrics in CURVES.items():
        rows = _rows(run / name / "metrics.jsonl")
        curves += [Curve(f"{name}: {label}", label, [(row["step"], row[key]) for row in rows]) for key, label in metrics]
    page = render_page(f"gym-bridge quickstart {run.name}", _subtitle(progress), [stages], curves, outcome.sentences())
    path = run / "report.html"
    with written_aside(path) as file:
        file.write(page.encode())
    return path


def tree(directory: Path, *, depth: int = 2) -> list[str]:
    """The run directory's files, `depth` levels deep; token stores are not opened."""
    lines = [f"{directory}/"]
    for path in sorted(directory.rglob("*")):
        level = len(path.relative_to(directory).parts)
        if level <= depth and path.parent.suffix != ".tokens":
            lines.append("  " * level + path.name + ("/" if path.is_dir() else ""))
    return lines


def _replies(rows: list[Row]) -> Replies:
    readable = [row for row in rows if row["extracted_answer"] is not None]
    right = sum(row["reward"] for row in readable) / len(readable) if readable else 0.0
    return Replies(readable=len(readable) / len(rows), right=right)


def _subtitle(progress: Progress) -> str:
    kind = "control with shuffled rewards" if progress.control else "SmolLM2-135M-Instruct on two-digit sums"
    return f"{kind}, seed {progress.seed}, {sum(progress.seconds.values()):.0f} s"


def _line(run: Path, name: str, seconds: float) -> tuple[str | float, ...] | None:
    time = f"{seconds:.0f}"
    kind, _, what = name.partition(" ")
    if kind == "eval":
        summary = orjson.loads((run / f"eval_{what}_summary.json").read_bytes())
        estimate = summary["reward"]
        reward = f"{estimate['mean']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
        return name, time, f"{summary['num_rollouts']} rollouts", reward, f"{summary['num_failed']} failed", "", ""
    if kind == "train":
        training = RunDirectory(run / what)
        checkpoint = training.last_checkpoint()
        if checkpoint is None:
            return None
        before = orjson.loads((training.path / "manifest.json").read_bytes())["digests"]["model"]
        steps = f"{int(checkpoint.name.removeprefix('step_'))} steps"
        return name, time, steps, "", "", before[:8], digest_weights(checkpoint / "model")[:8]
    if "transform" in name and name != "tool transform":
        report = orjson.loads((run / f"{name.replace('transform ', '')}_report.json").read_bytes())
        dropped = ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items()) or "none"
        return name, time, f"{report['rows_out']} rows", "", dropped, "", ""
    if name in ("collect", "tool collect"):
        rows = _rows(run / ("rollouts.jsonl" if name == "collect" else "tool_rollouts.jsonl"))
        turns = sum(row["gym_bridge"]["num_turns"] > 1 for row in rows)
        return name, time, f"{len(rows)} rollouts" + (f", {turns} of several turns" if turns else ""), "", "", "", ""
    return None


def _held_out(run: Path) -> Curve:
    points = []
    for place, name in enumerate(("before", "after_sft", "after_grpo")):
        points.append((float(place), orjson.loads((run / f"eval_{name}_summary.json").read_bytes())["reward"]["mean"]))
    return Curve("held-out reward: before, after SFT, after GRPO", "mean reward", points, x_label="trainings done")


def _rows(path: Path) -> list[Row]:
    return [row for _, row in read_jsonl(path)]


def _signed(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} (95 % {estimate.low:+.3f} to {estimate.high:+.3f}, {estimate.num_tasks} tasks)"
