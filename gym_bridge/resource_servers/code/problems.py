"""Small functions to write, fill in or repair: families with constants in them, so that there are many."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["generate", "fill_in", "repair"]
NUM_TESTS = 8
HOLE = "# ... the missing line ..."
CONSTANTS = range(2, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Functions that differ in the constant `{c}` alone."""

    name: str
    says: str
    """What the function is to do."""
    lines: tuple[str, ...]
    """A right function called `name`."""
    hole: int
    """The line that fill_in leaves out."""
    bug: str
    """What repair puts in its place: wrong for some of the arguments."""
    draw: Callable[[random.Random, int], list[Any]]
    """Arguments of one test, for a constant."""


def _numbers(generator: random.Random, constant: int) -> list[Any]:
    values = [generator.randint(-constant, 3 * constant) for _ in range(generator.randint(0, 12))]
    return [[value * generator.choice([1, 1, constant]) for value in values]]


def _word(generator: random.Random, constant: int) -> list[Any]:
    return ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(0, 15)))]


def _number(generator: random.Random, constant: int) -> list[Any]:
    return [generator.randint(0, constant**3)]


FAMILIES = (
    Family(
        name="sum_of_multiples",
        says="the sum of those numbers in the list `values` that {c} divides",
        lines=("def {name}(values):", "    total = 0", "    for value in values:", "        if value % {c} == 0:",
               "            total += value", "    return total"),
        hole=3,
        bug="        if value % {c} != 0:",
        draw=_numbers,
    ),
    Family(
        name="clamped",
        says="a list of the numbers in `values`, in order, where each above {c} is replaced by {c} and each below 0 by 0",
        lines=("def {name}(values):", "    found = []", "    for value in values:", "        found.append(max(0, min({c}, value)))",
               "    return found"),
        hole=3,
        bug="        found.append(min({c}, value))",
        draw=_numbers,
    ),
    Family(
        name="shifted",
        says="the word `word`, of small letters, with every letter replaced by the one {c} places further in the alphabet, "
        "beginning again at a after z",
        lines=("def {name}(word):", "    letters = 'abcdefghijklmnopqrstuvwxyz'", "    found = ''", "    for letter in word:",
               "        found += letters[(letters.index(letter) + {c}) % 26]", "    return found"),
        hole=4,
        bug="        found += letters[(letters.index(letter) - {c} - 1) % 26]",
        draw=_word,
    ),
    Family(
        name="digit_sum",
        says="the sum of the digits of the whole number `number`, which is 0 or more, written in base {c}",
        lines=("def {name}(number):", "    total = 0", "    while number > 0:", "        total += number % {c}",
               "        number //= {c}", "    return total"),
        hole=4,
        bug="        number //= {c} + 1",
        draw=_number,
    ),
    Family(
        name="running",
        says="a list in which each entry is the largest number of `values` up to that place, plus {c}",
        lines=("def {name}(values):", "    found = []", "    for value in values:",
               "        found.append(max(value + {c}, found[-1]) if found else value + {c})", "    return found"),
        hole=3,
        bug="        found.append(value + {c})",
        draw=_numbers,
    ),
)  # fmt: skip
NUM_PROBLEMS = len(FAMILIES) * len(CONSTANTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One function of a family, and arguments to test it with."""

    family: Family
    constant: int
    arguments: tuple[list[Any], ...]

    @property
    def identity(self) -> str:
        """Two problems of the same identity ask for the same function."""
        return f"{self.family.name} {self.constant}"

    @property
    def says(self) -> str:
        """What the function is to return."""
        return self.family.says.format(c=self.constant)

    def source(self, replaced: str | None = None) -> str:
        """The right function, or one with its hole replaced."""
        lines = list(self.family.lines)
        if replaced is not None:
            lines[self.family.hole] = replaced
        return "\n".join(line.format(name=self.family.name, c=self.constant) for line in lines) + "\n"

    def around_the_hole(self) -> tuple[str, str]:
        """What stands before and after the missing line."""
        lines = [line.format(name=self.family.name, c=self.constant) for line in self.family.lines]
        return "\n".join(lines[: self.family.hole]) + "\n", "\n" + "\n".join(lines[self.family.hole + 1 :]) + "\n"

    def tests(self) -> list[dict[str, Any]]:
        """Calls with the values that the right function returns."""
        function = _compiled(self.source(), self.family.name)
        return [{"function": self.family.name, "args": list(args), "expected": function(*args)} for args in self.arguments]

    def tells(self) -> bool:
        """Whether the tests tell the right function from the one with the bug, and from any that always returns the same."""
        right, wrong = (_compiled(self.source(line), self.family.name) for line in (None, self.family.bug))
        values = [right(*args) for args in self.arguments]
        return values != [wrong(*args) for args in self.arguments] and any(value != values[0] for value in values)


def _compiled(source: str, name: str) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(source, names)  # our own text, out of the table above
    return names[name]


def draw_problem(generator: random.Random) -> Problem:
    """A problem at random, whose tests tell."""
    while True:
        family, constant = generator.choice(FAMILIES), generator.choice(CONSTANTS)
        arguments = tuple(family.draw(generator, constant) for _ in range(NUM_TESTS))
        problem = Problem(family=family, constant=constant, arguments=arguments)
        if problem.tells():
            return problem
