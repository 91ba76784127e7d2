"""POST /v1/chat/completions: what is asked, in the words of Responses, and what is answered, with vLLM's fields for tokens."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.replies import expect
from gym_bridge.rollouts.policy_server.asked import (
    PREFIX_IDS,
    PROMPT_IDS,
    TOKEN_FIELDS,
    Asked,
    checked_ids,
    objects,
    prefix_ids,
    refuse_streams,
    tagged_metadata,
    token_fields,
)
from gym_bridge.schemas.chat import chat_messages, flat_tools, response_items
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn
from gym_bridge.schemas.tokens import TurnTokens

LENGTHS = ("max_completion_tokens", "max_tokens")
SAID_ELSEWHERE = frozenset(
    [
        *("messages", "tools", "model", "metadata", "stream", "stream_options", PREFIX_IDS, *LENGTHS),
        *("logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids"),
    ]
)
HARMLESS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""Parameters that are left out at these values, which ask for nothing."""
FINISH = {"max_output_tokens": "length", "content_filter": "content_filter"}


def chat_request(body: Mapping[str, Any]) -> Asked:
    """The request in `body`. Raises DataError for what is none of the wire's, for a stream and for likeliest alternatives."""
    refuse_streams(body)
    if body.get("top_logprobs"):
        raise DataError(f"top_logprobs={body['top_logprobs']!r}: only the sampled token's log-prob is known; give 0")
    messages = objects(body.get("messages"), "messages")
    if not messages:
        raise DataError("messages is missing or empty; expected a list of messages")
    items = tuple(item for number, message in enumerate(messages) for item in _items(message, number))
    metadata, rollout = tagged_metadata(body.get("metadata"))
    params = {
        name: value
        for name, value in body.items()
        if name not in SAID_ELSEWHERE and value is not None and value not in HARMLESS.get(name, ())
    }
    most = next((body[name] for name in LENGTHS if body.get(name) is not None), None)
    return Asked(
        items=items,
        tools=tuple(flat_tools(objects(body.get("tools"), "tools"))),
        params=params
        | ({} if most is None else {"max_output_tokens": most})
        | ({} if metadata is None else {"metadata": metadata}),
        rollout=rollout,
        prefix_ids=checked_ids(body.get(PREFIX_IDS), PREFIX_IDS) or prefix_ids(items),
    )


def chat_reply(body: Mapping[str, Any], turn: Turn, *, model: str) -> Item:
    """The ChatCompletion of a call: its tokens stand in the message as NeMo Gym has them, and beside it as vLLM has them."""
    tokens = turn.tokens
    message = _message(turn)
    choice: Item = {"index": 0, "message": message, "finish_reason": _finish_reason(turn, message), "logprobs": None}
    beside: Item = {}
    if tokens is not None:
        choice["token_ids"] = list(tokens.completion_ids)
        choice["logprobs"] = _logprobs(tokens) if body.get("logprobs") else None
        beside[PROMPT_IDS] = list(tokens.prompt_ids)
    usage = turn.usage
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": turn.model or model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens": usage.output_tokens,
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        },
        **beside,
    }


def _items(message: Item, number: int) -> list[Item]:
    place = f"messages[{number}]"
    if not isinstance(message.get("role"), str):
        raise DataError(f"{place}.role is missing; expected system, developer, user, assistant or tool")
    said: Item = {
        "role": message["role"],
        "content": message.get("content"),
        "tool_call_id": message.get("tool_call_id"),
        "refusal": message.get("refusal"),
        "reasoning_content": message.get("reasoning_content") or message.get("reasoning"),
        "tool_calls": [_checked(call, f"{place}.tool_calls") for call in objects(message.get("tool_calls"), f"{place}.tool_calls")],
    }
    items = response_items(cast(Any, said), id_suffix=str(number))
    if message["role"] == "assistant" and all(message.get(name) for name in TOKEN_FIELDS):
        items[-1] = {**items[-1], **{name: message[name] for name in TOKEN_FIELDS}}
    return items


def _checked(call: Item, place: str) -> Item:
    function = expect(call.get("function"), dict, f"{place}.function")
    arguments = function.get("arguments")
    if not isinstance(arguments, dict | str):
        raise DataError(f"{place}.function.arguments is {str(arguments)[:80]}; expected a string")
    named = {"name": expect(function.get("name"), str, f"{place}.function.name"), "arguments": arguments}
    return {"id": expect(call.get("id"), str, f"{place}.id"), "type": "function", "function": named}


def _message(turn: Turn) -> Item:
    """The assistant's message; the parts of a call that chat would split are one here: they were sampled as one."""
    said = chat_messages(turn.items, arguments="string", media="keep")
    texts = [one["content"] for one in said if one["content"]]
    calls = [call for one in said for call in one.get("tool_calls") or ()]
    reasoning = [text for one in said if (text := one.get("reasoning_content"))]
    content = "\n".join(texts)
    message: Item = {"role": "assistant", "content": content if content or not calls else None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    if reasoning:
        message["reasoning_content"] = message["reasoning"] = "\n".join(reasoning)
    return message | token_fields(turn)


def _finish_reason(turn: Turn, message: Item) -> str:
    if turn.incomplete_reason is not None:
        return FINISH.get(turn.incomplete_reason, "length")
    return "tool_calls" if message.get("tool_calls") else "stop"


def _logprobs(tokens: TurnTokens) -> Item:
    """vLLM's form with `return_tokens_as_token_ids`: ids stand for the texts of the tokens, of which some have none."""
    sampled: Sequence[tuple[int, float]] = list(zip(tokens.completion_ids, tokens.logprobs, strict=True))
    return {
        "content": [
            {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []} for token, logprob in sampled
        ],
        "refusal": None,
    }
