"""Rows for NeMo RL's ResponseDataset: {"input", "output"}, two strings."""

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.chat import answer_text, chat_messages
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.format import Format


def response_row(rollout: RolloutView) -> Row | None:
    """The task's prompt as text, its messages joined by a blank line, and the text of the final answer.

    Turns between the two are left out. None when the last item is no assistant's text.
    """
    answer = answer_text(rollout.output[-1]) if rollout.output else None
    if not answer or not answer.strip():
        return None
    prompt = [message["content"] for message in chat_messages(rollout.context, arguments="string")]
    return {"input": "\n\n".join(filter(None, prompt)), "output": answer}


RESPONSE = Format(row=response_row)
