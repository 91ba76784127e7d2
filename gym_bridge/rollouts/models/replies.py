"""What replies of both OpenAI wires hold, checked by small predicates; every error is a DataError that names the field."""

from collections.abc import Iterable
from typing import Any, TypeVar

import orjson

from gym_bridge.errors import DataError
from gym_bridge.schemas.content import answer_parts
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Usage

T = TypeVar("T")

TOKEN_FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")
KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}


def expect(value: Any, kind: type[T], name: str) -> T:
    """`value`, which must be a `kind`: an object, a list or a string."""
    if not isinstance(value, kind):
        raise DataError(f"{name} is {_short(value)}; expected {KINDS[kind]}")
    return value


def usage_of(reported: Any) -> Usage:
    """Tokens as either wire counts them; what is missing or null counts nothing."""
    if reported is None:
        return Usage()
    usage = expect(reported, dict, "usage")
    details_in = _either(usage, "input_tokens_details", "prompt_tokens_details")
    details_out = _either(usage, "output_tokens_details", "completion_tokens_details")
    return Usage(
        input_tokens=_count(_either(usage, "input_tokens", "prompt_tokens"), "usage.input_tokens"),
        output_tokens=_count(_either(usage, "output_tokens", "completion_tokens"), "usage.output_tokens"),
        cached_tokens=_count(_detail(details_in, "cached_tokens"), "usage: cached_tokens"),
        reasoning_tokens=_count(_detail(details_out, "reasoning_tokens"), "usage: reasoning_tokens"),
    )


def stored_item(value: Any, *, place: str, id_suffix: str) -> Item:
    """An output item in NeMo Gym's newest, strict shape, which is what later requests and /verify carry.

    It has a `type`, and an `id` where the shape asks for one; an answer's text stands in parts with `annotations`; keys whose
    value is null are left out, and so are token ids and log-probs that are not complete.
    """
    item = with_whole_tokens(without_nulls(expect(value, dict, place)))
    kind = expect(item.get("type") or ("message" if "role" in item else None), str, f"{place}.type")
    match kind:
        case "message":
            head = {"type": kind, "id": f"msg_{id_suffix}", "role": "assistant", "status": "completed"}
            item = head | item | {"content": _message_parts(item.get("content"), f"{place}.content")}
        case "reasoning":
            item = {"type": kind, "id": f"rs_{id_suffix}", "summary": []} | item
        case "function_call":
            for name in ("call_id", "name", "arguments"):
                expect(item.get(name), str, f"{place}.{name}")
    return item


def with_whole_tokens(item: Item) -> Item:
    """The item, without its token fields where one of the three is missing: NeMo Gym answers 422 to a part of them."""
    num_fields = sum(isinstance(item.get(name), list) for name in TOKEN_FIELDS)
    if num_fields == len(TOKEN_FIELDS) or not item.keys() & {*TOKEN_FIELDS, "routed_experts"}:
        return item
    return {name: value for name, value in item.items() if name not in TOKEN_FIELDS and name != "routed_experts"}


def without_nulls(value: Any) -> Any:
    """`value` without keys whose value is null, at any depth."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return [without_nulls(one) for one in value]
    return value


def check_writable(items: Iterable[Item]) -> None:
    """Raise DataError for items that are nested deeper than a row can be written: orjson reads more levels than it writes."""
    try:
        orjson.dumps({"response": {"output": list(items)}})
    except orjson.JSONEncodeError as error:
        raise DataError(f"output cannot be written to a row: {error}") from error


def _message_parts(content: Any, place: str) -> list[Item]:
    if content is None or isinstance(content, str):
        return answer_parts(content)
    parts = [expect(part, dict, f"{place}[{number}]") for number, part in enumerate(expect(content, list, place))]
    for part in parts:
        if part.get("type") == "output_text":
            expect(part.get("text"), str, f"{place}: text of an output_text")
            part.setdefault("annotations", [])
    return parts


def _either(usage: Item, *names: str) -> Any:
    return next((usage[name] for name in names if usage.get(name) is not None), None)


def _detail(details: Any, name: str) -> Any:
    return None if details is None else expect(details, dict, "usage: details").get(name)


def _count(value: Any, name: str) -> int:
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise DataError(f"{name} is {_short(value)}; expected a number of tokens")
    return value


def _short(value: Any) -> str:
    text = "missing or null" if value is None else repr(value)
    return text if len(text) <= 120 else text[:120] + " ..."
