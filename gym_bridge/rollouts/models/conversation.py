"""The chat that a turn request stands for."""

from gym_bridge.schemas.chat import Arguments, Message, chat_messages
from gym_bridge.schemas.seams import TurnRequest


def conversation(request: TurnRequest, *, arguments: Arguments = "object") -> list[Message]:
    """`instructions` as a system message, then the items; tool calls carry `arguments` as `chat_messages` gives them."""
    instructions = request.params.get("instructions")
    head: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    return head + chat_messages(request.items, arguments=arguments)
