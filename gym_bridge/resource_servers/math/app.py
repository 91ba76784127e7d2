"""Mathematics with one answer in a box, compared by math-verify in a process that can be killed."""

import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import Field

from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.base import Response, Split, Task, Verdict
from gym_bridge.resource_servers.math.benchmarks import problem_of
from gym_bridge.resource_servers.math.boxes import last_box, refusal
from gym_bridge.resource_servers.math.problems import KINDS, Kind, Problem
from gym_bridge.resource_servers.records import Record
from gym_bridge.resource_servers.scoring_server import ScoringServer
from gym_bridge.resource_servers.splits import drawn, refuse_more_than
from gym_bridge.schemas.rollouts import Row

MAX_TASKS = 50_000
"""Of at least 200,000 problems of each kind and split; smaller sizes have fewer."""
INSTRUCTION = (
    "Solve the problem. Reason as far as you need, and end with your answer in \\boxed{}: one answer, computed to its end."
)


class MathTask(Task):
    """What the verifier reads of a row; NeMo Gym's math_with_judge writes the same."""

    expected_answer: str = Field(min_length=1, max_length=1000)
    """LaTeX or plain text, without a box."""
    question: str = ""


class Knobs(StrictModel):
    """Which problems to ask."""

    kind: Literal["mixed", "linear_equation", "fraction", "percentage", "system"] = "mixed"
    """mixed: one of the others at random for each task."""
    size: int | None = Field(default=None, ge=2, le=1000)
    """The largest factor, denominator or number of hundreds; null: 20 in equations, 40 in fractions, 60 in percentages, 9 in
    systems. Small ones are for small models."""


class MathServer(ScoringServer[MathTask]):
    r"""The reward is 1 when math-verify holds what stands in the last \boxed{} for equal to the expected answer, else 0."""

    Task = MathTask
    Knobs = Knobs
    library = "math_verify"
    function = "gym_bridge.resource_servers.math.grading:grade"

    async def verify(self, task: MathTask, response: Response, session: None) -> Verdict:
        """1.0 for the right answer; the row tells what was read, and why an answer scored 0 without being compared.

        An answer that takes math-verify too long, or breaks it, scores 0. Raises VerificationFailed when the expected answer
        does so itself.
        """
        text, expected = response.final_text, task.expected_answer
        answer = last_box(text)
        problem = refusal(text, expected=expected)
        if problem is not None or answer is None:
            return _verdict(0.0, answer if problem != "too_long" else None, problem=problem)
        scored = await self.scorer.score(
            {"expected": expected, "answer": answer}, reference={"expected": expected, "answer": expected}
        )
        if scored.timed_out or scored.crashed:
            return _verdict(0.0, answer, problem="unreadable", timed_out=scored.timed_out)
        return _verdict(float(scored.result), answer)

    @classmethod
    def make_tasks(cls, knobs: Knobs, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Rows of one split; the split of a question is fixed by its hash."""
        kinds = tuple(KINDS.values()) if knobs.kind == "mixed" else (KINDS[knobs.kind],)
        sized = tuple((kind, knobs.size or kind.size) for kind in kinds)
        refuse_more_than(min(MAX_TASKS, *(kind.count(size) // 8 for kind, size in sized)), num_tasks)
        problems = drawn(partial(_draw, sized), identity=_question, num_tasks=num_tasks, seed=seed, split=split)
        return ({**_row(one.question, one.answer), "solution": one.solution, "split": split} for one in problems)

    @classmethod
    def read_tasks(cls, knobs: StrictModel, records: Iterable[Record], *, seed: int) -> Iterator[Row]:
        """Problems of AIME, MATH-500, MATH or GSM8K."""
        for record in records:
            found = problem_of(record)
            yield {**_row(found["question"], found["expected_answer"]), **found}


def _draw(kinds: Sequence[tuple[Kind, int]], generator: random.Random) -> Problem:
    kind, size = generator.choice(kinds)
    return kind.draw(generator, size)


def _question(problem: Problem) -> str:
    return problem.question


def _verdict(reward: float, answer: str | None, *, problem: str | None = None, timed_out: bool = False) -> Verdict:
    fields: dict[str, Any] = {"extracted_answer": answer, "answer_problem": problem, "verification_timed_out": timed_out}
    return Verdict(reward=reward, fields=fields)


def _row(question: str, answer: str) -> Row:
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]
    return {"responses_create_params": {"input": messages}, "question": question, "expected_answer": answer}
