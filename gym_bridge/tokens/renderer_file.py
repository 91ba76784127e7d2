"""`renderer.json` in a model's directory: how its training rendered for it, so that nobody has to say it again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import Field, ValidationError
from renderers.base import MODEL_RENDERER_MAP

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError

RENDERER_FILE = "renderer.json"


class RendererChoice(StrictModel):
    """What is known of a model's renderer."""

    renderer: str | None = None
    """A family's name or a dotted path; None: as the chat template tells, or the model's name."""
    chat_template_kwargs: dict[str, Any] = Field(default={})
    """Fields of the renderer's config, such as `enable_thinking`."""
    model: str | None = None
    """Name on the hub of the model that all began with, where a renderer knows it."""


def renderer_choice(directory: Path, *, name: str | None = None, options: Mapping[str, Any] = {}) -> RendererChoice:
    """`name` and `options`, and for what they leave open what the files in `directory` tell.

    Raises ConfigError for a `renderer.json` of another form, and for one that alone names code of its own.
    """
    told = _told(directory)
    if name is None and ":" in (told.renderer or ""):
        raise ConfigError(
            f"{directory / RENDERER_FILE} names code, {told.renderer}, that would run here; "
            "if you trust it, name it yourself as the renderer"
        )
    model = _hub_name(directory) or told.model
    if name is not None and name != told.renderer:
        return RendererChoice(renderer=name, chat_template_kwargs=dict(options), model=model)
    return RendererChoice(renderer=told.renderer, chat_template_kwargs={**told.chat_template_kwargs, **options}, model=model)


def renderer_file(choice: RendererChoice) -> dict[str, bytes]:
    """Name and content of the file that tells this again; nothing where there is nothing to tell."""
    known = choice.model_dump(exclude_defaults=True)
    return {RENDERER_FILE: orjson.dumps(known, option=orjson.OPT_INDENT_2)} if known else {}


def _told(directory: Path) -> RendererChoice:
    file = directory / RENDERER_FILE
    if not file.exists():
        return RendererChoice()
    try:
        return RendererChoice.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise ConfigError(f"{file}: {reason}; expected a renderer's name and its chat_template_kwargs") from None


def _hub_name(directory: Path) -> str | None:
    """`Qwen/Qwen3-8B` for its snapshot in the hub's cache and for a directory of that name, where a renderer knows it."""
    cached = [part.removeprefix("models--").replace("--", "/", 1) for part in directory.parts if part.startswith("models--")]
    return next((one for one in (*cached, "/".join(directory.parts[-2:])) if one in MODEL_RENDERER_MAP), None)
