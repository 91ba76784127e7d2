"""Whether a conversation begins as an earlier one ended, whatever its way through other servers did to its spelling."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import orjson

from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.rollouts import Item

TOOL_FIELDS = ("name", "description", "parameters")


def digest_history(messages: Sequence[Message], tools: Iterable[Item]) -> bytes:
    """A digest of what is said and of the tools on offer.

    White space around a text, the spelling of arguments and `strict` make no difference, and neither does reasoning, which many
    clients drop: the model goes on from its own tokens, in which it stands.
    """
    offered = [{name: tool.get(name) for name in TOOL_FIELDS} for tool in tools]
    told = orjson.dumps([offered, [_spelled(one) for one in messages]], option=orjson.OPT_SORT_KEYS)
    return blake2b(told, digest_size=16).digest()


def up_to_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """The conversation up to the model's last answer; empty where it has given none."""
    last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    return messages[: last + 1]


def _spelled(message: Message) -> list[Any]:
    calls = [
        [call["id"], call["function"]["name"], _parsed(call["function"]["arguments"])] for call in message.get("tool_calls") or ()
    ]
    return [message["role"], message["content"].strip(), message.get("tool_call_id"), calls]


def _parsed(arguments: Any) -> Any:
    if isinstance(arguments, str):
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(arguments)
    return arguments
