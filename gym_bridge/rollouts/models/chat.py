"""The model behind `/chat/completions`; items are converted both ways."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import orjson
from yarl import URL

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.chat_params import chat_params
from gym_bridge.rollouts.models.metadata import CHAT_TEMPLATE_KWARGS, EXTRA_BODY, settings
from gym_bridge.rollouts.models.model_http import ModelHttp
from gym_bridge.rollouts.models.replies import check_writable, expect, usage_of, without_nulls
from gym_bridge.schemas.chat import ToolCall, WireMessage, chat_tools, response_items, wire_messages
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn, TurnRequest

if TYPE_CHECKING:
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
FAILED = ("error", "abort")
"""How vLLM and gateways end a completion that failed after the status had gone out."""
HOSTED = ("api.openai.com", ".openai.azure.com")


class ChatEndpoint:
    """Chat Completions, as vLLM and most others speak it, and as OpenAI itself does where the address is OpenAI's or Azure's.

    To OpenAI a developer's message goes as `developer`, `max_output_tokens` as `max_completion_tokens`, and reasoning, which its
    API never gives, not at all. Others, of which many know neither, get `system`, `max_tokens`, and the reasoning under both
    of its names, `reasoning_content` and the newer `reasoning`. A task's `metadata.extra_body` is laid under the request and its
    `metadata.chat_template_kwargs` over those given here, as NeMo Gym's model server does it.
    """

    def __init__(self, http: ModelHttp, model: str, *, chat_template_kwargs: Mapping[str, Any] = {}):
        self.http, self.model = http, model
        self._chat_template_kwargs = dict(chat_template_kwargs)
        self._openai = is_openai(http.url)

    async def turn(self, request: TurnRequest) -> Turn:
        """One model call. Raises EndpointError, also for a reply that is none of the wire's; DataError for a task's mistake."""
        body: dict[str, Any] = dict(chat_body(request, self.model, openai=self._openai))
        metadata = request.params.get("metadata")
        if kwargs := self._chat_template_kwargs | settings(metadata, CHAT_TEMPLATE_KWARGS):
            body["chat_template_kwargs"] = kwargs
        reply = await self.http.post("/chat/completions", settings(metadata, EXTRA_BODY) | body)
        try:
            return chat_turn(reply, request, self.model)
        except DataError as error:
            raise self.http.error(f"its reply is none of Chat Completions: {error}") from error

    async def close(self) -> None:
        """Nothing to release: the connections belong to whoever made the HttpClient."""


def is_openai(url: str) -> bool:
    """Whether OpenAI or Azure serves `url`, whose API is stricter and newer than that of its imitators."""
    host = URL(url).host or ""
    return host == HOSTED[0] or host.endswith(HOSTED[1])


def chat_body(request: TurnRequest, model: str, *, openai: bool) -> "CompletionCreateParamsNonStreaming":
    """The request. Raises DataError for an item, a part or a parameter that has no form in chat."""
    messages: list[Any] = list(wire_messages(request.items, developer="developer" if openai else "system"))
    for message in messages:
        _name_reasoning(message, openai=openai)
    if instructions := request.params.get("instructions"):
        messages.insert(0, {"role": "system", "content": instructions})
    body: dict[str, Any] = {"model": model, "messages": messages, **chat_params(request.params, has_tools=bool(request.tools))}
    if request.tools:
        body["tools"] = chat_tools(request.tools)
    if (most := request.params.get("max_output_tokens")) is not None:
        body["max_completion_tokens" if openai else "max_tokens"] = most
    return cast("CompletionCreateParamsNonStreaming", body)


def _name_reasoning(message: WireMessage, *, openai: bool) -> None:
    if openai:
        message.pop("reasoning_content", None)
    elif reasoning := message.get("reasoning_content"):
        cast(Item, message)["reasoning"] = reasoning


def chat_turn(reply: dict[str, Any], request: TurnRequest, model: str) -> Turn:
    """The turn of a reply. Raises DataError for one that failed or that is none of the wire's."""
    choices = expect(reply.get("choices"), list, "choices")
    choice = expect(choices[0] if choices else None, dict, "choices[0]")
    if (finish_reason := choice.get("finish_reason")) in FAILED:
        raise DataError(f"finish_reason is {finish_reason!r}: the completion failed")
    items = _items(expect(choice.get("message"), dict, "choices[0].message"), "_".join(map(str, request.key[1:])))
    _annotate(items, choice)
    check_writable(items)
    return Turn(
        items=tuple(items),
        usage=usage_of(reply.get("usage")),
        incomplete_reason=INCOMPLETE.get(finish_reason) if isinstance(finish_reason, str) else None,
        model=expect(reply.get("model") or model, str, "model"),
    )


def _items(message: Item, id_suffix: str) -> list[Item]:
    for name in ("audio", "function_call"):
        if message.get(name):
            raise DataError(f"choices[0].message.{name} has no form in Responses")
    calls = expect(message.get("tool_calls") or [], list, "choices[0].message.tool_calls")
    said: dict[str, Any] = {
        "role": "assistant",
        "content": message.get("content"),
        "refusal": expect(message.get("refusal") or "", str, "choices[0].message.refusal"),
        "reasoning_content": expect(
            message.get("reasoning_content") or message.get("reasoning") or "", str, "choices[0].message.reasoning"
        ),
        "tool_calls": [_tool_call(call, n, id_suffix) for n, call in enumerate(calls)],
    }
    return response_items(cast(Any, said), id_suffix=id_suffix)


def _tool_call(value: Any, number: int, id_suffix: str) -> ToolCall:
    """A checked call. Some servers give no id, or null where a function takes no arguments."""
    place = f"choices[0].message.tool_calls[{number}]"
    call = expect(value, dict, place)
    if call.get("type") not in (None, "function"):
        raise DataError(f"{place}.type is {call['type']!r}; expected a function")
    function = expect(call.get("function"), dict, f"{place}.function")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = orjson.dumps(arguments).decode()
    return {
        "id": expect(call.get("id") or f"call_{id_suffix}_{number}", str, f"{place}.id"),
        "type": "function",
        "function": {
            "name": expect(function.get("name"), str, f"{place}.function.name"),
            "arguments": "{}" if arguments is None else expect(arguments, str, f"{place}.function.arguments"),
        },
    }


def _annotate(items: list[Item], choice: Item) -> None:
    """Citations and log-probs, which chat gives beside the text, go into its part."""
    part = next((item["content"][0] for item in items if item["type"] == "message"), {})
    if part.get("type") != "output_text":
        return
    if citations := choice["message"].get("annotations"):
        part["annotations"] = [_flat(citation) for citation in expect(citations, list, "choices[0].message.annotations")]
    logprobs = expect(choice.get("logprobs") or {}, dict, "choices[0].logprobs").get("content")
    if logprobs:
        part["logprobs"] = without_nulls(logprobs)


def _flat(citation: Any) -> Any:
    """Chat nests a citation under its type, Responses does not."""
    match citation:
        case {"type": "url_citation", "url_citation": {**fields}}:
            return {"type": "url_citation", **fields}
    return citation
