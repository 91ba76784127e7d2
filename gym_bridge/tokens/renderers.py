"""Renderers: conversations to token ids and back, one a model family.

ChatML with tools is the house's own (`chatml`). The others come from the `renderers` package, or are a user's own, named by a
dotted path. None of them needs transformers; `gpt-oss` fetches its vocabulary from the network when it is first made.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jinja2
from pydantic import ValidationError
from renderers import ParsedResponse, RenderedTokens, config_from_name, create_renderer
from renderers import Tokenizer as TokenizerProtocol
from renderers.base import MODEL_RENDERER_MAP

from gym_bridge.config import load_object
from gym_bridge.errors import ConfigError, DataError, nearest
from gym_bridge.schemas.chat import Message
from gym_bridge.tokens.chatml import ChatMLRenderer, speaks_chatml
from gym_bridge.tokens.guarded_tokenizer import GuardedTokenizer
from gym_bridge.tokens.tokenizer import Tokenizer

CHATML, DEFAULT = "chatml", "default"
RENDERER_NAMES = (CHATML, DEFAULT, *sorted({*MODEL_RENDERER_MAP.values()}))
"""`default` writes with the model's own chat template, reads no tool calls unless told how, and has no bridge."""

NAMING = ("gpt-oss", "gemma4", "inkling")
"""Families that write a tool's name before its output. Of the others some would write it where their templates do not."""

Tools = Sequence[dict[str, Any]]


class Renderer(Protocol):
    """Messages to token ids, and sampled ids back to a message. Raises DataError for what it cannot render."""

    @property
    def tokenizer(self) -> TokenizerProtocol:
        """Of the model that this renders for."""
        ...

    def render(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> RenderedTokens:
        """The whole conversation; `sampled_mask` is True on what the model itself would have written, empty where unknown."""
        ...

    def render_ids(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> list[int]:
        """Token ids of `render`."""
        ...

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: Sequence[int],
        previous_completion_ids: Sequence[int],
        new_messages: Sequence[Message],
        *,
        tools: Tools | None = None,
    ) -> RenderedTokens | None:
        """The next prompt, which keeps prompt and completion token for token; None where this family cannot."""
        ...

    def parse_response(
        self, token_ids: Sequence[int], *, tools: Tools | None = None, prompt_ids: Sequence[int] | None = None
    ) -> ParsedResponse:
        """Reasoning, text and tool calls of sampled ids."""
        ...

    def get_stop_token_ids(self) -> list[int]:
        """Ids that end an answer."""
        ...


class FamilyRenderer:
    """A renderer of the `renderers` package, or one of a user that keeps to its protocol, as the house's rooms need it.

    Control tokens in messages and tools stay plain text. What the renderer cannot do is a DataError that names it.
    """

    def __init__(self, name: str, renderer: Any, tokenizer: GuardedTokenizer):
        self.name, self.tokenizer = name, tokenizer
        self._renderer = renderer

    def render(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> RenderedTokens:
        """The whole conversation; `sampled_mask` is empty where the family's renderer does not know."""
        guarded, tools = self._messages(messages), self._guard(tools)
        with self._told("render the conversation"):
            return self._renderer.render(guarded, tools=tools, add_generation_prompt=add_generation_prompt)

    def render_ids(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> list[int]:
        """Token ids of `render`."""
        guarded, tools = self._messages(messages), self._guard(tools)
        with self._told("render the conversation"):
            return self._renderer.render_ids(guarded, tools=tools, add_generation_prompt=add_generation_prompt)

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

    def get_stop_token_ids(self) -> list[int]:
        """Ids that end an answer."""
        return self._renderer.get_stop_token_ids()

    def _messages(self, messages: Sequence[Message]) -> Any:
        if self.name in NAMING or ":" in self.name:
            return self._guard(messages)
        return self._guard([{key: one[key] for key in one if (one["role"], key) != ("tool", "name")} for one in messages])

    def _guard(self, value: Sequence[Any] | None) -> Any:
        return None if value is None else self.tokenizer.guard(list(value))

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, jinja2.TemplateError) as error:
            raise DataError(f"renderer {self.name!r} cannot {doing}: {type(error).__name__}: {error}") from error


def load_renderer(directory: Path, *, name: str | None = None, options: Mapping[str, Any] = {}) -> Renderer:
    """The renderer for the model or tokenizer in `directory`.

    `name` is one of `RENDERER_NAMES` or a dotted path `my_package.module:MyRenderer` to a class that takes a tokenizer (and,
    where it has a `config_class`, one of those); without a name the model's chat template and hub name tell. `options` are
    fields of the renderer's config, such as `enable_thinking`. Raises ConfigError when none is known, or it does not fit.
    """
    model = _hub_name(directory)
    if name is None:
        name = CHATML if speaks_chatml(Tokenizer(directory)) else MODEL_RENDERER_MAP.get(model or "")
    if name is None:
        known = ", ".join(RENDERER_NAMES)
        raise ConfigError(
            f"{directory}: neither its chat template nor its name tells how to render for it; name a renderer: {known}"
        )
    if ":" not in name and name not in RENDERER_NAMES:
        raise ConfigError(f"unknown renderer {name!r}{nearest(name, RENDERER_NAMES)}, or a dotted path package.module:Class")
    if name == CHATML:
        if options:
            raise ConfigError(f"renderer {CHATML!r} has no option {next(iter(options))!r}; it has none at all")
        return ChatMLRenderer(Tokenizer(directory))
    tokenizer = GuardedTokenizer(directory)
    if name == DEFAULT and not tokenizer.chat_template:
        others = ", ".join(one for one in RENDERER_NAMES if one != DEFAULT)
        raise ConfigError(f"{directory}: the model has no chat template, so name its renderer: {others}")
    tokenizer.name_or_path = model or tokenizer.name_or_path  # some families differ between their models
    return FamilyRenderer(name, _made(name, tokenizer, options), tokenizer)


def _made(name: str, tokenizer: GuardedTokenizer, options: Mapping[str, Any]) -> Any:
    from openai_harmony import HarmonyError  # gpt-oss is the one family whose vocabulary is not in `tokenizer.json`

    own = load_object(name) if ":" in name else None
    try:
        if own is None:
            defaults: Any = config_from_name(name)
            return create_renderer(tokenizer, type(defaults).model_validate({"name": name, **options}))
        config_class = getattr(own, "config_class", None)
        return own(tokenizer, config_class(**options)) if config_class else own(tokenizer, **options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"renderer {name!r}: {wrong}") from error
    except (AssertionError, TypeError, ValueError, HarmonyError) as error:
        raise ConfigError(f"renderer {name!r} does not fit {tokenizer.name_or_path}: {error}") from error


def _hub_name(directory: Path) -> str | None:
    """`Qwen/Qwen3-8B` for its snapshot in the hub's cache and for a directory of that name, where a renderer knows it."""
    cached = [part.removeprefix("models--").replace("--", "/", 1) for part in directory.parts if part.startswith("models--")]
    return next((one for one in (*cached, "/".join(directory.parts[-2:])) if one in MODEL_RENDERER_MAP), None)
