"""Programs of the calculator: a number, and steps that each work on the result of the one before."""

import json
import operator
import random
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, WithJsonSchema

from gym_bridge.config import StrictModel

MAX_NUMBER = 10**200
"""Beyond it, to either side, nothing is calculated."""

Operation = Literal["add", "subtract", "multiply", "quotient", "remainder", "power_modulo"]
Number = Annotated[
    int,
    Field(gt=-MAX_NUMBER, lt=MAX_NUMBER),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": "^-?[0-9]{1,200}$"}),
]
"""Written as a text of digits: JSON readers round numbers of more than 64 bits."""


class Step(StrictModel):
    """One operation on the result so far."""

    operation: Operation
    operand: Number
    """The second number; the exponent of power_modulo."""
    modulus: Number | None = None
    """Of power_modulo."""


def _power_modulo(base: int, exponent: int, modulus: int) -> int:
    if exponent < 0:
        raise ValueError("the exponent is negative")
    if modulus < 1:
        raise ValueError("the modulus is not positive")
    return pow(base, exponent, modulus)


def _over(divided: Callable[[int, int], int]) -> Callable[[int, int], int]:
    def divide(a: int, b: int) -> int:
        if b == 0:
            raise ValueError("division by zero")
        return divided(a, b)

    return divide


_TWO_NUMBERS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "quotient": _over(operator.floordiv),
    "remainder": _over(operator.mod),
}


def calculate(operation: str, a: int, b: int, modulus: int | None = None) -> int:
    """The result. Raises ValueError, with words for the model, where there is none or it leaves the range."""
    result = _power_modulo(a, b, modulus or 0) if operation == "power_modulo" else _TWO_NUMBERS[operation](a, b)
    if abs(result) >= MAX_NUMBER:
        raise ValueError("the result has more than 200 digits")
    return result


def results(start: int, steps: Sequence[Step]) -> list[int]:
    """The result of every step. Raises ValueError."""
    found: list[int] = []
    for step in steps:
        found.append(calculate(step.operation, found[-1] if found else start, step.operand, step.modulus))
    return found


def random_program(generator: random.Random, *, depth: int, digits: int) -> tuple[int, tuple[Step, ...]]:
    """A start of `digits` digits and `depth` steps, none of whose results is shorter than that by more than a digit."""
    start = _number(generator, digits)
    steps: list[Step] = []
    value = start
    while len(steps) < depth:
        step = _step(generator, value, digits=digits)
        after = calculate(step.operation, value, step.operand, step.modulus)
        if after >= 10 ** (digits - 2):
            steps.append(step)
            value = after
    return start, tuple(steps)


def _step(generator: random.Random, value: int, *, digits: int) -> Step:
    """A step that shrinks what is long, and otherwise keeps or grows it."""
    long = value >= 10 ** (digits + digits // 2)
    operation = generator.choice(
        ("quotient", "remainder", "power_modulo") if long else ("add", "subtract", "multiply", "multiply", "power_modulo")
    )
    if operation == "power_modulo":
        return Step(operation=operation, operand=generator.randint(3, 99), modulus=_number(generator, digits))
    return Step(operation=operation, operand=_number(generator, digits // 2 if operation == "quotient" else digits))


def _number(generator: random.Random, digits: int) -> int:
    return generator.randrange(10 ** (digits - 1), 10**digits)


_WORDS: dict[str, str] = {
    "add": "add {operand}",
    "subtract": "subtract {operand}",
    "multiply": "multiply by {operand}",
    "quotient": "divide by {operand} and keep the whole quotient, rounded down",
    "remainder": "keep the remainder of division by {operand}",
    "power_modulo": "raise to the power of {operand} and keep the remainder of division by {modulus}",
}


def question(start: int, steps: Sequence[Step]) -> str:
    """The program in words."""
    lines = [f"Start with {start}. Then do the following, each with the result of the line before:"]
    lines += [f"- {_WORDS[step.operation].format(operand=step.operand, modulus=step.modulus)}" for step in steps]
    return "\n".join([*lines, "What is the last result?"])


def calls(start: int, steps: Sequence[Step]) -> list[dict[str, str]]:
    """The tool calls of a right rollout, as NeMo Gym's rows write them."""
    values = [start, *results(start, steps)]
    return [
        {"name": step.operation, "arguments": json.dumps(_arguments(value, step))}
        for value, step in zip(values, steps, strict=False)
    ]


def _arguments(value: int, step: Step) -> dict[str, str]:
    if step.operation == "power_modulo":
        return {"base": str(value), "exponent": str(step.operand), "modulus": str(step.modulus)}
    return {"a": str(value), "b": str(step.operand)}
