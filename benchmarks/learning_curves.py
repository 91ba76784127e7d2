"""What runs learnt, as a picture and as a table that can be read without them. Needs matplotlib.

    python -m benchmarks.learning_curves "seed 0=runs/a" "seed 1=runs/b" --svg reward.svg --csv metrics.csv

The picture shows the mean of a metric over the steps before, because a batch of few tasks is a noisy sample of them.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

from gym_bridge.io.jsonl import read_jsonl

COLUMNS = (
    *("reward", "reward_std", "solved", "num_groups_without_signal", "completion_tokens", "truncated", "num_turns"),
    *("num_tool_calls", "num_tool_errors", "loss", "grad_norm", "entropy", "kl", "gap", "gap_max", "kl_rollout_old"),
    *("ratio_min", "ratio_max", "num_trained_tokens", "num_sampled_tokens"),
    *("rollouts_s", "train_s", "push_s", "step_s", "peak_memory_gib"),
)


def steps(run: Path) -> list[dict[str, Any]]:
    """The metrics of the updates."""
    return [line for _, line in read_jsonl(run / "metrics.jsonl") if "loss" in line]


def moving_mean(values: list[float], width: int) -> list[float]:
    """Of each value and those before it, `width` in all; fewer at the beginning."""
    return [sum(part) / len(part) for end in range(1, len(values) + 1) if (part := values[max(0, end - width) : end])]


def write_table(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """A CSV line for each update of each run, with those columns that any of them has, rewards by environment and by part too."""
    told = {name for lines in runs.values() for line in lines for name in line}
    parts = sorted(name for name in told if name.startswith(("reward/", "reward_component/")))
    columns = [*(name for name in COLUMNS if name in told), *parts]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "step", *columns])
        for run, lines in runs.items():
            for line in lines:
                writer.writerow([run, line["step"], *(f"{line[name]:.6g}" if name in line else "" for name in columns)])


def draw(path: Path, runs: dict[str, list[dict[str, Any]]], *, metric: str, width: int) -> None:
    """An SVG with a line for each run."""
    lines = {}
    for run, told in runs.items():
        points = [(line["step"], line[metric]) for line in told if metric in line]
        lines[run] = list(zip([step for step, _ in points], moving_mean([value for _, value in points], width), strict=True))
    draw_lines(path, lines, x_label="step", y_label=metric if width == 1 else f"{metric}, mean over {width} steps")


def draw_lines(path: Path, lines: dict[str, list[tuple[float, float]]], *, x_label: str, y_label: str) -> None:
    """An SVG with these lines, those whose names begin with the same word in one colour."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": y_label, "font.family": "sans-serif"}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(map(_first_word, lines)))}
    own = len(colours) == 1
    for number, (name, points) in enumerate(lines.items()):
        colour = f"C{number}" if own else colours[_first_word(name)]
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1.5, color=colour)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _first_word(name: str) -> str:
    return name.partition(" ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--metric", default="reward")
    parser.add_argument("--mean-over", type=int, default=10, help="steps")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    runs = {name: steps(Path(path)) for name, _, path in (one.partition("=") for one in options.runs)}
    if options.svg is not None:
        draw(options.svg, runs, metric=options.metric, width=options.mean_over)
    if options.csv is not None:
        write_table(options.csv, runs)


if __name__ == "__main__":
    main()
