"""Rows for NeMo RL's ResponseDataset in online GRPO: {"input", "output"}, where the output is the ground truth of the task."""

from typing import Any

import msgspec

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.format import Format, RowOptions
from gym_bridge.transforms.texts import answer_of, final_answer, prompt_text

OUTPUT_FIELD = "expected_answer"


def grpo_row(rollout: RolloutView, options: RowOptions) -> Row | None:
    """The prompt and the task's reference; without a reference the rollout's own answer, if it is a verified one in words.

    None where there is neither. A reference that is no text is written as JSON.
    """
    truth = _reference(rollout.row, options.output_field or OUTPUT_FIELD)
    verified = rollout.reward is not None and rollout.reward >= options.verified_reward and not rollout.truncated
    if truth is None and verified and final_answer(rollout) is not None:
        truth = answer_of(rollout, options)
    return None if truth is None else {"input": prompt_text(rollout), "output": truth}


def _reference(row: Row, path: str) -> str | None:
    value: Any = row
    for name in path.split(".") if path not in row else [path]:
        value = value.get(name) if isinstance(value, dict) else None
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


GRPO = Format(
    row=grpo_row,
    unit="task",
    lacks="no_truth",
    takes_truncated=True,
    joins_prompts=True,
    heeds=frozenset({"flatten", "output_field"}),
)
