"""Renderers of the `renderers` package, and users' own, as the house's rooms need them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import jinja2
from renderers import ParsedResponse, RenderedTokens

from gym_bridge.errors import DataError
from gym_bridge.schemas.chat import Message
from gym_bridge.tokens.completion_mask import completion_mask
from gym_bridge.tokens.guarded_tokenizer import GuardedTokenizer

GPT_OSS = "gpt-oss"
NAMING = (GPT_OSS, "gemma4", "inkling")
"""Families that write a tool's name before its output. Of the others some would write it where their templates do not."""

Tools = Sequence[dict[str, Any]]


class FamilyRenderer:
    """A renderer of the `renderers` package, or one of a user that keeps to its protocol, as the house's rooms need it.

    Control tokens in messages and tools stay plain text. What the renderer cannot do is a DataError that names it.
    """

    def __init__(
        self,
        name: str,
        renderer: Any,
        tokenizer: GuardedTokenizer,
        *,
        identity: Mapping[str, Any] = {},
        unthinking: Any = None,
        stops: Sequence[int] = (),
    ):
        """`identity` tells it from a renderer that may write the same conversation otherwise, in plain values; `unthinking` is the
        renderer with its thinking turned off, where it has that; `stops` are more ids that end answers."""
        self.name, self.tokenizer, self.identity = name, tokenizer, identity
        self._renderer, self._unthinking, self._stops = renderer, unthinking, tuple(stops)

    def render(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> RenderedTokens:
        """The whole conversation; `sampled_mask` is empty where the family's renderer does not know.

        A last answer that the family ends with the role of the next message (GLM) gets that token too: the model samples it.
        """
        guarded, tools = self._messages(messages), self._guard(tools)
        with self._told("render the conversation"):
            rendered = self._renderer.render(guarded, tools=tools, add_generation_prompt=add_generation_prompt)
            if ":" in self.name or len(rendered.sampled_mask) != len(rendered.token_ids):
                return rendered
            if not add_generation_prompt and messages[-1]["role"] == "assistant":
                rendered = self._ended(rendered, guarded, tools)
            mask = completion_mask(rendered, openings=self._openings, stops=self.get_stop_token_ids())
            return replace(rendered, sampled_mask=mask)

    def render_ids(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> list[int]:
        """Token ids of `render`."""
        if not (add_generation_prompt or ":" in self.name or not messages or messages[-1]["role"] != "assistant"):
            return self.render(messages, tools=tools).token_ids
        guarded, tools = self._messages(messages), self._guard(tools)
        with self._told("render the conversation"):
            return self._renderer.render_ids(guarded, tools=tools, add_generation_prompt=add_generation_prompt)

    def prompts(self, messages: Sequence[Message], *, tools: Tools | None = None) -> list[list[int]]:
        """What may stand before the answer to `messages`: the prompt, and the one of thinking turned off where there is such."""
        guarded, tools = self._messages(messages), self._guard(tools)
        renderers = [one for one in (self._renderer, self._unthinking) if one is not None]
        with self._told("render the conversation"):
            return [one.render_ids(guarded, tools=tools, add_generation_prompt=True) for one in renderers]

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: Sequence[int],
        previous_completion_ids: Sequence[int],
        new_messages: Sequence[Message],
        *,
        tools: Tools | None = None,
    ) -> RenderedTokens | None:
        """The next prompt; None where the family has no bridge, or none from here."""
        guarded, tools = self._messages(new_messages), self._guard(tools)
        with self._told("extend the conversation"):
            return self._renderer.bridge_to_next_turn(
                list(previous_prompt_ids), list(previous_completion_ids), guarded, tools=tools
            )

    def parse_response(
        self, token_ids: Sequence[int], *, tools: Tools | None = None, prompt_ids: Sequence[int] | None = None
    ) -> ParsedResponse:
        """Reasoning, text and tool calls of sampled ids."""
        prompt = None if prompt_ids is None else list(prompt_ids)
        with self._told("read the answer"):
            return self._renderer.parse_response(list(token_ids), tools=tools and list(tools), prompt_ids=prompt)

    @property
    def is_prefix_stable(self) -> bool:
        """Whether a conversation that goes on keeps the tokens of its answers so far, whatever its messages hold."""
        return bool(getattr(self._renderer, "is_prefix_stable", False))

    def get_stop_token_ids(self) -> list[int]:
        """Ids that end an answer."""
        own = self._renderer.get_stop_token_ids()
        return [*own, *(one for one in self._stops if one not in own)]

    @cached_property
    def _openings(self) -> list[list[int]]:
        """Ids with which a prompt opens an answer, as the renderer is set and with its thinking turned off."""
        renderers = [one for one in (self._renderer, self._unthinking) if one is not None]
        asked = [{"role": "user", "content": "?"}]
        return [one.render_ids(asked, add_generation_prompt=True)[len(one.render_ids(asked)) :] for one in renderers]

    def _ended(self, rendered: RenderedTokens, messages: list[Any], tools: Any) -> RenderedTokens:
        """`rendered` with the token that ends its last answer, where the template leaves that to the next message."""
        last, stops = len(messages) - 1, self.get_stop_token_ids()
        if _last_sampled(rendered, last) in stops:
            return rendered
        follower = {"role": "tool" if messages[last].get("tool_calls") else "user", "content": ""}
        end = _last_sampled(self._renderer.render([*messages, follower], tools=tools), last)
        if end is None or end not in stops:
            return rendered
        return replace(
            rendered,
            token_ids=[*rendered.token_ids, end],
            message_indices=[*rendered.message_indices, last],
            sampled_mask=[*rendered.sampled_mask, True],
            is_content=[*rendered.is_content, True] if rendered.is_content else [],
        )

    def _messages(self, messages: Sequence[Message]) -> Any:
        named = self.name in NAMING or ":" in self.name
        dropped = () if named else (("tool", "name"),)
        return self._guard([{key: one[key] for key in one if (one["role"], key) not in dropped} for one in messages])

    def _guard(self, value: Sequence[Any] | None) -> Any:
        if value is None or self.name == GPT_OSS:  # which reads no control tokens in text
            return value and list(value)
        return self.tokenizer.guard(list(value))

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, jinja2.TemplateError) as error:
            raise DataError(f"renderer {self.name!r} cannot {doing}: {type(error).__name__}: {error}") from error


def _last_sampled(rendered: RenderedTokens, message: int) -> int | None:
    """The last token that was sampled for a message."""
    tokens = zip(rendered.token_ids, rendered.message_indices, rendered.sampled_mask, strict=True)
    return next((token for token, index, sampled in reversed([*tokens]) if sampled and index == message), None)
