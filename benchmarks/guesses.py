"""How games of `number_game` were played: guesses that the hints before had not ruled out, and games begun near the middle.

python -m benchmarks.guesses RUN/eval/sft/heldout.jsonl RUN/eval/rlvr/heldout.jsonl
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.schemas.rollouts import Row

NEAR = 2


def guesses_of(row: Row) -> list[int]:
    """The numbers that the policy said, a game long."""
    said = (one["content"][0]["text"] for one in row["response"]["output"] if one.get("role") == "assistant")
    return [int(number) for text in said for number in re.findall(r"\d+", text)[:1]]


def played(rows: Iterable[Row]) -> tuple[float, float, float]:
    """Share of games won, of guesses that were possible, of games whose first guess is within NEAR of the middle."""
    games = won = guesses = possible = near = 0
    for row in rows:
        low, high, target = row["low"], row["high"], row["target"]
        said = guesses_of(row)
        games, won, guesses = games + 1, won + (row["reward"] > 0), guesses + len(said)
        near += bool(said) and abs(said[0] - (low + high) // 2) <= NEAR
        for guess in said:
            possible += low <= guess <= high
            low, high = (max(low, guess + 1), high) if guess < target else (low, min(high, guess - 1))
    return won / games, possible / guesses, near / games


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", nargs="+", type=Path)
    for path in parser.parse_args().rollouts:
        won, possible, near = played(row for _, row in read_jsonl(path))
        print(f"{path}: won {won:.3f}, possible guesses {possible:.3f}, begun near the middle {near:.3f}")


if __name__ == "__main__":
    main()
