"""Problems with one number as their answer: equations, fractions, percentages and systems of two equations."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its answer and the way to it in LaTeX."""

    question: str
    answer: str
    steps: str

    @property
    def solution(self) -> str:
        """The steps, then the answer in its box."""
        return f"{self.steps} \\boxed{{{self.answer}}}"


def linear_equation(generator: random.Random, size: int) -> Problem:
    """`ax + b = cx + d` with a whole solution; a and c are up to `size`."""
    a, c = generator.sample(_up_to(size), 2)
    far = 5 * size
    x, b = generator.randint(-(far // 2), far // 2), generator.randint(1 - far, far - 1)
    d = a * x + b - c * x
    steps = f"${_term(a, 'x')} {_signed_term(-c, 'x')} = {d} {_signed(-b)}$, so ${_term(a - c, 'x')} = {d - b}$."
    return Problem(f"Solve for $x$: ${_term(a, 'x')} {_signed(b)} = {_term(c, 'x')} {_signed(d)}$.", str(x), steps)


def fraction(generator: random.Random, size: int) -> Problem:
    """The sum, difference or product of two fractions in lowest terms, with denominators up to `size`."""
    sign = generator.choice(["+", "-", r"\times"])
    one, other = sorted(
        (_fraction(generator, size), _fraction(generator, size)), reverse=True
    )  # of a + b and b + a only one is asked
    result = one + other if sign == "+" else one - other if sign == "-" else one * other
    if sign == r"\times":
        left, right, below = one.numerator, other.numerator, one.denominator * other.denominator
        above = left * right
    else:
        below = lcm(one.denominator, other.denominator)
        left, right = int(one * below), int(other * below)
        above = left + right if sign == "+" else left - right
    asked = f"Compute ${_latex(one)} {sign} {_latex(other)}$. Give a whole number or a fraction in lowest terms."
    return Problem(asked, _latex(result), f"It is $\\frac{{{left} {sign} {right}}}{{{below}}} = \\frac{{{above}}}{{{below}}}$.")


def percentage(generator: random.Random, size: int) -> Problem:
    """Up to `size` hundreds after one percentage up and another down."""
    up, down, hundreds = generator.randint(1, 99), generator.randint(1, 99), generator.randint(1, size)
    risen = hundreds * (100 + up)
    answer = f"{float(Fraction(risen * (100 - down), 100)):.2f}"
    asked = f"A price of {hundreds * 100} dollars rises by {up}% and then falls by {down}%. What is it then, in dollars and cents?"
    factors = f"1.{up:02}", f"0.{100 - down:02}"
    return Problem(asked, answer, f"${hundreds * 100} \\cdot {factors[0]} = {risen}$, ${risen} \\cdot {factors[1]} = {answer}$.")


def system(generator: random.Random, size: int) -> Problem:
    """Two equations in x and y with whole solutions, of which the difference is asked; factors are up to `size`."""
    while True:
        a, b, c, d = (generator.choice(_up_to(size)) for _ in range(4))
        if a * d != b * c:
            break
    x, y = (generator.randint(-2 * size - 2, 2 * size + 2) for _ in range(2))
    e, f = a * x + b * y, c * x + d * y
    first, second = f"{_term(a, 'x')} {_signed_term(b, 'y')} = {e}", f"{_term(c, 'x')} {_signed_term(d, 'y')} = {f}"
    found = (
        f"${_term(a * d - b * c, name)} = {right}$, ${name} = {value}$"
        for name, right, value in (("x", d * e - b * f, x), ("y", a * f - c * e, y))
    )
    return Problem(f"Let $x$ and $y$ solve ${first}$ and ${second}$. What is $x - y$?", str(x - y), f"{'; '.join(found)}.")


@dataclass(frozen=True, slots=True)
class Kind:
    """How problems of a kind are drawn."""

    draw: Callable[[random.Random, int], Problem]
    size: int
    """Of its numbers, where no other is asked for."""
    count: Callable[[int], int]
    """How many different questions there are of a size, at least."""


KINDS: dict[str, Kind] = {
    "linear_equation": Kind(linear_equation, 20, lambda size: 2 * size * (2 * size - 1) * (5 * size - 1) * (10 * size - 1)),
    "fraction": Kind(fraction, 40, lambda size: 3 * _fractions(size) * (_fractions(size) + 1) // 2),
    "percentage": Kind(percentage, 60, lambda size: 99 * 99 * size),
    "system": Kind(system, 9, lambda size: size**4 * (4 * size + 5) ** 2),
}


def _up_to(size: int) -> list[int]:
    return [one for one in range(-size, size + 1) if one]


def _fractions(size: int) -> int:
    return sum(gcd(above, below) == 1 for below in range(2, size + 1) for above in range(1, 2 * below))


def _fraction(generator: random.Random, size: int) -> Fraction:
    below = generator.randint(2, size)
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
