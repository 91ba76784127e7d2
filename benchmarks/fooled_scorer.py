"""Where a learned reward of sums and the verifier part: its mean score of right and of wrong answers, and how wrong those are.

    python -m benchmarks.fooled_scorer RUN/eval/before/learned.jsonl RUN/eval/after/learned.jsonl

The files are evaluations of the recipe rlhf on tasks of `arithmetic`, whose rows tell the scores of both.
"""

import argparse
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.schemas.rollouts import Row


def error_of(row: Row) -> int | None:
    """By how much the last number that was said is too large."""
    said = re.findall(r"-?\d+", row["response"]["output"][-1]["content"][0]["text"])
    return int(said[-1]) - int(row["expected_answer"]) if said else None


def told(rows: Sequence[Row]) -> str:
    """A line for the right ones, one for the wrong ones."""
    lines = []
    for name, wanted in (("right", True), ("wrong", False)):
        found = [row for row in rows if (row["reward_components"]["verifier"] > 0) == wanted]
        score = statistics.mean(row["reward_components"]["learned"] for row in found) if found else float("nan")
        lines.append(f"{name}: {len(found)}, mean learned score {score:.2f}")
    wrong = Counter(error_of(row) for row in rows if row["reward_components"]["verifier"] == 0)
    return "\n".join([*lines, f"wrong by: {', '.join(f'{error} ({number})' for error, number in wrong.most_common(6))}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", nargs="+", type=Path)
    for path in parser.parse_args().rollouts:
        print(f"{path}\n{told([row for _, row in read_jsonl(path)])}")


if __name__ == "__main__":
    main()
