"""Text of models and tools as a page shows it: as text. What would be invisible, or would turn other text around, is named."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

MAX_CHARACTERS = 20_000
"""Of one text, before a reader asks for the whole."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but for tab and line feed, marks of direction, characters without a width, lone surrogates, tags."""
_NAMES = {"\x00": "NUL", "\x07": "BEL", "\x08": "BS", "\x1b": "ESC", "\r": "CR", "\x7f": "DEL"}


def shown(text: object) -> Markup:
    """`text` escaped, with a visible mark for each character that cannot be seen: `ESC`, `U+202E`."""
    return Markup(_HIDDEN.sub(_mark, str(escape(str(text)))))


def one_line(text: object, limit: int = 160) -> Markup:
    """The beginning of `text` on one line."""
    head = str(text)[: 4 * limit].split()
    joined = " ".join(head)
    return shown(joined if len(joined) <= limit else f"{joined[:limit]}…")


def plain(text: object) -> str:
    """For attributes and titles: marks in brackets."""
    return _HIDDEN.sub(lambda found: f"[{_name(found)}]", str(text))


@dataclass(frozen=True, slots=True)
class Cut:
    """A text, or its beginning."""

    pieces: Sequence[str]
    """One after the other they are the text. A browser lays out pieces as they are seen; a block of megabytes takes it minutes."""
    num_left_out: int = 0
    """Characters that are not here."""


def cut(text: str, *, whole: bool = False) -> Cut:
    """The first MAX_CHARACTERS of a text, or all of it."""
    if whole or len(text) <= MAX_CHARACTERS:
        return Cut(list(_pieces(text)))
    return Cut([text[:MAX_CHARACTERS]], len(text) - MAX_CHARACTERS)


def _pieces(text: str) -> Iterator[str]:
    """Each ends with a line, else with a word, where one ends in its second half."""
    begin = 0
    while len(text) - begin > MAX_CHARACTERS:
        middle, end = begin + MAX_CHARACTERS // 2, begin + MAX_CHARACTERS
        at = max(text.rfind("\n", middle, end), 0) or max(text.rfind(" ", middle, end), 0) or end - 1
        yield text[begin : at + 1]
        begin = at + 1
    yield text[begin:]


def _mark(found: re.Match[str]) -> str:
    return f'<i class="mark">{_name(found)}</i>'


def _name(found: re.Match[str]) -> str:
    character = found.group()
    return _NAMES.get(character) or f"U+{ord(character):04X}"
