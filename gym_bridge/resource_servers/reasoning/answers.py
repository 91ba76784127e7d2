"""What an answer may hold before a scorer of reasoning-gym sees it: some of them evaluate what the model wrote as Python."""

import re
from typing import Any

MAX_CHARACTERS = 10_000
LISTS = frozenset({"binary_matrix", "n_queens", "number_sorting", "spiral_matrix", "string_insertion"})
"""Scorers that call `eval`, for answers written as Python lists."""
EXPRESSIONS = frozenset({"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"})
"""Scorers that call sympy's `parse_expr`, which is `eval` with names added."""

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_CALLS = re.compile(r"\(|\.\s*[^\W\d]|__")
_EXPRESSION = re.compile(r"[\w\s+\-*/^().,]*", re.ASCII)
_NAMES = re.compile(r"[^\W\d]\w*")
_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "sec",
        "csc",
        "cot",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "exp",
        "log",
        "ln",
        "sqrt",
        "pi",
        "Abs",
        "erf",
        "alpha",
        "beta",
        "gamma",
        "theta",
        "lambda_",
        "mu",
        "nu",
        "omega",
        "phi",
        "psi",
        "rho",
        "sigma",
        "tau",
    ]
)


def extract_answer(text: str) -> str | None:
    """What stands between the last pair of answer tags; None without a pair, or where it is too long to be one."""
    found = _ANSWER.findall(text)
    answer = found[-1].strip() if found else ""
    return answer if 0 < len(answer) <= MAX_CHARACTERS else None


def may_be_scored(dataset: str, answer: str) -> bool:
    """False for an answer that would be evaluated and calls, or names, what no answer needs."""
    if dataset in LISTS:
        return not _CALLS.search(answer)
    if dataset in EXPRESSIONS:
        return _EXPRESSION.fullmatch(answer) is not None and all(_harmless(name) for name in _NAMES.findall(answer))
    return True


def has_rules(dataset: str, metadata: dict[str, Any]) -> bool:
    """Whether a task's metadata holds what `follows_the_rules` needs of it."""
    numbers = metadata.get("numbers")
    return dataset != "puzzle24" or (isinstance(numbers, list) and all(type(one) is int for one in numbers))


def follows_the_rules(dataset: str, answer: str, metadata: dict[str, Any]) -> bool:
    """False for answers that a dataset's rules forbid and its scorer takes: puzzle24 never looks which numbers were used."""
    if dataset != "puzzle24":
        return True
    return sorted(int(one) for one in re.findall(r"\d+", answer)) == sorted(metadata["numbers"])


def _harmless(name: str) -> bool:
    return name in _FUNCTIONS or len(name) == 1
