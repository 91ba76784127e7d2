"""A policy behind a sampler: messages are rendered to token ids here, sampled, and parsed back. Tokens are never rendered twice."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

import orjson
from renderers import ParsedToolCall, ToolCallParseStatus

from gym_bridge.rollouts.models.conversation import conversation
from gym_bridge.rollouts.models.sampled_params import offers_tools, sampling_params, whole_number, with_extra_body
from gym_bridge.schemas.chat import FunctionCall, Message, ToolCall, chat_tools, response_items
from gym_bridge.schemas.rollouts import Item
from gym_bridge.schemas.seams import Sampler, Turn, TurnRequest, Usage
from gym_bridge.schemas.tokens import Completion, TurnTokens
from gym_bridge.tokens.renderers import Renderer

AT_ONCE = 200_000
"""Characters of a conversation that are rendered in the event loop; more are in a thread, such as a tool's output of megabytes."""


class SampledEndpoint:
    """The model endpoint over a `Sampler`. `max_tokens` bounds a completion; a task's lower `max_output_tokens` counts.

    A task's `seed` stands for the run's in the key of its completions. A sampler refuses what it cannot do.
    """

    def __init__(self, sampler: Sampler, renderer: Renderer, *, max_tokens: int, model: str):
        self.sampler, self.renderer = sampler, renderer
        self.max_tokens, self.model = max_tokens, model

    async def turn(self, request: TurnRequest) -> Turn:
        """One completion of the conversation, as Responses items and as tokens.

        Raises DataError for a parameter or an item that cannot be followed, and what the sampler raises.
        """
        wanted = with_extra_body(request.params)
        params = sampling_params(wanted, max_tokens=self.max_tokens, stop_token_ids=self.renderer.get_stop_token_ids())
        tools = chat_tools(request.tools) if offers_tools(wanted) else []
        if _num_characters(request.items) > AT_ONCE:  # seconds of work, in which nothing else would be answered
            prompt_ids, starts_segment = await asyncio.to_thread(self._prompt, request, tools)
        else:
            prompt_ids, starts_segment = self._prompt(request, tools)
        seed = whole_number(wanted, "seed", least=0)
        key = request.key if seed is None else request.key._replace(seed=seed)
        completion = await self.sampler.sample(prompt_ids, params, key=key)
        tokens = TurnTokens(
            prompt_ids=tuple(prompt_ids),
            completion_ids=completion.ids,
            logprobs=completion.logprobs,
            policy_version=completion.policy_version,
            starts_segment=starts_segment,
        )
        message = self._message(completion, prompt_ids, tools, request)
        return Turn(
            items=tuple(response_items(message, id_suffix=_suffix(request))),
            usage=Usage(input_tokens=len(prompt_ids), output_tokens=len(completion.ids)),
            incomplete_reason="max_output_tokens" if completion.finish_reason == "length" else None,
            tokens=tokens,
            model=self.model,
        )

    async def close(self) -> None:
        """Nothing to release: the sampler belongs to whoever made it."""

    def _prompt(self, request: TurnRequest, tools: list[Item]) -> tuple[list[int], bool]:
        """Prompt ids, and whether they start a segment instead of extending the turn before."""
        previous = request.previous
        if previous is not None:
            # As strings: the model may have called with arguments that are no JSON, and its tokens stand as they are.
            new = _after_last_answer(_with_names(conversation(request, arguments="string")))
            bridged = self.renderer.bridge_to_next_turn(previous.prompt_ids, previous.completion_ids, new, tools=tools or None)
            if bridged is not None and _extends(previous, bridged.token_ids):
                return bridged.token_ids, False
        ids = self.renderer.render_ids(_with_names(conversation(request)), tools=tools or None, add_generation_prompt=True)
        return ids, previous is None or not _extends(previous, ids)

    def _message(self, completion: Completion, prompt_ids: list[int], tools: list[Item], request: TurnRequest) -> Message:
        if request.tools and not tools:  # told to call nothing: whatever it wrote is its answer
            return {"role": "assistant", "content": self._text(completion)}
        parsed = self.renderer.parse_response(completion.ids, tools=tools or None, prompt_ids=prompt_ids)
        calls = [call for call in parsed.tool_calls if call.status is ToolCallParseStatus.OK]
        if calls and completion.finish_reason != "stop":  # a turn that was cut off calls nothing: its text stands as it is
            return {"role": "assistant", "content": self.renderer.tokenizer.decode(completion.ids)}
        message: Message = {"role": "assistant", "content": parsed.content}
        if parsed.reasoning_content:
            message["reasoning_content"] = parsed.reasoning_content
        if calls:
            message["tool_calls"] = _tool_calls(calls, request)
        return message

    def _text(self, completion: Completion) -> str:
        ended = completion.ids[-1] in self.renderer.get_stop_token_ids()
        return self.renderer.tokenizer.decode(completion.ids[:-1] if ended else completion.ids)


def _num_characters(items: Sequence[Item]) -> int:
    texts = (text for item in items for text in (item.get("output"), item.get("content"), item.get("arguments")))
    return sum(len(one) if isinstance(one, str) else sum(map(_num_of_part, one or ())) for one in texts)


def _num_of_part(part: Any) -> int:
    text = part.get("text") if isinstance(part, dict) else None
    return len(text) if isinstance(text, str) else 0


def _extends(previous: TurnTokens, prompt_ids: Sequence[int]) -> bool:
    before = previous.all_ids
    return tuple(prompt_ids[: len(before)]) == before


def _suffix(request: TurnRequest) -> str:
    return "_".join(map(str, request.key[1:]))


def _tool_calls(calls: Sequence[ParsedToolCall], request: TurnRequest) -> list[ToolCall]:
    """The calls under ids that no other call of the rollout has: the model's own where it writes such, as Kimi does."""
    taken = {item.get("call_id") for item in request.items}
    made: list[ToolCall] = []
    for number, call in enumerate(calls):
        call_id = call.id if call.id and call.id not in taken else f"call_{_suffix(request)}_{number}"
        taken.add(call_id)
        function: FunctionCall = {"name": _writable(call.name or ""), "arguments": _arguments(call.arguments or {})}
        made.append({"id": call_id, "type": "function", "function": function})
    return made


def _with_names(messages: list[Message]) -> list[Message]:
    """Tool outputs with the name of their tool, which some families write and which chat messages leave out."""
    names: dict[str | None, str] = {}
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls") or []}
    named = [{**one, "name": names[one.get("tool_call_id")]} if one["role"] == "tool" else one for one in messages]
    return cast(list[Message], named)


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
