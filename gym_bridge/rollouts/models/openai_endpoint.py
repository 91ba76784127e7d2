"""OpenAI-compatible endpoints, Responses and Chat Completions, through the `openai` client."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import openai
import orjson
from openai.types.chat import ChatCompletionMessageParam
from openai.types.responses import ResponseInputParam

from gym_bridge.errors import DataError, ServerError
from gym_bridge.rollouts.models.conversation import conversation
from gym_bridge.schemas.chat import chat_tools, flat_tools, response_items
from gym_bridge.schemas.seams import Turn, TurnRequest, Usage

RESPONSES_PARAMS = (
    "temperature",
    "top_p",
    "max_output_tokens",
    "parallel_tool_calls",
    "tool_choice",
    "instructions",
    "reasoning",
    "metadata",
)
CHAT_PARAMS = {"temperature": "temperature", "top_p": "top_p", "max_output_tokens": "max_tokens"}
NO_KEY = "none"  # a local endpoint asks for no key, the client insists on one


UNREACHABLE = ("ConnectError", "UnsupportedProtocol")  # by name: the client stands on httpx or, from version 3 on, on httpx2
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class EndpointError(ServerError):
    """The endpoint failed; `unreachable` says that no connection could be made."""

    unreachable = False


class _OpenAIEndpoint(ABC):
    def __init__(self, url: str, model: str, *, api_key: str | None, timeout_s: float):
        self.url, self.model = url, model
        self.client = openai.AsyncOpenAI(base_url=url, api_key=api_key or NO_KEY, timeout=timeout_s, max_retries=2)

    async def close(self) -> None:
        """Release connections."""
        await self.client.close()

    @abstractmethod
    async def _ask(self, request: TurnRequest) -> Any: ...

    @abstractmethod
    def _turn(self, reply: Any, request: TurnRequest) -> Turn: ...

    async def turn(self, request: TurnRequest) -> Turn:
        """One model call. Raises EndpointError, also for a reply that is none of the wire's."""
        try:
            reply = await self._ask(request)
        except openai.APIStatusError as error:
            raise self._error(error.message, status=error.status_code) from error
        except openai.APIConnectionError as error:
            failure = self._error(f"{error} ({error.__cause__})")
            failure.unreachable = type(error.__cause__).__name__ in UNREACHABLE
            raise failure from error
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise self._error(f"not understood: {error}") from error
        try:
            turn = self._turn(reply, request)
            orjson.dumps(turn.items)  # what no row can hold is a bad reply too
        except (AttributeError, TypeError, LookupError, DataError) as error:
            raise self._error(f"its reply is not what this wire answers: {error}") from error
        return turn

    def _error(self, message: str, *, status: int | None = None) -> EndpointError:
        key = self.client.api_key
        return EndpointError(message if key == NO_KEY else message.replace(key, "<key>"), url=self.url, status=status)


class ResponsesEndpoint(_OpenAIEndpoint):
    """`/v1/responses`."""

    async def _ask(self, request: TurnRequest) -> Any:
        params = _given(request.params, RESPONSES_PARAMS)
        if request.tools:
            params["tools"] = flat_tools(request.tools)
        items = cast(ResponseInputParam, list(request.items))
        return await self.client.responses.create(model=self.model, input=items, stream=False, **params)

    def _turn(self, reply: Any, request: TurnRequest) -> Turn:
        if reply.error or reply.status not in (None, "completed", "incomplete"):
            raise DataError(f"status {reply.status}, {reply.error.message if reply.error else 'no error given'}")
        return Turn(
            items=tuple(item.model_dump(mode="json", exclude_none=True) for item in reply.output),
            usage=_usage(reply.usage, "input_tokens", "output_tokens"),
            incomplete_reason=reply.incomplete_details.reason if reply.incomplete_details else None,
            model=reply.model or self.model,
        )


class ChatEndpoint(_OpenAIEndpoint):
    """`/v1/chat/completions`; items are converted both ways."""

    async def _ask(self, request: TurnRequest) -> Any:
        params = {CHAT_PARAMS[key]: value for key, value in _given(request.params, tuple(CHAT_PARAMS)).items()}
        if request.tools:
            params["tools"] = chat_tools(request.tools)
            params |= _given(request.params, ("parallel_tool_calls",))
            if choice := request.params.get("tool_choice"):
                params["tool_choice"] = _chat_tool_choice(choice)
        messages = cast(list[ChatCompletionMessageParam], conversation(request, arguments="string"))
        return await self.client.chat.completions.create(model=self.model, messages=messages, stream=False, **params)

    def _turn(self, reply: Any, request: TurnRequest) -> Turn:
        choice = reply.choices[0]
        said = choice.message.model_dump(mode="json", exclude_none=True)
        message: Any = {
            **said,
            "content": said.get("content") or said.get("refusal"),
            "reasoning_content": said.get("reasoning_content") or said.get("reasoning"),  # older and newer vLLM
        }
        return Turn(
            items=tuple(response_items(message, id_suffix="_".join(map(str, request.key[1:])))),
            usage=_usage(reply.usage, "prompt_tokens", "completion_tokens"),
            incomplete_reason=INCOMPLETE.get(choice.finish_reason),
            model=reply.model or self.model,
        )


def _usage(reported: Any, tokens_in: str, tokens_out: str) -> Usage:
    counts = (getattr(reported, name, None) or 0 for name in (tokens_in, tokens_out))
    return Usage(input_tokens=next(counts), output_tokens=next(counts))


def _chat_tool_choice(choice: Any) -> Any:
    """The Responses form of a choice of one function names it flat, chat nests it."""
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _given(params: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: params[name] for name in names if params.get(name) is not None}
