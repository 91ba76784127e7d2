"""Rows for NeMo RL's openai_format: {"messages", "tools"}, the whole conversation as an OpenAI chat."""

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.chat import chat_messages, chat_tools
from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.format import Format


def sft_row(rollout: RolloutView) -> Row | None:
    """Prompt and all turns as chat messages, tool calls nested with arguments as objects; `tools` only when the task has some.

    `gym_bridge.num_prompt_messages` tells how many messages, at the beginning, the task brought: nothing in them was sampled.
    None when the rollout does not end with an assistant's text or tool call.
    """
    if not rollout.output:
        return None
    messages = chat_messages(rollout.items)
    last = messages[-1]
    if last["role"] != "assistant" or not (last["content"].strip() or last.get("tool_calls")):
        return None
    prompt = {"num_prompt_messages": len(chat_messages(rollout.context))}
    tools = {"tools": chat_tools(rollout.tools)} if rollout.tools else {}
    return {"messages": messages, **tools, "gym_bridge": prompt}


SFT = Format(row=sft_row)
