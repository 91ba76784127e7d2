"""A recipe's run as a part of a page of docs/results: what was gained, stage by stage, what it cost, how the reward was judged.

    python -m benchmarks.recipe_page runs/pipeline --svg docs/results/pipeline.svg

Each policy is compared with the one before it on the same held-out tasks, as `eval compare` does. The picture, which needs
matplotlib, shows the mean reward of the batches over the steps before, and the held-out rewards as they are.
"""

import argparse
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.learning_curves import draw_lines, moving_mean
from gym_bridge import compare
from gym_bridge.evaluation.suite_report import SetReport
from gym_bridge.evaluation.telling import markdown_table, number_and_interval
from gym_bridge.recipes.report import RecipeReport, StageReport, TrainingReport

WORTH_TELLING_S = 5.0
MEAN_OVER = 5
"""Steps."""


def page(run: Path) -> str:
    """The parts of a page, in Markdown."""
    report = RecipeReport.model_validate_json((run / "report.json").read_bytes())
    parts = []
    for stage, suite in report.suites.items():
        (command,) = [one.command for one in report.stages if one.stage == stage]
        (output,) = [word.removeprefix("output=") for word in shlex.split(command) if word.startswith("output=")]
        played = run / Path(output).relative_to(report.output)
        parts += [held_out(name, one, played) for name, one in suite.sets.items()]
    parts.append(cost(report.stages))
    for name, check in report.checks.items():
        found = [f"- {'ok' if one.ok else '**broken**'}: {one.told}" for one in check.findings]
        parts.append("\n".join([f"`{name}`:", "", *found]))
    for name, training in report.trainings.items():
        parts.append(f"`{name}`, {training.steps} steps:\n\n" + markdown_table(("metric", "first", "last"), training.lines()))
    return "\n\n".join(parts)


def held_out(name: str, found: SetReport, played: Path) -> str:
    """A line for each policy, and for each part and category of the tasks where there are several."""
    files = {policy: played / policy / f"{name}.jsonl" for policy in found.policies}
    against = {after: compare(files[before], files[after]) for before, after in pairwise(files)}
    lines = []
    for policy, summary in found.policies.items():
        paired = against.get(policy)
        difference, tasks = ("", "") if paired is None else (one.partition(": ")[2] for one in paired.sentences())
        lines.append((policy, number_and_interval(summary.reward, ".3f"), difference, tasks))
        for told in (summary.by_category, summary.by_component):
            lines += [(f"{policy}: {part}", number_and_interval(one, ".3f"), "", "") for part, one in told.items() if len(told) > 1]
    first = next(iter(found.policies.values()))
    header = (name, f"reward, {first.num_tasks} tasks, {first.num_rollouts} rollouts", "against the one before", "tasks")
    return markdown_table(header, lines).replace("(95 % ", "(")  # which the page says once


def cost(stages: tuple[StageReport, ...]) -> str:
    """A line for each stage that took its time."""
    told = [(one.stage, f"{one.seconds:.0f}", f"{one.memory_gib:.1f}") for one in stages if one.seconds >= WORTH_TELLING_S]
    return markdown_table(("stage", "seconds", "GiB at most"), told)


def curves(training: TrainingReport) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Rewards of the batches, whole and by environment or part, and held out."""
    for name, points in training.metrics.items():
        values = [value for _, value in points]
        if name == "reward" or name.startswith(("reward/", "reward_component/")):
            yield name, list(zip([float(step) for step, _ in points], moving_mean(values, MEAN_OVER), strict=True))
        elif name.startswith("validation/") and name.endswith("/reward"):
            yield f"held out: {name.split('/')[1]}", [(float(step), value) for step, value in points]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args(argv)
    print(page(options.run))
    if options.svg is not None:
        report = RecipeReport.model_validate_json((options.run / "report.json").read_bytes())
        online = [one for one in report.trainings.values() if one.verb == "grpo"]
        lines = dict(curves(online[-1]))
        draw_lines(options.svg, lines, x_label="step", y_label=f"reward; of batches the mean over {MEAN_OVER} steps")


if __name__ == "__main__":
    main()
