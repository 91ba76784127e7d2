"""The one number that a reply gives, or None: the strict reading of the servers whose answers are numbers.

A number is `49`, `-49`, `1,234` or `49.0`, in ASCII digits, on its own: not part of a longer word such as `49th`, `x49`,
`4e1`, `49%`, `49/2`, `40-49`, `049` or `.49`. A reply that holds a word with digits in it that is no number is not read at
all; neither is one longer than MAX_CHARACTERS, nor one with two different numbers. Number words are not read.

In a reply with `=`, the number after the last `=` counts, if all numbers before it are the task's operands or the same
number again: `47 + 2 = 49. So it is 49` reads 49; `48 = 49` does not.
"""

import re
import unicodedata
from collections.abc import Iterable

MAX_CHARACTERS = 10_000

_WORD = re.compile(r"[\w.,%/-]+")
_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*)(\.[0-9]+)?")


def extract_answer(text: str, operands: Iterable[int]) -> str | None:
    """The number that `text` gives, without separators and trailing zeros of a fraction: `1,234.50` is `1234.5`."""
    if len(text) > MAX_CHARACTERS:
        return None
    expression, _, result = text.rpartition("=")
    before, answers = _numbers(expression), _numbers(result)
    if before is None or answers is None or len(answers) != 1:
        return None
    return next(iter(answers)) if before <= answers | {str(one) for one in operands} else None


def _numbers(text: str) -> set[str] | None:
    """The different numbers in `text`; None when a word with digits in it is not one."""
    numbers: set[str] = set()
    for word in _WORD.findall(text.replace("−", "-")):
        if any(unicodedata.category(character).startswith("N") for character in word):
            number = _NUMBER.fullmatch(word.strip("_").rstrip(".,").strip("_"))
            if number is None:
                return None
            sign, whole, fraction = number.groups()
            decimals = (fraction or "").rstrip("0").rstrip(".")
            numbers.add(sign + whole.replace(",", "") + decimals)
    return numbers
