"""What it costs to score the rollouts of GRPO's groups by a reward model, with and without sharing what they begin with.

    python -m benchmarks.reward_scores REWARD_MODEL ROLLOUTS --num-groups 8 --group-size 8

Both ways score the same conversations, in batches of the server's size, by turns; the first turn of each warms up.
"""

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.resource_servers.reward_model.app import Settings
from gym_bridge.resource_servers.reward_model.scorer import RewardScorer
from gym_bridge.schemas.chat import chat_messages
from gym_bridge.schemas.rollouts import TASK_INDEX


def conversations(scorer: RewardScorer, path: Path, num_groups: int, group_size: int) -> list[list[int]]:
    """Token ids of the rollouts of the first groups that are large enough."""
    groups: dict[int, list[list[int]]] = defaultdict(list)
    for _, row in read_jsonl(path):
        given = row["responses_create_params"]["input"]
        groups[row[TASK_INDEX]].append(scorer.token_ids(chat_messages([*given, *row["response"]["output"]]), []))
    whole = [one[:group_size] for one in groups.values() if len(one) >= group_size]
    return [ids for group in whole[:num_groups] for ids in group]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rollouts", type=Path)
    parser.add_argument("--num-groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    size = Settings(model=given.model).batch_size
    scorer = RewardScorer(given.model, device=given.device, dtype="float32", renderer=None)
    batch = conversations(scorer, given.rollouts, given.num_groups, given.group_size)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    scores: dict[bool, list[float]] = {}
    for _ in range(given.turns):
        for shares in seconds:
            scorer.shares_beginnings = shares
            started = time.perf_counter()
            scores[shares] = [score for first in range(0, len(batch), size) for score in scorer.scores(batch[first : first + size])]
            seconds[shares].append(time.perf_counter() - started)
    apart = max(abs(one - other) for one, other in zip(scores[True], scores[False], strict=True))
    shared, alone = (statistics.median(seconds[one][1:]) for one in (True, False))
    print(f"{len(batch)} conversations of {statistics.mean(map(len, batch)):.0f} tokens, batches of {size}")
    print(f"shared {shared:.2f} s, each by itself {alone:.2f} s: {alone / shared:.2f} times; scores apart by {apart:.1e} at most")


if __name__ == "__main__":
    main()
