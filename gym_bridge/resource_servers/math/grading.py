"""What runs in the scorer's process: math-verify on the two answers. No timeouts of its own: the process is killed instead."""

import logging

from math_verify import LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns of its missing timeouts
_CONFIG = (LatexExtractionConfig(boxed_match_priority=0),)


def grade(*, expected: str, answer: str) -> bool:
    """Whether math-verify holds `answer` for equal to `expected`. Raises ValueError for an `expected` that it cannot read."""
    gold = parse(f"\\boxed{{{expected}}}", _CONFIG, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    if not gold:
        raise ValueError(f"math-verify reads nothing in the expected answer {expected!r}")
    given = parse(f"\\boxed{{{answer}}}", _CONFIG, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return bool(given) and verify(gold, given, timeout_seconds=None)
