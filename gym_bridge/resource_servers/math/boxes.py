r"""The answer in a reply's last \boxed{}, and the answers that are refused before anything is computed.

A box holds one answer, finished. Refused are boxes that hold or stand beside alternatives (`3 or 4`, `\boxed{3} or \boxed{4}`),
and, where the expected answer is a plain number, boxes that leave work to be done (`2^5` or `(20-5)/3` for 32 or 5).
"""

import re

MAX_CHARACTERS = 1000
"""A longer box is no answer."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ALTERNATIVES = re.compile(r"\bor\b|\beither\b|\bmaybe\b|\bperhaps\b|\bpossibly\b|\\vee|\\lor(?![a-z])|\?|\\boxed", re.IGNORECASE)
_ONLY_A_JOINT = re.compile(r"(?:[\s,;/|&.$*()-]|\\[,;!()\[\] ]|\\text|\\quad|[{}]|\band\b|\bor\b|\bmaybe\b)*", re.IGNORECASE)
_DECORATION = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|operatorname)\s*\{[^{}0-9]*\}|\\(?:left|right)(?![a-zA-Z])|\\[,;!: ]|\\\$|\$"
    r"|\^\s*\\circ|\^\s*\{\\circ\}"
)
_ASSIGNED = re.compile(r"^[a-zA-Z]\w*=")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_FRACTION = rf"(?:\\[dt]?frac\{{-?{_NUMBER}\}}\{{-?{_NUMBER}\}}|\\[dt]?frac\d\d|{_NUMBER}/{_NUMBER})"
_SCIENTIFIC = rf"{_NUMBER}(?:\\times|\\cdot|\*)10\^(?:\{{-?\d{{1,3}}\}}|\d)"
_FINISHED = re.compile(rf"[+-]?(?:{_SCIENTIFIC}|{_NUMBER}?{_FRACTION}|{_NUMBER})(?:\\?%|[a-zA-Z]*)", re.ASCII)


def last_box(text: str) -> str | None:
    r"""What stands in the last \boxed{} of `text`; None where there is none, or it is not closed."""
    start = None
    for box in _BOX.finditer(text):
        start = box.end()
    return None if start is None else _braced(text, start)


def refusal(text: str, *, expected: str) -> str | None:
    """Why the answer in `text` cannot be right, whatever it comes to; None where that is for math-verify to say."""
    box = last_box(text)
    if box is None or not box.strip():
        return "no_box"
    if len(box) > MAX_CHARACTERS:
        return "too_long"
    if (_ALTERNATIVES.search(box) and not _ALTERNATIVES.search(expected)) or _listed(text, box):
        return "several"
    if _finished(expected) and not _finished(box):
        return "unfinished"
    return None


def _braced(text: str, start: int) -> str | None:
    depth, escaped = 1, False
    for position in range(start, len(text)):
        character = text[position]
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[start:position]
    return None


def _listed(text: str, box: str) -> bool:
    """Another box stands before the last one with no more than `or`, a comma and the like between them."""
    boxes = [found.start() for found in _BOX.finditer(text)]
    if len(boxes) < 2:
        return False
    start = text.index("{", boxes[-2]) + 1
    before = _braced(text, start)
    if before is None or before == box:
        return False
    return _ONLY_A_JOINT.fullmatch(text[start + len(before) + 1 : boxes[-1]]) is not None


def _finished(answer: str) -> bool:
    """A number with nothing left to compute: `-1,234.5`, `3/4`, `1\\frac{1}{2}`, `1.5 \\times 10^3`, `25\\%`, `x = 5`, `5 cm`."""
    plain = _DECORATION.sub("", answer.replace("−", "-").replace("{,}", ","))
    plain = "".join(plain.split())
    return _FINISHED.fullmatch(_ASSIGNED.sub("", plain)) is not None
