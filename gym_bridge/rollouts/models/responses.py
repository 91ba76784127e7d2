"""The model behind `/responses`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.metadata import CHAT_TEMPLATE_KWARGS, settings, with_seed
from gym_bridge.rollouts.models.model_http import ModelHttp
from gym_bridge.rollouts.models.replies import check_writable, expect, stored_item, usage_of, with_whole_tokens
from gym_bridge.schemas.chat import flat_tools
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Turn, TurnRequest

if TYPE_CHECKING:
    from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming

STANDARD = frozenset(
    [
        "include",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "temperature",
        "text",
        "tool_choice",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    ]
)
"""Keys of the wire that a task's parameters may bring."""
OURS = frozenset({"input", "tools", "model", "stream", "stream_options"})
"""Keys of a row that are said in another way, or that only say how a reply travels."""


class ResponsesEndpoint:
    """Responses, as OpenAI, vLLM and NeMo Gym's model servers speak it; only the wire's own keys go out.

    A task's `seed` travels in `metadata.extra_body`, as NeMo Gym's rows carry it: its model server refuses a top-level one.
    `chat_template_kwargs` is vLLM's key beside the wire, laid under a task's own of `metadata`; it is sent only when given here.
    """

    def __init__(self, http: ModelHttp, model: str, *, chat_template_kwargs: Mapping[str, Any] = {}):
        self.http, self.model = http, model
        self._chat_template_kwargs = dict(chat_template_kwargs)

    async def turn(self, request: TurnRequest) -> Turn:
        """One model call. Raises EndpointError, also for a reply that is none of the wire's; DataError for a task's mistake."""
        body = dict(responses_body(request, self.model))
        if self._chat_template_kwargs:
            own = settings(request.params.get("metadata"), CHAT_TEMPLATE_KWARGS)
            body["chat_template_kwargs"] = self._chat_template_kwargs | own
        reply = await self.http.post("/responses", body)
        try:
            return responses_turn(reply, request, self.model)
        except DataError as error:
            raise self.http.error(f"its reply is none of the Responses API: {error}") from error

    async def close(self) -> None:
        """Nothing to release: the connections belong to whoever made the HttpClient."""


def responses_body(request: TurnRequest, model: str) -> "ResponseCreateParamsNonStreaming":
    """The request. Raises DataError for a parameter that the wire does not know."""
    body: dict[str, Any] = {"model": model, "input": [_input_item(item) for item in request.items]}
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    for name, value in request.params.items():
        if name in STANDARD and value is not None:
            body[name] = value
        elif name not in STANDARD | OURS | {"seed"} and value is not None and (name, value) != ("background", False):
            raise DataError(f"parameter {name!r} is none of the Responses API; drop it, or give it as extra body")
    if (seed := request.params.get("seed")) is not None:
        body["metadata"] = with_seed(body.get("metadata"), seed)
    return cast("ResponseCreateParamsNonStreaming", body)


def responses_turn(reply: dict[str, Any], request: TurnRequest, model: str) -> Turn:
    """The turn of a reply. Raises DataError for one that failed or that is none of the wire's."""
    error, status = reply.get("error"), reply.get("status")
    if error or status not in (None, "completed", "incomplete"):
        said = error.get("message") if isinstance(error, dict) else error
        raise DataError(f"status {status}, {said or 'no error given'}")
    suffix = "_".join(map(str, request.key[1:]))
    output = expect(reply.get("output"), list, "output")
    items = tuple(stored_item(item, place=f"output[{n}]", id_suffix=f"{suffix}_{n}") for n, item in enumerate(output))
    check_writable(items)
    details = expect(reply.get("incomplete_details") or {}, dict, "incomplete_details")
    return Turn(
        items=items,
        usage=usage_of(reply.get("usage")),
        incomplete_reason=details.get("reason") or ("incomplete" if status == "incomplete" else None),
        model=expect(reply.get("model") or model, str, "model"),
    )


def _input_item(item: Item) -> Item:
    """An item as the strictest servers take it back: no nulls, no part of the token fields, no status of a reasoning."""
    item = with_whole_tokens({name: value for name, value in item.items() if value is not None})
    if item.get("type") == "reasoning":
        item.pop("status", None)  # OpenAI gives it and refuses it
    content = item.get("content")
    if isinstance(content, list) and any(isinstance(part, dict) and part.get("type") == "input_image" for part in content):
        item["content"] = [_with_detail(part) for part in content]
    return item


def _with_detail(part: Any) -> Any:
    """NeMo Gym's server wants the `detail` of an image said, even where it is the default."""
    return {"detail": "auto", **part} if isinstance(part, dict) and part.get("type") == "input_image" else part


def _tool(tool: Item) -> Item:
    """A function with every key that the wire requires, null where the task has none; a tool of the server's as it is."""
    if tool.get("type") != "function":
        return tool
    return {"parameters": None, "strict": None} | flat_tools([tool])[0]
