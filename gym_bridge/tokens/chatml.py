"""ChatML with tools: the renderer of SmolLM2 and of other models with a plain ChatML template.

It renders the same text as `chatml_with_tools.jinja` beside it, which unpacked GGUF models carry for other engines.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from renderers import ParsedResponse, ParsedToolCall, RenderedTokens, ToolCallParseStatus

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.schemas.chat import Message
from gym_bridge.tokens.tokenizer import Tokenizer

TEMPLATE = Path(__file__).with_name("chatml_with_tools.jinja")
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TOOLS_HEADER = "\n\n# Tools\n\nYou may call these functions:\n<tools>"
TOOLS_FOOTER = (
    '\n</tools>\n\nTo call one, write:\n<tool_call>\n{"name": "function name", "arguments": {"argument": "value"}}\n</tool_call>'
)
CALL_OPENS, CALL_CLOSES = re.compile(r"\n?<tool_call>\s*"), "</tool_call>"
THINKING = re.compile(r"\A<think>\n(.*?)\n</think>\n\n", re.DOTALL)


class ChatMLRenderer:
    """Messages to token ids and sampled ids back to a message; satisfies the `Renderer` protocol of the `renderers` package."""

    is_prefix_stable = True

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._start = self._special("<|im_start|>")
        self._end = self._special("<|im_end|>")
        self._newline = tokenizer.encode("\n")

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] | None = None, add_generation_prompt: bool = False
    ) -> RenderedTokens:
        """The whole conversation; `sampled_mask` is True on what the model itself would have written."""
        rendered = RenderedTokens(message_roles=[message["role"] for message in messages])
        first = messages[0] if messages else None
        if first is not None and first["role"] == "system":
            self._emit(rendered, 0, "system", _system_text(_text(first), tools))
        else:
            self._emit(rendered, -1, "system", _system_text(DEFAULT_SYSTEM, tools))
        self._emit_messages(rendered, list(messages), skip_first=first is not None and first["role"] == "system")
        if add_generation_prompt:
            self._extend(rendered, self._opening("assistant"), index=-1, sampled=False)
        return rendered

    def render_ids(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] | None = None, add_generation_prompt: bool = False
    ) -> list[int]:
        """Token ids of `render`."""
        return self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt).token_ids

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: Sequence[int],
        previous_completion_ids: Sequence[int],
        new_messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> RenderedTokens | None:
        """The next prompt: what was sampled, kept token for token, then `new_messages` and the opening of an answer.

        None when `new_messages` holds an assistant message, which would be text that nobody sampled.
        """
        if not new_messages or any(message["role"] == "assistant" for message in new_messages):
            return None
        rendered = RenderedTokens(message_roles=[message["role"] for message in new_messages])
        self._extend(rendered, [*previous_prompt_ids, *previous_completion_ids], index=-1, sampled=False)
        if rendered.token_ids[-1] != self._end:
            self._extend(rendered, [self._end], index=-1, sampled=False)
        self._extend(rendered, self._newline, index=-1, sampled=False)
        self._emit_messages(rendered, list(new_messages), skip_first=False)
        self._extend(rendered, self._opening("assistant"), index=-1, sampled=False)
        return rendered

    def parse_response(
        self, token_ids: Sequence[int], *, tools: Sequence[dict[str, Any]] | None = None, prompt_ids: Sequence[int] | None = None
    ) -> ParsedResponse:
        """Reasoning, text and tool calls of sampled ids. A call that is no JSON object stays in the text."""
        ids = list(token_ids)
        text = self.tokenizer.decode(ids[:-1] if ids and ids[-1] in self.get_stop_token_ids() else ids)
        reasoning = None
        if found := THINKING.match(text):
            reasoning, text = found.group(1), text[found.end() :]
        text, calls = _without_calls(text)
        return ParsedResponse(content=text, reasoning_content=reasoning, tool_calls=calls)

    def get_stop_token_ids(self) -> list[int]:
        """Ids that end an answer."""
        endings = {self._end, self.tokenizer.eos_token_id}
        return sorted(one for one in endings if one is not None)

    def _emit_messages(self, rendered: RenderedTokens, messages: list[Message], *, skip_first: bool) -> None:
        for index, message in enumerate(messages):
            if index or not skip_first:
                self._emit(rendered, index, message["role"], _text(message), sampled=message["role"] == "assistant")

    def _emit(self, rendered: RenderedTokens, index: int, role: str, text: str, *, sampled: bool = False) -> None:
        if sampled:  # apart: sampling starts after the opening's own tokens
            self._extend(rendered, self._opening(role), index=index, sampled=False)
            self._extend(rendered, [*self.tokenizer.encode(text), self._end], index=index, sampled=True)
        else:
            ids = [self._start, *self.tokenizer.encode(f"{role}\n{text}"), self._end]
            self._extend(rendered, ids, index=index, sampled=False)
        self._extend(rendered, self._newline, index=index, sampled=False)

    def _opening(self, role: str) -> list[int]:
        return [self._start, *self.tokenizer.encode(role), *self._newline]

    @staticmethod
    def _extend(rendered: RenderedTokens, ids: Sequence[int], *, index: int, sampled: bool) -> None:
        rendered.token_ids.extend(ids)
        rendered.message_indices.extend([index] * len(ids))
        rendered.sampled_mask.extend([sampled] * len(ids))

    def _special(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: no token {token!r}, so this is no ChatML model; none of the renderers fits"
            )
        return found


def speaks_chatml(tokenizer: Tokenizer) -> bool:
    """Whether the chat template says what `ChatMLRenderer` renders: ours, or SmolLM2's own, which knows no tools."""
    template = tokenizer.chat_template or ""
    ours = template.strip() == TEMPLATE.read_text(encoding="utf-8").strip()
    return ours or (DEFAULT_SYSTEM in template and "<|im_start|>" in template and "tool" not in template)


