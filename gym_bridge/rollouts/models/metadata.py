"""The settings that NeMo Gym's rows carry as JSON strings in `metadata`, since its model server takes no other keys."""

from collections.abc import Mapping
from typing import Any

import orjson

from gym_bridge.errors import DataError

EXTRA_BODY, CHAT_TEMPLATE_KWARGS = "extra_body", "chat_template_kwargs"


def settings(metadata: Any, name: str) -> dict[str, Any]:
    """The object in `metadata[name]`; empty where there is none. Raises DataError for what is no JSON object."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise DataError(f"metadata of the task is {metadata!r}; expected an object of strings")
    text = (metadata or {}).get(name)
    if text is None:
        return {}
    try:
        value = orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"metadata.{name} of the task is {text!r}; expected a string with a JSON object in it")
    return value


def with_seed(metadata: Any, seed: int) -> dict[str, Any]:
    """`metadata` with `seed` in its extra body."""
    extra_body = settings(metadata, EXTRA_BODY) | {"seed": seed}
    return {**(metadata or {}), EXTRA_BODY: orjson.dumps(extra_body).decode()}
