"""Rows that teach a small model to judge as a verifier does: the judge server's question, and the verdict that a reward asks for.

    python -m benchmarks.judge_demonstrations ROLLOUTS... --output judge.jsonl --num-rows 600

Rollouts need a reward and their task's expected_answer. So made judges are for trying the way of a judged reward on a laptop.
"""

import argparse
import json
import random
from pathlib import Path

from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.resource_servers.base import Response
from gym_bridge.resource_servers.judge.app import Settings
from gym_bridge.resource_servers.judge.prompts import TEMPLATES, Case, Scale, messages, new_code
from gym_bridge.schemas.content import conversation_text
from gym_bridge.schemas.rollouts import Row


def demonstration(row: Row) -> Row:
    """A question in mode=reference, with the judge's default rubric, and the verdict for the rollout's reward, from 0 to 10."""
    given, code = Settings(model_url="", model="", mode="reference"), new_code()
    scale = Scale(lowest=given.lowest, highest=given.highest)
    case = Case(
        question=conversation_text(row["responses_create_params"]["input"]),
        rubric=given.rubric,
        reference=row["expected_answer"],
        candidates=(Response.model_validate(row["response"]).final_text,),
    )
    verdict = f"VERDICT {code}: {round(row['reward'] * scale.highest)}"
    return {"messages": [*messages(TEMPLATES["reference"], case, scale, code=code), {"role": "assistant", "content": verdict}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", nargs="+", type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--num-rows", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = [row for path in given.rollouts for _, row in read_jsonl(path)]
    drawn = random.Random(given.seed).sample(rows, min(given.num_rows, len(rows)))
    given.output.write_text("".join(json.dumps(demonstration(row)) + "\n" for row in drawn))
    print(f"{given.output}: {len(drawn)} rows of {len(rows)} rollouts, {sum(row['reward'] > 0 for row in drawn)} of them right")


if __name__ == "__main__":
    main()
