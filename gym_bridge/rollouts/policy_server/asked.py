"""A request to the policy's endpoint, whichever wire it came over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn

ROLLOUT_TAG = "gym_bridge_rollout"
"""The key of `metadata` under which a request names its rollout: agents and model servers hand metadata on."""
PROMPT_IDS, COMPLETION_IDS, LOGPROBS = TOKEN_FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")
PREFIX_IDS = "required_prefix_token_ids"
"""The key under which NeMo Gym's model server may say which tokens a prompt is to begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The request in the words of Responses."""

    items: tuple[Item, ...]
    tools: tuple[Item, ...]
    """In the flat form."""
    params: Mapping[str, Any]
    rollout: str | None
    """The rollout that it belongs to, where it says so."""
    prefix_ids: tuple[int, ...]
    """Prompt and completion of the call that it goes on from, where it says so."""


def tagged_metadata(metadata: Any) -> tuple[Any, str | None]:
    """`metadata` without our tag, and the tag. Raises DataError for metadata that is no object, and a tag that is no string."""
    if metadata is None:
        return None, None
    if not isinstance(metadata, dict):
        raise DataError(f"metadata is {str(metadata)[:80]}; expected an object of strings")
    tag = metadata.get(ROLLOUT_TAG)
    if tag is not None and not isinstance(tag, str):
        raise DataError(f"metadata.{ROLLOUT_TAG} is {str(tag)[:80]}; expected a string")
    return {name: value for name, value in metadata.items() if name != ROLLOUT_TAG} or None, tag


def objects(value: Any, name: str) -> tuple[Item, ...]:
    """A list of objects as they are; empty for null. Raises DataError for anything else."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{name} is {str(value)[:80]}; expected a list of objects")
    return tuple(value)


def prefix_ids(items: Sequence[Item]) -> tuple[int, ...]:
    """Prompt and completion of the last model call among the items that brings its token ids; empty without one."""
    for item in reversed(items):
        prompt, completion = item.get(PROMPT_IDS), item.get(COMPLETION_IDS)
        if prompt and completion:
            return checked_ids(prompt, PROMPT_IDS) + checked_ids(completion, COMPLETION_IDS)
    return ()


def checked_ids(value: Any, name: str) -> tuple[int, ...]:
    """A list of token ids; empty for null. Raises DataError for anything else."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 2**31 for one in value):
        raise DataError(f"{name} is no list of token ids")
    return tuple(value)


def refuse_streams(body: Mapping[str, Any]) -> None:
    """Raise DataError for a request whose reply is to be streamed."""
    if body.get("stream"):
        raise DataError("stream=true: this endpoint answers whole replies, since their tokens come as one; leave stream out")


def token_fields(turn: Turn) -> dict[str, Any]:
    """NeMo Gym's fields with the tokens of a call; empty where the endpoint reports none."""
    tokens = turn.tokens
    if tokens is None:
        return {}
    values = (list(tokens.prompt_ids), list(tokens.completion_ids), list(tokens.logprobs))
    return dict(zip(TOKEN_FIELDS, values, strict=True))


def items_with_tokens(turn: Turn) -> list[Item]:
    """The items of a call, the last of which carries its tokens."""
    return [*turn.items[:-1], {**turn.items[-1], **token_fields(turn)}]
