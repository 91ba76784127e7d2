"""Rows for NeMo RL's ResponseDataset: {"input", "output"}, two strings."""

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.format import Format, RowOptions
from gym_bridge.transforms.texts import answer_of, prompt_text


def response_row(rollout: RolloutView, options: RowOptions) -> Row | None:
    """The task's prompt and the answer, as text. None when the rollout has no such answer."""
    answer = answer_of(rollout, options)
    return None if answer is None else {"input": prompt_text(rollout), "output": answer}


RESPONSE = Format(row=response_row, min_reward=0.9, joins_prompts=True, heeds=frozenset({"flatten"}))
