"""How many tokens NeMo RL makes of a conversation: rendered message by message, each piece tokenized on its own.

NeMo RL renders the messages up to each turn, takes what is new against the render before, and tokenizes that piece alone; a
beginning and an end token are added where they are missing. The sum can differ from the tokens of the whole text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.tokens.guarded_tokenizer import GuardedTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationLength:
    """Tokens of one conversation."""

    num_tokens: int
    rewritten: bool
    """The template wrote an earlier turn anew, as those do that drop old reasoning: NeMo RL then repeats text in the tokens."""


class LengthMeter:
    """Measures with a model's tokenizer and its own chat template. Raises ConfigError for a model without one."""

    def __init__(self, directory: Path):
        self._tokenizer = GuardedTokenizer(directory)
        if not self._tokenizer.chat_template:
            raise ConfigError(f"{directory}: the tokenizer has no chat template; NeMo RL's chat_template 'default' means that one")

    def conversation(self, messages: Sequence[Any], *, tools: list[Any] | None = None) -> ConversationLength:
        """Length of a conversation that is trained on. Raises DataError when the template cannot render it."""
        pieces, before, rewritten = [], "", False
        for end in range(1, len(messages) + 1):
            text = self._text(messages[:end], tools=tools)
            common = _common_length(before, text)
            rewritten |= common < len(before)
            pieces.append(text[common:])
            before = text
        special = self._tokenizer.special_tokens
        beginning, ending = special.get("bos_token", ""), special.get("eos_token", "")
        if not pieces[0].startswith(beginning):
            pieces[0] = beginning + pieces[0]
        pieces[-1] = pieces[-1].rstrip("\n")
        if not pieces[-1].endswith(ending):
            pieces[-1] += ending
        return ConversationLength(num_tokens=sum(len(self._tokenizer.encode(piece)) for piece in pieces), rewritten=rewritten)

    def prompt(self, messages: Sequence[Any], *, tools: list[Any] | None = None) -> int:
        """Tokens of a prompt that the model answers, with the header of its answer. Raises DataError as `conversation`."""
        return len(self._tokenizer.encode(self._text(messages, tools=tools, add_generation_prompt=True)))

    @property
    def dated(self) -> bool:
        """True when the template writes today's date."""
        return "strftime_now" in (self._tokenizer.chat_template or "")

    def _text(self, messages: Sequence[Any], **variables: Any) -> str:
        try:
            return self._tokenizer.render_chat(list(messages), **variables)
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise DataError(f"the model's chat template cannot render it: {error}") from error


def _common_length(before: str, text: str) -> int:
    """How many characters the two begin with alike."""
    if text.startswith(before):
        return len(before)
    return next((place for place, (one, other) in enumerate(zip(before, text, strict=False)) if one != other), len(text))
