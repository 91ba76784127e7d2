"""Sums as an environment: small ones for the head, large ones for a tool."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, Literal

from pydantic import Field

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers.answers import extract_answer
from gym_bridge.resource_servers.base import KnownAnswers, ResourceServer, Response, Split, Task, Verdict
from gym_bridge.resource_servers.sessions import SessionMissing
from gym_bridge.resource_servers.tools import tool
from gym_bridge.schemas.rollouts import Item, Row

Pair = tuple[int, int]

WORKED_EXAMPLES: tuple[Pair, ...] = ((12, 25), (48, 31))
WORKED_TOOL_EXAMPLES: tuple[Pair, ...] = ((1234, 5678), (9012, 3456))
MAX_TOOL_TASKS = 1_000_000
"""Of some 20 million pairs a split: few enough to draw without repeating by remembering what was drawn."""
_SPLIT_SALT = b"arithmetic"


class ToolCall(StrictModel):
    """A call that a right rollout makes, as NeMo Gym's rows write it."""

    name: str
    arguments: str
    """A JSON object."""


class ArithmeticTask(Task):
    """What the verifier reads of a row."""

    operands: Pair
    expected_answer: str
    ground_truth: tuple[ToolCall, ...] = ()
    """Empty where the sum is for the head."""


class Knobs(StrictModel):
    """Which sums to ask."""

    kind: Literal["sum", "tool"] = "sum"
    """sum: two numbers of two digits, for the head; tool: two of four digits, with the tool `add`."""


@dataclass(slots=True)
class Calculation:
    """A session: the operands of its task, and whether the tool has added them."""

    operands: Pair
    added: bool = False


Operand = Annotated[int, Field(ge=-(10**9), le=10**9)]


class ArithmeticServer(ResourceServer[ArithmeticTask, Calculation]):
    """Asks for `a + b`; the reward is 1 for a reply whose one number is the sum, else 0.

    A task of kind=tool also wants the tool called with its operands, in either order, in the same session.
    """

    Task = ArithmeticTask
    Knobs = Knobs
    reverify_mode = "unsupported"  # whether the tool was called is known to the session alone

    @tool
    async def add(self, session: Calculation, a: Operand, b: Operand) -> dict[str, int]:
        """Add two whole numbers."""
        if sorted((a, b)) == sorted(session.operands):
            session.added = True
        return {"sum": a + b}

    async def seed(self, task: ArithmeticTask) -> Calculation:
        """A calculation in which nothing was added yet."""
        return Calculation(task.operands)

    async def verify(self, task: ArithmeticTask, response: Response, session: Calculation | None) -> Verdict:
        """1.0 for the right answer, got by the tool where the task has one; `extracted_answer` is the number read, or null."""
        answer = extract_answer(response.final_text, task.operands)
        right = answer == task.expected_answer
        if task.ground_truth:
            if session is None:
                raise SessionMissing
            right = right and session.added and session.operands == task.operands
        return Verdict(reward=float(right), fields={"extracted_answer": answer})

    @classmethod
    def known_answers(cls, row: Row) -> KnownAnswers:
        """Sums written out, as the worked examples are; those of the tool are told by the row."""
        if row.get("ground_truth"):
            return {}
        a, b = row["operands"]
        right, wrong = (f"{a} + {b} = {total}" for total in (a + b, a + b + 1))
        return {"good": [right], "bad": [wrong, f"{a} + {b} = {a}"], "adversarial": [f"{right} or {a + b + 1}", f"{a} + {b}"]}

    @classmethod
    def make_tasks(cls, knobs: Knobs, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Rows of one split; the split of a pair of operands is fixed, whatever their order and the seed."""
        generator = random.Random(f"arithmetic {seed}")
        if knobs.kind == "tool":
            _refuse_more_than(MAX_TOOL_TASKS, num_tasks, "tool tasks in a split")
            tools = cls.tools()
            return (_tool_row(tools, pair, split) for pair in _drawn(generator, num_tasks, split))
        pairs = [pair for pair in _two_digit_pairs() if split_of(pair) == split]
        _refuse_more_than(len(pairs), num_tasks, f"different sums in split {split}")
        return (_sum_row(_either_order(pair, generator), split) for pair in generator.sample(pairs, num_tasks))


def split_of(pair: Pair) -> Split:
    """The split to which two operands belong: a coin thrown by their hash, 2,082 of the 4,093 sums are held out."""
    digest = blake2b(f"{min(pair)}:{max(pair)}".encode(), digest_size=8, salt=_SPLIT_SALT).digest()
    return "heldout" if digest[0] % 2 else "train"


def _refuse_more_than(available: int, num_tasks: int, what: str) -> None:
    if num_tasks > available:
        raise ConfigError(f"num_tasks={num_tasks}: there are {available} {what}; ask for at most that many")


def _two_digit_pairs() -> list[Pair]:
    """All pairs of kind=sum, each once: of 12 + 34 and 34 + 12 only the former."""
    pairs = ((a, b) for a in range(10, 100) for b in range(a, 100))
    return [pair for pair in pairs if pair not in [(min(one), max(one)) for one in WORKED_EXAMPLES]]


def _either_order(pair: Pair, generator: random.Random) -> Pair:
    return pair if generator.random() < 0.5 else (pair[1], pair[0])


def _drawn(generator: random.Random, num_tasks: int, split: Split) -> Iterator[Pair]:
    """Pairs of kind=tool, no two with the same operands."""
    seen = {(min(one), max(one)) for one in WORKED_TOOL_EXAMPLES}
    wanted = len(seen) + num_tasks
    while len(seen) < wanted:
        a, b = generator.randint(1000, 9999), generator.randint(1000, 9999)
        key = (min(a, b), max(a, b))
        if key not in seen and split_of(key) == split:
            seen.add(key)
            yield a, b


def _sum_row(pair: Pair, split: Split) -> Row:
    messages = [_message("system", "You are a calculator. Answer with one number.")]
    for a, b in WORKED_EXAMPLES:
        messages += [_message("user", f"What is {a} + {b}?"), _message("assistant", f"{a} + {b} = {a + b}")]
    messages.append(_message("user", f"What is {pair[0]} + {pair[1]}?"))
    return _row({"input": messages}, pair, split)


def _tool_row(tools: list[Item], pair: Pair, split: Split) -> Row:
    messages = [_message("system", "You are a calculator. Add with the tool, then answer with one number.")]
    for number, (a, b) in enumerate(WORKED_TOOL_EXAMPLES):
        call_id = f"example_{number}"
        messages += [
            _message("user", f"What is {a} + {b}?"),
            {"type": "function_call", "call_id": call_id, **_call(a, b)},
            {"type": "function_call_output", "call_id": call_id, "output": f'{{"sum": {a + b}}}'},
            _message("assistant", f"{a} + {b} = {a + b}"),
        ]
    messages.append(_message("user", f"What is {pair[0]} + {pair[1]}?"))
    return {**_row({"input": messages, "tools": tools}, pair, split), "ground_truth": [_call(*pair)]}


def _call(a: int, b: int) -> dict[str, str]:
    return {"name": "add", "arguments": f'{{"a": {a}, "b": {b}}}'}


def _row(params: dict[str, Any], pair: Pair, split: Split) -> Row:
    return {"responses_create_params": params, "expected_answer": str(sum(pair)), "operands": list(pair), "split": split}


def _message(role: str, content: str) -> Item:
    return {"role": role, "content": content}
