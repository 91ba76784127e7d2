r"""The option that a reply chooses, read as NeMo Gym's mcqa server reads it, in time linear in the reply.

- strict_single_letter_boxed: the first `\boxed{...}` with one capital letter and no other letter in it
- lenient_boxed: that, or the one option whose text stands within the first box
- lenient_answer_colon: what follows the first `answer:`, a letter alone or the text of an option, with or without `\text{}`
- lenient_answer_colon_md: the letter that follows `Answer:`, in bold or not

A row's own regular expressions come before the mode; see `by_patterns`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

GradingMode = Literal["strict_single_letter_boxed", "lenient_boxed", "lenient_answer_colon", "lenient_answer_colon_md"]
Options = Sequence[Mapping[str, str | None]]
"""Options in order, each a letter and its text; without a text it is none."""

PATTERN_TIMEOUT_S = 1.0
"""For one regular expression of a row on one reply."""

_STRICT_BOX = re.compile(r"\\boxed\{[^A-Za-z]*+([A-Z])[^A-Za-z}]*+\}")
_ANSWER_COLON = re.compile(r"(?i)answer\s*+:\s*(.+)")
_ANSWER_COLON_MD = re.compile(r"(?i)[*_]{0,2}answer[*_]{0,2}\s*+:[*_\s]{0,2}\s*([A-Z])(?![a-zA-Z0-9])")
_BOX, _TEXT = r"\boxed{", r"\text{"
_LETTERS = str.maketrans(
    {
        **dict(zip("أبجد", "ABCD", strict=True)),
        **dict(zip("অবডঢ", "ABCD", strict=True)),
        **dict(zip("ＡＢＣＤ", "ABCD", strict=True)),
    }
)


def letters_of(options: Options) -> set[str]:
    """The letters that may be chosen."""
    return {letter.upper() for letter, _ in _with_text(options)}


def by_mode(text: str, options: Options, mode: GradingMode) -> str | None:
    """The letter that a reply without blanks around it chooses, or None."""
    if mode == "lenient_answer_colon":
        return _after_colon(text, options)
    if mode == "lenient_answer_colon_md":
        return _allowed(_ANSWER_COLON_MD.search(text), options)
    letter = _allowed(_STRICT_BOX.search(text), options)
    return _boxed_text(text, options) if letter is None and mode == "lenient_boxed" else letter


def by_patterns(text: str, options: Options, patterns: Iterable[str]) -> str | None:
    """The letter that the last match of a row's own patterns gives, of the first pattern that gives one, or None.

    A letter counts though no option has it. A pattern that is none, has two groups or takes longer than PATTERN_TIMEOUT_S
    gives none.
    """
    return next((letter for pattern in patterns if (letter := _by_pattern(text, options, pattern)) is not None), None)


def _by_pattern(text: str, options: Options, pattern: str) -> str | None:
    import regex  # unlike re it can be told to give up: the model writes the text that a pattern may take for ever on

    try:
        found = regex.findall(pattern, text, regex.IGNORECASE, concurrent=True, timeout=PATTERN_TIMEOUT_S)
    except (regex.error, TimeoutError):
        return None
    if not found or not isinstance(found[-1], str):
        return None
    captured = _in_latin_letters(found[-1].strip()).upper()
    if len(captured) == 1 and captured.isalpha():
        return captured
    return _with_the_text(captured, options)


def _in_latin_letters(text: str) -> str:
    return text.translate(_LETTERS).strip()


def _with_text(options: Options) -> list[tuple[str, str]]:
    pairs = (pair for option in options for pair in option.items())
    return [(letter, text) for letter, text in pairs if len(letter) == 1 and letter.isalpha() and text is not None]


def _allowed(match: re.Match[str] | None, options: Options) -> str | None:
    letter = match.group(1).upper() if match else None
    return letter if letter in letters_of(options) else None


def _boxed_text(text: str, options: Options) -> str | None:
    start = text.find(_BOX)
    end = text.find("}", start)
    if start < 0 or end < 0:
        return None
    boxed = _plain(text[start + len(_BOX) : end])
    letters = {letter.upper() for letter, option in _with_text(options) if _plain(option) and _plain(option) in boxed}
    return letters.pop() if len(letters) == 1 else None


def _after_colon(text: str, options: Options) -> str | None:
    match = _ANSWER_COLON.search(text)
    if match is None:
        return None
    candidate = _without_text_command(match.group(1)).strip()
    if len(candidate) == 1 and candidate.isalpha() and candidate.upper() in letters_of(options):
        return candidate.upper()
    return _with_the_text(candidate, options)


def _with_the_text(candidate: str, options: Options) -> str | None:
    wanted = _plain(candidate)
    return next((letter.upper() for letter, option in _with_text(options) if _plain(option) == wanted), None)


def _without_text_command(text: str) -> str:
    r"""`text` without the `\text{...}` around it, however often; by position, for each copy would cost its length."""
    start, end = 0, len(text)
    while text.startswith(_TEXT, start, end) and text.endswith("}", start, end):
        start, end = start + len(_TEXT), end - 1
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
    return text[start:end]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
