"""Rows for NeMo RL's BinaryPreferenceDataset: {"prompt", "chosen", "rejected"}, three strings; the prompt may be messages."""

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.chat import chat_messages
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.format import Format, RowOptions
from gym_bridge.transforms.texts import answer_of, prompt_text


def dpo_side(rollout: RolloutView, options: RowOptions) -> Row | None:
    """Prompt and answer of one side of a pair. None when the rollout has no such answer."""
    answer = answer_of(rollout, options)
    if answer is None:
        return None
    return {"prompt": chat_messages(rollout.context) if options.prompt == "messages" else prompt_text(rollout), "answer": answer}


def dpo_row(chosen: Row, rejected: Row) -> Row:
    """The pair; both sides have one prompt."""
    return {"prompt": chosen["prompt"], "chosen": chosen["answer"], "rejected": rejected["answer"]}


DPO = Format(row=dpo_side, unit="pair", pair=dpo_row, joins_prompts=True, heeds=frozenset({"flatten", "prompt"}))
