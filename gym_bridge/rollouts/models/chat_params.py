"""A task's Responses parameters in the words of Chat Completions."""

from collections.abc import Callable, Mapping
from typing import Any

from gym_bridge.errors import DataError

SAME = frozenset(
    [
        "temperature",
        "top_p",
        "user",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "seed",
        "stop",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
    ]
)
"""Parameters of the same name and meaning."""
UNSAID = frozenset(
    [
        "input",
        "tools",
        "model",
        "stream",
        "stream_options",
        "instructions",
        "max_output_tokens",
        "include",
        "store",
        "max_tool_calls",
    ]
)
"""What is said in another way (input, tools, model, instructions, max_output_tokens), and what has no meaning here: how a
reply travels or what it should bring besides, what the server keeps, and how often it may call tools of its own."""
DEFAULTS = {"truncation": "disabled", "background": False, "n": 1}
"""Parameters that chat cannot express, harmless at these values."""
MODALITIES = ("audio_data", "audio_path", "audio_paths")


def chat_params(params: Mapping[str, Any], *, has_tools: bool) -> dict[str, Any]:
    """The keys of a chat request that `params` stand for; null values count as not given.

    Labels in `metadata`, `reasoning.summary` and, without tools, how to choose among them are left out. Raises DataError
    that names any other parameter which chat cannot express.
    """
    body: dict[str, Any] = {}
    for name, value in params.items():
        if value is None or name in UNSAID or (name in DEFAULTS and value == DEFAULTS[name]):
            continue
        if name in SAME:
            body[name] = value
        elif name in CONVERSIONS:
            body |= CONVERSIONS[name](value, has_tools)
        else:
            raise _refusal(name, value)
    return body


def _refusal(name: str, value: Any) -> DataError:
    return DataError(f"parameter {name!r} ({str(value)[:80]}) has no form in Chat Completions; drop it, or use the Responses API")


def _tool_choice(choice: Any, has_tools: bool) -> dict[str, Any]:
    if not has_tools and choice in ("auto", "none"):
        return {}
    return {"tool_choice": choice if isinstance(choice, str) else _nested_choice(choice)}


def _nested_choice(choice: Any) -> Any:
    """Responses names a function flat, chat nests it."""
    match choice:
        case {"type": "function", "name": name}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "function", "function": {"name": _}}:
            return choice
        case {"type": "allowed_tools", "mode": mode, "tools": [*tools]}:
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [_nested_choice(tool) for tool in tools]}}
    raise _refusal("tool_choice", choice)


def _parallel_tool_calls(value: Any, has_tools: bool) -> dict[str, Any]:
    return {"parallel_tool_calls": value} if has_tools else {}


def _reasoning(value: Any, _: bool) -> dict[str, Any]:
    given = _fields("reasoning", value, known=("effort", "summary", "generate_summary"))
    return {"reasoning_effort": given["effort"]} if "effort" in given else {}


def _text(value: Any, _: bool) -> dict[str, Any]:
    given = _fields("text", value, known=("format", "verbosity"))
    body = {"verbosity": given["verbosity"]} if "verbosity" in given else {}
    match given.get("format"):
        case None | {"type": "text"}:
            return body
        case {"type": "json_object"}:
            return body | {"response_format": {"type": "json_object"}}
        case {"type": "json_schema", **schema}:
            given_schema = {key: one for key, one in schema.items() if one is not None}
            return body | {"response_format": {"type": "json_schema", "json_schema": given_schema}}
    raise _refusal("text.format", given["format"])


def _top_logprobs(value: Any, _: bool) -> dict[str, Any]:
    return {"logprobs": True, "top_logprobs": value} if value else {}


def _metadata(value: Any, _: bool) -> dict[str, Any]:
    for name in MODALITIES:
        if _fields("metadata", value).get(name):
            raise DataError(f"metadata.{name} of the task: give audio as an input_audio part of a message instead")
    return {}


def _fields(name: str, value: Any, *, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refusal(name, value)
    given = {key: one for key, one in value.items() if one is not None}
    for key in given:
        if known and key not in known:
            raise _refusal(f"{name}.{key}", given[key])
    return given


CONVERSIONS: dict[str, Callable[[Any, bool], dict[str, Any]]] = {
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _parallel_tool_calls,
    "reasoning": _reasoning,
    "text": _text,
    "top_logprobs": _top_logprobs,
    "metadata": _metadata,
}
