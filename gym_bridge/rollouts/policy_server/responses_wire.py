"""POST /v1/responses: what is asked, and what is answered."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.rollouts.policy_server.asked import (
    PREFIX_IDS,
    Asked,
    checked_ids,
    items_with_tokens,
    objects,
    prefix_ids,
    refuse_streams,
    tagged_metadata,
)
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn, Usage

SAID_ELSEWHERE = frozenset({"input", "tools", "model", "stream", "stream_options", "metadata", PREFIX_IDS})
ECHOED = ("instructions", "max_output_tokens", "metadata", "reasoning", "temperature", "text", "top_p", "truncation", "user")
EMPTY_ANSWER: Item = {
    "type": "message",
    "id": "msg_0",
    "role": "assistant",
    "status": "incomplete",
    "content": [{"type": "output_text", "text": "", "annotations": []}],
}


def responses_request(body: Mapping[str, Any]) -> Asked:
    """The request in `body`. Raises DataError for what is none of the wire's, and for a stream."""
    refuse_streams(body)
    given = body.get("input")
    items = ({"role": "user", "content": given},) if isinstance(given, str) else objects(given, "input")
    if not items:
        raise DataError("input is missing or empty; expected a text or a list of items")
    metadata, rollout = tagged_metadata(body.get("metadata"))
    params = {name: value for name, value in body.items() if name not in SAID_ELSEWHERE}
    return Asked(
        items=items,
        tools=objects(body.get("tools"), "tools"),
        params=params if metadata is None else {**params, "metadata": metadata},
        rollout=rollout,
        prefix_ids=checked_ids(body.get(PREFIX_IDS), PREFIX_IDS) or prefix_ids(items),
    )


def responses_reply(body: Mapping[str, Any], turn: Turn, *, model: str) -> Item:
    """The Response object of a call, whose last item carries its tokens."""
    return _response(body, items_with_tokens(turn), turn.usage, turn.incomplete_reason, model=turn.model or model)


def overflow_reply(body: Mapping[str, Any], *, model: str) -> Item:
    """What NeMo Gym's model server answers to a conversation that fills the model's context: nothing was said, cut off."""
    return _response(body, [EMPTY_ANSWER], Usage(), "max_output_tokens", model=model)


def _response(body: Mapping[str, Any], output: list[Item], usage: Usage, reason: str | None, *, model: str) -> Item:
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": time.time(),
        "model": model,
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": None,
        "output": output,
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in body.get("tools") or ()],
        "usage": usage.as_response(),
        **{name: body[name] for name in ECHOED if body.get(name) is not None},
    }
