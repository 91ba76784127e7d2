r"""Problems out of the files in which AIME, MATH-500, MATH and GSM8K are published, on the Hugging Face hub and by their authors.

AIME and MATH-500 name a `problem` (or `question`) and its `answer`; MATH has the answer in the \boxed{} of its `solution`, GSM8K
after `####`.
"""

import re

from gym_bridge.resource_servers.math.boxes import last_box
from gym_bridge.resource_servers.records import Record
from gym_bridge.schemas.rollouts import Row

_WHOLE = re.compile(r"0*(\d+)", re.ASCII)
_ANNOTATION = re.compile(r"<<[^<>]*>>")  # of GSM8K, for a calculator
_CATEGORIES = ("subject", "type")
_KEPT = ("id", "unique_id", "level")


def problem_of(record: Record) -> Row:
    """`question` and `expected_answer`, with `solution`, `category` and what else the record tells. Raises DataError."""
    values = record.values
    asked = next(
        (name for name in ("problem", "question") if isinstance(values.get(name), str)), None
    )  # some number their problems
    if asked is None or not ("answer" in values or "solution" in values):
        raise record.error(f"columns {', '.join(values)}: expected problem or question, and answer or solution")
    category = next((str(values[name]) for name in _CATEGORIES if values.get(name)), None)
    return {
        "question": record.text(asked),
        "expected_answer": _answer(record),
        **({"solution": solution} if (solution := _solution(record)) else {}),
        **({"category": category} if category else {}),
        **{name: values[name] for name in _KEPT if values.get(name) is not None},
    }


def _solution(record: Record) -> str | None:
    """The way to the answer, which ends in a box, where the record tells it."""
    told = record.values.get("solution")
    if isinstance(told, str) and last_box(told) is not None:
        return told.strip()
    steps, found, answer = str(record.values.get("answer", "")).rpartition("####")
    return f"{_ANNOTATION.sub('', steps).strip()} \\boxed{{{answer.strip()}}}" if found else None


def _answer(record: Record) -> str:
    if "answer" not in record.values:
        box = last_box(record.text("solution"))
        if box is None or not box.strip():
            raise record.error(r"its solution has no answer in \boxed{}")
        return box.strip()
    answer = record.text("answer").rpartition("####")[2].strip()
    whole = _WHOLE.fullmatch(answer)  # AIME's 033
    return whole[1] if whole else answer
