"""A policy behind a sampler: messages are rendered to token ids here, sampled, and parsed back. Tokens are never rendered twice."""

import json
from collections.abc import Sequence
from typing import Any

import orjson
from renderers import ToolCallParseStatus

from gym_bridge.errors import PolicyError
from gym_bridge.rollouts.models.conversation import conversation
from gym_bridge.schemas.chat import Message, chat_tools, response_items
from gym_bridge.schemas.seams import Sampler, Turn, TurnRequest, Usage
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams, TurnTokens
from gym_bridge.tokens.chatml import ChatMLRenderer


class SampledEndpoint:
    """The model endpoint over a `Sampler`. `max_tokens` bounds a completion; a task's lower `max_output_tokens` counts."""

    def __init__(self, sampler: Sampler, renderer: ChatMLRenderer, *, max_tokens: int, model: str):
        self.sampler, self.renderer = sampler, renderer
        self.max_tokens, self.model = max_tokens, model

    async def turn(self, request: TurnRequest) -> Turn:
        """One completion of the conversation, as Responses items and as tokens."""
        prompt_ids, starts_segment = self._prompt(request)
        completion = await self.sampler.sample(prompt_ids, self._params(request), key=request.key)
        return Turn(
            items=tuple(response_items(self._message(completion, request.key), id_suffix="_".join(map(str, request.key[1:])))),
            usage=Usage(input_tokens=len(prompt_ids), output_tokens=len(completion.ids)),
            incomplete_reason="max_output_tokens" if completion.finish_reason == "length" else None,
            tokens=TurnTokens(
                prompt_ids=tuple(prompt_ids),
                completion_ids=completion.ids,
                logprobs=completion.logprobs,
                policy_version=completion.policy_version,
                starts_segment=starts_segment,
            ),
            model=self.model,
        )

    async def close(self) -> None:
        """Nothing to release: the sampler belongs to whoever made it."""

    def _prompt(self, request: TurnRequest) -> tuple[list[int], bool]:
        """Prompt ids, and whether they start a segment instead of extending the turn before."""
        tools = chat_tools(request.tools)
        if request.previous is not None:
            # As strings: the model may have called with arguments that are no JSON, and its tokens stand as they are.
            new = _after_last_answer(conversation(request, arguments="string"))
            bridged = self.renderer.bridge_to_next_turn(
                request.previous.prompt_ids, request.previous.completion_ids, new, tools=tools
            )
            if bridged is not None:
                return bridged.token_ids, False
        return self.renderer.render_ids(conversation(request), tools=tools, add_generation_prompt=True), True

    def _params(self, request: TurnRequest) -> SamplingParams:
        wanted = request.params
        if wanted.get("top_p") not in (None, 1, 1.0):
            raise PolicyError(f"top_p={wanted['top_p']}: the in-process sampler draws from the whole distribution; leave top_p out")
        temperature = wanted.get("temperature")
        return SamplingParams(
            max_tokens=min(self.max_tokens, wanted.get("max_output_tokens") or self.max_tokens),
            temperature=1.0 if temperature is None else float(temperature),
            stop_token_ids=tuple(self.renderer.get_stop_token_ids()),
        )

    def _message(self, completion: Completion, key: SampleKey) -> Message:
        parsed = self.renderer.parse_response(completion.ids)
        calls = [call for call in parsed.tool_calls if call.status is ToolCallParseStatus.OK]
        if calls and completion.finish_reason != "stop":  # a turn that was cut off calls nothing: its text stands as it is
            return {"role": "assistant", "content": self.renderer.tokenizer.decode(completion.ids)}
        message: Message = {"role": "assistant", "content": parsed.content}
        if parsed.reasoning_content:
            message["reasoning_content"] = parsed.reasoning_content
        if calls:
            prefix = "_".join(map(str, key[1:]))
            message["tool_calls"] = [
                {
                    "id": f"call_{prefix}_{number}",
                    "type": "function",
                    "function": {"name": _writable(call.name or ""), "arguments": _arguments(call.arguments or {})},
                }
                for number, call in enumerate(calls)
            ]
        return message


def _after_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    return messages[last + 1 :]


def _arguments(arguments: dict[str, Any] | str) -> dict[str, Any] | str:
    """What the model wrote; as ASCII text where a row cannot hold it: half characters, huge numbers, depth."""
    try:
        orjson.dumps(arguments)
    except orjson.JSONEncodeError:
        return json.dumps(arguments)
    return arguments


def _writable(name: str) -> str:
    return name.encode(errors="replace").decode()