def _system_text(text: str, tools: Sequence[dict[str, Any]] | None) -> str:
    if not tools:
        return text
    return text + TOOLS_HEADER + "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools) + TOOLS_FOOTER


def _text(message: Message) -> str:
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise DataError(f"a {message['role']} message holds {type(content).__name__} content; ChatML renders text only")
    reasoning = message.get("reasoning_content")
    text = f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content
    for number, call in enumerate(message.get("tool_calls") or []):
        text += ("\n" if number or content else "") + f"<tool_call>\n{_call_body(call)}\n</tool_call>"
    return text


def _call_body(call: Any) -> str:
    """Name and arguments as JSON; arguments that come as a string, as on the wire, are read as the object they hold."""
    try:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (KeyError, TypeError, ValueError):
        name, arguments = None, None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise DataError(f'tool call {call!r} is not of the form {{"function": {{"name": ..., "arguments": {{...}}}}}}')
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def _without_calls(text: str) -> tuple[str, list[ParsedToolCall]]:
    """`text` without its well-formed tool calls, and all calls in order."""
    kept: list[str] = []
    calls: list[ParsedToolCall] = []
    position = 0
    while opening := CALL_OPENS.search(text, position):
        body, end = _json_at(text, opening.end())
        closing = text.find(CALL_CLOSES, end)
        if text[end:closing].strip():  # more than the JSON stands before it
            body, closing = None, text.find(CALL_CLOSES, opening.end())
        if closing < 0:
            break
        after = closing + len(CALL_CLOSES)
        calls.append(_parsed_call(body, raw=text[opening.start() : after]))
        well_formed = calls[-1].status is ToolCallParseStatus.OK
        kept.append(text[position : opening.start() if well_formed else after])
        position = after
    return "".join([*kept, text[position:]]), calls


def _json_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at `start` and where it ends, so that `</tool_call>` in one of its strings ends no call."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


def _parsed_call(body: Any, *, raw: str) -> ParsedToolCall:
    if not isinstance(body, dict) or not isinstance(body.get("name"), str) or not isinstance(body.get("arguments"), dict):
        return ParsedToolCall(raw=raw, status=ToolCallParseStatus.INVALID_JSON)
    return ParsedToolCall(raw=raw, name=body["name"], arguments=body["arguments"])
