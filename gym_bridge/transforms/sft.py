"""Rows for NeMo RL's openai_format: {"messages", "tools"}, the whole conversation as an OpenAI chat."""

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.chat import rollout_messages
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.format import Format, RowOptions
from gym_bridge.transforms.texts import cut_after_last_answer


def sft_row(rollout: RolloutView, options: RowOptions) -> Row | None:
    """Prompt and all turns as chat messages, tool calls nested with arguments as objects; `tools` only when the task has some.

    `gym_bridge.num_prompt_messages` tells how many messages, at the beginning, the task brought: nothing in them was sampled.
    The row ends with the model's last text or tool call; None when the rollout has neither.
    """
    messages, num_prompt_messages = rollout_messages(
        rollout.context,
        rollout.output or (),
        arguments=options.arguments or "object",
        media="keep",
        tool_calls="flat" if options.flat_tool_calls else "nested",
    )
    if not cut_after_last_answer(messages, num_prompt_messages):
        return None
    row: Row = {"messages": messages}
    if tools := rollout.chat_tools():
        row["tools"] = tools
    row["gym_bridge"] = {"num_prompt_messages": num_prompt_messages}
    return row


SFT = Format(row=sft_row, min_reward=0.9, heeds=frozenset({"arguments", "flat_tool_calls"}))
