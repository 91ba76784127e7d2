"""Renderers: conversations to token ids and back, one a model family.

ChatML with tools is the house's own (`chatml`). The others come from the `renderers` package, or are a user's own, named by a
dotted path. None of them needs transformers; `gpt-oss` fetches its vocabulary from the network when it is first made, unless the
environment's `TIKTOKEN_ENCODINGS_BASE` names a directory with `o200k_base.tiktoken`; `default` renders for its models without.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson
from pydantic import ValidationError
from renderers import ParsedResponse, RenderedTokens, config_from_name, create_renderer
from renderers import Tokenizer as TokenizerProtocol
from renderers.base import MODEL_RENDERER_MAP

from gym_bridge.config import load_object
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.io.digests import digest_file
from gym_bridge.schemas.chat import Message
from gym_bridge.tokens.chatml import ChatMLRenderer, speaks_chatml
from gym_bridge.tokens.family_renderer import FamilyRenderer, Tools
from gym_bridge.tokens.guarded_tokenizer import GuardedTokenizer
from gym_bridge.tokens.renderer_file import renderer_choice
from gym_bridge.tokens.template_renderer import TemplateRenderer
from gym_bridge.tokens.tokenizer import Tokenizer

CHATML, DEFAULT = "chatml", "default"
RENDERER_NAMES = (CHATML, DEFAULT, *sorted({*MODEL_RENDERER_MAP.values()}))
"""`default` writes with the model's own chat template, reads no tool calls unless told how, has no bridge and no masks."""

THINKS = "enable_thinking"


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


def load_renderer(directory: Path, *, name: str | None = None, options: Mapping[str, Any] = {}) -> Renderer:
    """The renderer for the model or tokenizer in `directory`.

    `name` is one of `RENDERER_NAMES` or a dotted path `my_package.module:MyRenderer` to a class that takes a tokenizer (and,
    where it has a `config_class`, one of those); without a name its `renderer.json`, its chat template or its hub name tells.
    `options` are fields of the renderer's config, such as `enable_thinking`. Raises ConfigError when none is known or fits.
    """
    choice = renderer_choice(directory, name=name, options=options)
    name, options = choice.renderer, choice.chat_template_kwargs
    if name is None:
        name = CHATML if speaks_chatml(Tokenizer(directory)) else MODEL_RENDERER_MAP.get(choice.model or "")
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
    tokenizer.name_or_path = choice.model or tokenizer.name_or_path  # some families differ between their models
    renderer = _made(name, tokenizer, options)
    identity = {"name": name, "options": options, "model": choice.model, "code": _digest_code(name)}
    if name == DEFAULT:
        return TemplateRenderer(name, renderer, tokenizer, identity=identity, stops=_generation_ends(directory))
    unthinking = _made(name, tokenizer, {**options, THINKS: False}) if _thinks(renderer, name) else None
    return FamilyRenderer(name, renderer, tokenizer, identity=identity, unthinking=unthinking)


def _made(name: str, tokenizer: GuardedTokenizer, options: Mapping[str, Any]) -> Any:
    from openai_harmony import HarmonyError  # gpt-oss is the one family whose vocabulary is not in `tokenizer.json`

    from gym_bridge.tokens.corrected_families import CORRECTED

    own = load_object(name) if ":" in name else None
    try:
        if own is None:
            defaults: Any = config_from_name(name)
            config: Any = type(defaults).model_validate({"name": name, **options})
            corrected: Any = CORRECTED.get(name)
            return corrected(tokenizer, config) if corrected else create_renderer(tokenizer, config)
        config_class = getattr(own, "config_class", None)
        return own(tokenizer, config_class(**options)) if config_class else own(tokenizer, **options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"renderer {name!r}: {wrong}") from error
    except (AssertionError, TypeError, ValueError, HarmonyError) as error:
        raise ConfigError(f"renderer {name!r} does not fit {tokenizer.name_or_path}: {error}") from error


def _digest_code(name: str) -> str | None:
    """Of the module of a user's own renderer: what it writes changes with it."""
    file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None) if ":" in name else None
    return digest_file(Path(file)) if file else None


def _thinks(renderer: Any, name: str) -> bool:
    config: Any = getattr(renderer, "config", None)
    return ":" not in name and THINKS in type(config).model_fields and getattr(config, THINKS) is not False


def _generation_ends(directory: Path) -> list[int]:
    """Ids that end an answer as `generation_config.json` tells, where there is one: often more than the tokenizer's.

    Raises ConfigError for a file that is no JSON.
    """
    file = directory / "generation_config.json"
    try:
        ends = orjson.loads(file.read_bytes()).get("eos_token_id") if file.exists() else None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{file}: no JSON: {error.msg}") from None
    return [one for one in (ends if isinstance(ends, list) else [ends]) if isinstance(one, int)]
