"""Problems with one number as their answer: equations, fractions, percentages and systems of two equations."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import gcd


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its answer in LaTeX."""

    question: str
    answer: str


def linear_equation(generator: random.Random) -> Problem:
    """`ax + b = cx + d` with a whole solution."""
    a, c = generator.sample([one for one in range(-20, 21) if one], 2)
    x, b = generator.randint(-50, 50), generator.randint(-99, 99)
    return Problem(f"Solve for $x$: ${_term(a, 'x')} {_signed(b)} = {_term(c, 'x')} {_signed(a * x + b - c * x)}$.", str(x))


def fraction(generator: random.Random) -> Problem:
    """The sum, difference or product of two fractions in lowest terms."""
    sign = generator.choice(["+", "-", r"\times"])
    one, other = sorted((_fraction(generator), _fraction(generator)), reverse=True)  # of a + b and b + a only one is asked
    result = one + other if sign == "+" else one - other if sign == "-" else one * other
    return Problem(
        f"Compute ${_latex(one)} {sign} {_latex(other)}$. Give a whole number or a fraction in lowest terms.", _latex(result)
    )


def percentage(generator: random.Random) -> Problem:
    """A whole number after one percentage up and another down."""
    up, down, hundreds = generator.randint(1, 99), generator.randint(1, 99), generator.randint(1, 60)
    result = Fraction(hundreds * (100 + up) * (100 - down), 100)
    return Problem(
        f"A price of {hundreds * 100} dollars rises by {up}% and then falls by {down}%. What is it then, in dollars and cents?",
        f"{float(result):.2f}",
    )


def system(generator: random.Random) -> Problem:
    """Two equations in x and y with whole solutions, of which the difference is asked."""
    while True:
        a, b, c, d = (generator.choice([one for one in range(-9, 10) if one]) for _ in range(4))
        if a * d != b * c:
            break
    x, y = generator.randint(-20, 20), generator.randint(-20, 20)
    first = f"{_term(a, 'x')} {_signed_term(b, 'y')} = {a * x + b * y}"
    second = f"{_term(c, 'x')} {_signed_term(d, 'y')} = {c * x + d * y}"
    return Problem(f"Let $x$ and $y$ solve ${first}$ and ${second}$. What is $x - y$?", str(x - y))


KINDS: dict[str, Callable[[random.Random], Problem]] = {
    "linear_equation": linear_equation,
    "fraction": fraction,
    "percentage": percentage,
    "system": system,
}


def _fraction(generator: random.Random) -> Fraction:
    below = generator.randint(2, 40)
    return Fraction(generator.choice([one for one in range(1, 2 * below) if gcd(one, below) == 1]), below)


def _latex(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _term(factor: int, name: str) -> str:
    return {1: name, -1: f"-{name}"}.get(factor, f"{factor}{name}")


def _signed(value: int) -> str:
    return f"{'-' if value < 0 else '+'} {abs(value)}"


def _signed_term(factor: int, name: str) -> str:
    return f"{'-' if factor < 0 else '+'} {_term(abs(factor), name)}"
