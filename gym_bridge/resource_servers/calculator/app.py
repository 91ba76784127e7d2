"""Chains of operations on numbers too large for the head: several tool calls, each on the result of the one before."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.answers import extract_answer
from gym_bridge.resource_servers.base import InvalidTask, ResourceServer, Response, Split, Task, Verdict
from gym_bridge.resource_servers.calculator.programs import Number, Step, calculate, calls, question, random_program, results
from gym_bridge.resource_servers.sessions import SessionMissing
from gym_bridge.resource_servers.splits import drawn, refuse_more_than
from gym_bridge.resource_servers.tools import tool
from gym_bridge.schemas.rollouts import Item, Row

MAX_TASKS = 1_000_000
MAX_STEPS = 16
MAX_RESULTS = 26
"""Calls that a session answers: the result of each has a letter."""
SYSTEM = (
    "You work with a calculator. Do every step with its tools; a number is written in digits, or as the letter of an earlier "
    "result, such as A. When you have the last result, answer with that one number."
)


class CalculatorTask(Task):
    """What the verifier reads of a row. The answer is worked out from the program."""

    start: Number
    steps: tuple[Step, ...] = Field(min_length=1, max_length=MAX_STEPS)


class Knobs(StrictModel):
    """Which chains to ask."""

    depth: int = Field(3, ge=2, le=MAX_STEPS)
    """Steps of a chain, each of which needs the result before it."""
    digits: int = Field(8, ge=6, le=40)
    """Digits of the numbers."""


@dataclass(slots=True)
class Tape:
    """A session: of which program, and what was calculated, in order."""

    program: bytes
    results: list[int] = field(default_factory=list)


def _in_digits(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Operand = Annotated[str, StringConstraints(pattern=r"^(-?[0-9]{1,200}|[A-Z])$"), BeforeValidator(_in_digits)]
"""A whole number, or the letter of an earlier result."""
Result = dict[str, str]


class CalculatorServer(ResourceServer[CalculatorTask, Tape]):
    """Asks for the last result of a chain; the reward is 1 for a reply whose one number it is, else 0.

    Every result of the chain must also have come out of a tool in the same session.
    """

    Task = CalculatorTask
    Knobs = Knobs
    reverify_mode = "unsupported"  # what the tools calculated is known to the session alone

    @tool
    async def add(self, session: Tape, a: Operand, b: Operand) -> Result:
        """The sum a + b."""
        return _written(session, "add", a, b)

    @tool
    async def subtract(self, session: Tape, a: Operand, b: Operand) -> Result:
        """The difference a - b."""
        return _written(session, "subtract", a, b)

    @tool
    async def multiply(self, session: Tape, a: Operand, b: Operand) -> Result:
        """The product a * b."""
        return _written(session, "multiply", a, b)

    @tool
    async def quotient(self, session: Tape, a: Operand, b: Operand) -> Result:
        """How many times b goes into a: a / b, rounded down."""
        return _written(session, "quotient", a, b)

    @tool
    async def remainder(self, session: Tape, a: Operand, b: Operand) -> Result:
        """What is left of a after division by b."""
        return _written(session, "remainder", a, b)

    @tool
    async def power_modulo(self, session: Tape, base: Operand, exponent: Operand, modulus: Operand) -> Result:
        """The remainder of base to the power of exponent after division by modulus."""
        return _written(session, "power_modulo", base, exponent, modulus)

    async def seed(self, task: CalculatorTask) -> Tape:
        """An empty tape. Raises InvalidTask for a chain that divides by zero."""
        _chain(task)
        return Tape(_digest(task))

    async def verify(self, task: CalculatorTask, response: Response, session: Tape | None) -> Verdict:
        """1.0 for the last result, got by the tools; `num_steps_done` counts the chain's results that they gave."""
        if session is None:
            raise SessionMissing
        chain = _chain(task)
        answer = extract_answer(response.final_text, (task.start, *(step.operand for step in task.steps), *chain))
        done = sum(result in session.results for result in chain) if session.program == _digest(task) else 0
        right = answer == str(chain[-1]) and done == len(chain)
        return Verdict(reward=float(right), fields={"extracted_answer": answer, "num_steps_done": done})

    @classmethod
    def make_tasks(cls, knobs: Knobs, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Rows of one split; the split of a chain is fixed."""
        refuse_more_than(MAX_TASKS, num_tasks)
        programs = drawn(
            lambda generator: random_program(generator, depth=knobs.depth, digits=knobs.digits),
            identity=lambda program: question(*program),
            num_tasks=num_tasks,
            seed=seed,
            split=split,
        )
        tools = cls.tools()
        return (_row(start, steps, tools, split) for start, steps in programs)


def _chain(task: CalculatorTask) -> list[int]:
    try:
        return results(task.start, task.steps)
    except ValueError as error:
        raise InvalidTask(f"the chain cannot be calculated: {error}", loc=("steps",)) from error


def _written(tape: Tape, operation: str, *operands: str) -> Result:
    """Calculate, and keep the result under the next letter. What goes wrong is the model's to read."""
    if len(tape.results) >= MAX_RESULTS:
        return {"error": f"the tape is full: {MAX_RESULTS} results are all that it holds"}
    try:
        result = calculate(operation, *(_value(tape, operand) for operand in operands))
    except ValueError as error:
        return {"error": str(error)}
    tape.results.append(result)
    return {"result": str(result), "letter": _letter(len(tape.results) - 1)}


def _value(tape: Tape, operand: str) -> int:
    if not operand.isalpha():
        return int(operand)
    position = ord(operand) - ord("A")
    if position >= len(tape.results):
        raise ValueError(f"there is no result {operand} yet")
    return tape.results[position]


def _letter(position: int) -> str:
    return chr(ord("A") + position)


def _digest(task: CalculatorTask) -> bytes:
    return blake2b(question(task.start, task.steps).encode(), digest_size=16).digest()


def _row(start: int, steps: tuple[Step, ...], tools: list[Item], split: Split) -> Row:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question(start, steps)}]
    return {
        "responses_create_params": {"input": messages, "tools": tools, "parallel_tool_calls": False},
        "start": str(start),
        "steps": [step.model_dump(exclude_none=True) for step in steps],
        "expected_answer": str(results(start, steps)[-1]),
        "ground_truth": calls(start, steps),
        "split": split,
    }
