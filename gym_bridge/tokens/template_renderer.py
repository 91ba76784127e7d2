"""The renderer that writes with a model's own chat template, whatever that says."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

import jinja2
from renderers import RenderedTokens

from gym_bridge.errors import DataError
from gym_bridge.schemas.chat import Message
from gym_bridge.tokens.family_renderer import FamilyRenderer, Tools


class TemplateRenderer(FamilyRenderer):
    """The text of the chat template. It tells no mask: what an answer is shows where its prompt ends.

    A conversation that ends with an answer stands as its prompt did when the answer was given, also where the template leaves
    earlier reasoning out as soon as the answer is there (GPT-OSS).
    """

    def render(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> RenderedTokens:
        """The whole conversation, without a mask. Raises DataError for calls that the template does not write."""
        guarded, tools = self._messages(messages), self._guard(tools)
        with self._told("render the conversation"):
            ids = self._ids(guarded, tools, asks=add_generation_prompt)
            if not add_generation_prompt:
                self._check_calls(guarded, tools, ids)
                ids = self._as_prompted(guarded, tools, ids)
        return RenderedTokens(token_ids=ids, message_roles=[message["role"] for message in messages])

    def render_ids(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> list[int]:
        """Token ids of `render`."""
        return self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt).token_ids

    def _messages(self, messages: Sequence[Message]) -> Any:
        kept = super()._messages(messages)
        if "message.thinking" not in (self.tokenizer.chat_template or ""):  # what some templates call reasoning
            return kept
        return [{**one, "thinking": one["reasoning_content"]} if one.get("reasoning_content") else one for one in kept]

    def _ids(self, messages: list[Any], tools: Any, *, asks: bool) -> list[int]:
        return self._renderer.render_ids(messages, tools=tools, add_generation_prompt=asks)

    def _check_calls(self, messages: list[Any], tools: Any, ids: list[int]) -> None:
        """Raises DataError where the last answer with calls would read the same without the last of them."""
        calling = next((number for number in reversed(range(len(messages))) if messages[number].get("tool_calls")), None)
        if calling is None:
            return
        *before, answer = messages[: calling + 1]
        fewer = {key: answer[key] for key in answer if key != "tool_calls"}
        if len(answer["tool_calls"]) > 1:
            fewer["tool_calls"] = answer["tool_calls"][:-1]
        with suppress(jinja2.TemplateError):  # of a template that wants a call there
            written = ids if calling == len(messages) - 1 else self._ids([*before, answer], tools, asks=False)
            if self._ids([*before, fewer], tools, asks=False) == written:
                raise DataError(f"message {calling}: the model's chat template does not write all of its tool calls")

    def _as_prompted(self, messages: list[Any], tools: Any, ids: list[int]) -> list[int]:
        """The prompt of the last answer and the answer. `ids` where the template does not let the two be told apart."""
        *asked, answer = messages or [{"role": ""}]
        if not asked or answer["role"] != "assistant":
            return ids
        prompt = self._ids(asked, tools, asks=True)
        if ids[: len(prompt)] == prompt:
            return ids
        opening = prompt[len(self._ids(asked, tools, asks=False)) :]
        end = _num_shared(ids, self._ids([*asked, _another(answer)], tools, asks=False))
        starts = [at for at in range(end - len(opening) + 1) if ids[at : at + len(opening)] == opening]
        return [*prompt, *ids[starts[-1] + len(opening) :]] if opening and starts else ids


def _another(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer of the same parts whose texts begin otherwise."""
    keys = [key for key in ("content", "reasoning_content", "thinking") if isinstance(answer.get(key), str) and answer[key]]
    return answer | {key: ("#" if answer[key].startswith("~") else "~") + answer[key] for key in keys}


def _num_shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))
