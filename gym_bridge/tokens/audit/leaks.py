"""Answers that stand in the prompt."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.rollouts import Row
from gym_bridge.tokens.audit.texts import message_text

MIN_REFERENCE = 5
"""Letters of a reference answer. A shorter one, such as a number or the letter of a choice, stands in prompts by chance."""
MIN_ANSWER = 20
"""Letters of an answer's text: shorter ones repeat words of their question."""


def leaked_answer(row: Row, prompt: Sequence[Message], answer: str | None, answer_field: str) -> str | None:
    """What of the answer stands in the prompt, word by word but for case and blanks; None when nothing does."""
    shown = None
    for what, text, least in _answers(row, answer, answer_field):
        wanted = _plain(text)
        if len(wanted.replace(" ", "")) < least:
            continue
        shown = _plain(" ".join(map(message_text, prompt))) if shown is None else shown
        if wanted in shown and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", shown):
            return f"the prompt holds {what}: {text[:80]!r}"
    return None


def _answers(row: Row, answer: str | None, answer_field: str) -> Iterator[tuple[str, str, int]]:
    value: Any = row
    for name in answer_field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str | int | float) and not isinstance(one, bool):
            yield f"the reference answer ({answer_field})", str(one), MIN_REFERENCE
    if answer is not None:
        yield "the final answer", answer, MIN_ANSWER


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!?")
