"""The tokenizer that renderers of other model families get: their own text may hold control tokens, a message's may not."""

import json
import secrets
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gym_bridge.tokens.tokenizer import Tokenizer


class GuardedTokenizer(Tokenizer):
    """Reads control tokens in text, as a family's templates expect, but for text that `guard` has marked.

    The mark is drawn anew in every process, so that no text can hold it, and is plain ASCII, so that it survives JSON.
    """

    def __init__(self, directory: Path):
        super().__init__(directory)
        self._reading = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        added = self._reading.get_added_tokens_decoder().values()
        self._control = tuple(token.content for token in added if token.special)
        self._mark = f"~{secrets.token_hex(16)}~"

    def guard(self, value: Any) -> Any:
        """`value`, a tree of JSON, in whose strings every control token is marked as the plain text that it is."""
        if isinstance(value, str):
            return self._guarded(value) if any(token in value for token in self._control) else value
        if isinstance(value, dict):
            return {self.guard(key): self.guard(one) for key, one in value.items()}
        return [self.guard(one) for one in value] if isinstance(value, list) else value

    def __call__(self, text: str, *, add_special_tokens: bool = False, return_offsets_mapping: bool = False) -> dict[str, Any]:
        """Ids and, for each, where its characters begin and end in `text`, as renderers ask for them."""
        pieces = list(self._pieces(text))
        spans = [(start + begin, start + end) for start, piece in pieces for begin, end in piece.offsets]
        return {"input_ids": [token for _, piece in pieces for token in piece.ids], "offset_mapping": spans}

    def apply_chat_template(
        self, messages: list[Any], *, tools: list[Any] | None = None, add_generation_prompt: bool = False, **variables: Any
    ) -> list[int]:
        """Ids of the conversation as the model's own chat template writes it. Raises jinja2.TemplateError."""
        return self.encode(self.render_chat(messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables))

    def render_chat(
        self, messages: list[Any], *, tools: list[Any] | None = None, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """Text of the conversation as the model's own chat template writes it. Raises jinja2.TemplateError."""
        known = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return self._template.render(**self.special_tokens, **variables, **known)

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self.chat_template or "")

    def _encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; what is marked gets those of plain text."""
        return [token for _, piece in self._pieces(text) for token in piece.ids]

    def _guarded(self, text: str) -> str:
        """Each control token between two marks, the longest first where they overlap."""
        for token in sorted(self._control, key=len, reverse=True):
            parts = text.split(self._mark)
            parts[::2] = [part.replace(token, self._mark + token + self._mark) for part in parts[::2]]
            text = self._mark.join(parts)
        return text

    def _pieces(self, text: str) -> Iterator[tuple[int, tokenizers.Encoding]]:
        start = 0
        for number, piece in enumerate(text.split(self._mark)):
            tokenizer = self._tokenizer if number % 2 else self._reading
            yield start, tokenizer.encode(piece, add_special_tokens=False)
            start += len(piece) + len(self._mark)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as chat templates expect it: nothing escaped for HTML, which jinja2's own filter does."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
