"""Rows for NeMo RL's PreferenceDataset: a context and two completions ranked 0 and 1, all of them lists of chat messages.

{"context": [...], "completions": [{"rank": 0, "completion": [...]}, {"rank": 1, "completion": [...]}], "tools": [...]}
"""

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.chat import rollout_messages
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.format import Format, RowOptions
from gym_bridge.transforms.texts import cut_after_last_answer


def preference_side(rollout: RolloutView, options: RowOptions) -> Row | None:
    """The prompt's messages and those that followed, tool outputs among them, with the tools of the task.

    They end with the model's last text or tool call; None when the rollout has neither.
    """
    messages, num_prompt_messages = rollout_messages(
        rollout.context, rollout.output or (), arguments=options.arguments or "object", media="keep"
    )
    if not cut_after_last_answer(messages, num_prompt_messages):
        return None
    return {
        "prompt": messages[:num_prompt_messages],
        "answer": messages[num_prompt_messages:],
        "tools": rollout.chat_tools(),
    }


def preference_row(chosen: Row, rejected: Row) -> Row:
    """The pair; the lower rank is the preferred one."""
    completions = [{"rank": rank, "completion": side["answer"]} for rank, side in enumerate((chosen, rejected))]
    tools = {"tools": chosen["tools"]} if chosen["tools"] else {}
    return {"context": chosen["prompt"], "completions": completions, **tools}


PREFERENCE = Format(row=preference_side, unit="pair", pair=preference_row, heeds=frozenset({"arguments"}))
