"""A task's Responses parameters in the words of a sampler."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.metadata import CHAT_TEMPLATE_KWARGS, EXTRA_BODY, settings
from gym_bridge.schemas.tokens import SamplingParams

READ = frozenset(["temperature", "top_p", "top_k", "max_output_tokens", "seed", "tool_choice"])
UNSAID = frozenset(
    [
        "input",
        "tools",
        "instructions",
        "model",
        "metadata",
        "parallel_tool_calls",
        "max_tool_calls",
        "stream",
        "stream_options",
        "include",
        "store",
        "user",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
    ]
)
"""What the conversation and the turn loop say (the first seven), and what has no meaning where tokens go in and out."""
DEFAULTS = {"truncation": "disabled", "background": False, "n": 1, "top_logprobs": 0, "text": {"format": {"type": "text"}}}
"""Parameters that a sampler cannot follow, harmless at these values."""
NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
}
"""Parameters that change what completions are drawn from, and the values with which they do not."""


def distorting(params: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The first of `params`, and its value, that has completions drawn from another distribution than the model's own.

    None where there is none; what is null says nothing.
    """
    for name, neutral in NEUTRAL.items():
        value = params.get(name)
        if value is not None and value not in neutral:
            return name, value
    return None


def with_extra_body(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are not null, over those of `metadata.extra_body`, with which NeMo Gym's rows carry more of them."""
    metadata = params.get("metadata")
    if settings(metadata, CHAT_TEMPLATE_KWARGS):
        raise DataError("metadata.chat_template_kwargs of the task: with tokens they are options of the renderer; set them there")
    given = {name: value for name, value in params.items() if value is not None}
    return settings(metadata, EXTRA_BODY) | given


def sampling_params(params: Mapping[str, Any], *, max_tokens: int, stop_token_ids: Sequence[int]) -> SamplingParams:
    """How `params` have a completion sampled, of at most `max_tokens`. Raises DataError that names what no sampler can do."""
    for name, value in params.items():
        _refuse_unknown(name, value)
    return SamplingParams(
        max_tokens=min(max_tokens, whole_number(params, "max_output_tokens", least=1) or max_tokens),
        temperature=_number(params, "temperature", most=math.inf),
        top_p=_number(params, "top_p", most=1.0),
        top_k=max(0, whole_number(params, "top_k", least=-1) or 0),
        stop_token_ids=tuple(stop_token_ids),
    )


def offers_tools(params: Mapping[str, Any]) -> bool:
    """Whether the model is shown its tools. Raises DataError for a `tool_choice` that would force a call."""
    choice = params.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise DataError(f"tool_choice={str(choice)[:80]}: a sampler cannot force a call; give 'auto' or 'none'")
    return choice == "auto"


def whole_number(params: Mapping[str, Any], name: str, *, least: int) -> int | None:
    """The parameter `name`, None where it is not given. Raises DataError for what is no whole number from `least` up."""
    value = params.get(name)
    if value is not None and (type(value) is not int or value < least):
        raise DataError(f"{name}={value!r}; expected a whole number of at least {least}")
    return value


def _number(params: Mapping[str, Any], name: str, *, most: float) -> float:
    value = params.get(name, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or math.isinf(value):
        raise DataError(f"{name}={value!r}; expected a number from 0{f' to {most:g}' if math.isfinite(most) else ' up'}")
    return float(value)


def _refuse_unknown(name: str, value: Any) -> None:
    if name in READ or name in UNSAID or (name in DEFAULTS and value == DEFAULTS[name]):
        return
    if name == "reasoning" and isinstance(value, dict):
        asked = [key for key, one in value.items() if one is not None and key not in ("summary", "generate_summary")]
        if not asked:
            return
        name, value = f"reasoning.{asked[0]}", value[asked[0]]
    raise DataError(f"parameter {name!r} ({str(value)[:80]}) has no meaning for a sampler of tokens; drop it")
