"""Guess a number: each guess is answered with higher or lower, and the guesses are counted."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Annotated

from pydantic import Field, model_validator

from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.answers import extract_answer
from gym_bridge.resource_servers.base import KnownAnswers, Response, Split, Step, StepwiseServer, Task
from gym_bridge.resource_servers.splits import drawn, refuse_more_than
from gym_bridge.schemas.rollouts import Row

MAX_TASKS = 20_000
MAX_LOW = 9_999
SYSTEM = "You guess a number. Each of your messages is one number and nothing else."

Whole = Annotated[int, Field(ge=-(10**9), le=10**9)]


class GameTask(Task):
    """What the game reads of a row."""

    low: Whole
    high: Whole
    target: Whole
    max_guesses: int = Field(ge=1, le=1000)

    @model_validator(mode="after")
    def _target_in_range(self) -> "GameTask":
        if not self.low <= self.target <= self.high:
            raise ValueError("target must lie between low and high")
        return self


class Knobs(StrictModel):
    """How large the games are."""

    size: int = Field(100, ge=10, le=1_000_000)
    """Numbers to choose from."""
    spare_guesses: int = Field(0, ge=0, le=100)
    """Guesses beyond those that halving always gets by with."""


@dataclass(slots=True)
class Game:
    """An episode."""

    task: GameTask
    num_guesses: int = 0
    over: bool = False


class NumberGameServer(StepwiseServer[GameTask, Game]):
    """A game of guesses; the reward is 1 for the step that finds the number, else 0. A reply that is no guess costs one."""

    Task = GameTask
    Knobs = Knobs

    async def reset(self, task: GameTask) -> tuple[Game, str]:
        """A new game, and its rules."""
        rules = f"I think of a whole number from {task.low} to {task.high}. You have {_guesses(task.max_guesses)}."
        return Game(task), f"{rules} What is your first guess?"

    async def step(self, task: GameTask, response: Response, session: Game) -> Step:
        """Higher, lower or found; the number that the session began with counts, whatever `task` says."""
        if session.over:
            return _step(session, "The game is over.")
        session.num_guesses += 1
        guess = extract_answer(response.final_text, ())
        if guess is not None and _whole(guess) == session.task.target:
            session.over = True
            return _step(session, "Found.", reward=1.0)
        left = session.task.max_guesses - session.num_guesses
        session.over = left == 0
        return _step(session, f"{_hint(guess, session.task)} {'The game is over.' if session.over else _left(left)}")

    @classmethod
    def known_answers(cls, row: Row) -> KnownAnswers:
        """Halving, guess by guess, and guesses that never leave the start."""
        low, high, guesses = row["low"], row["high"], []
        while not guesses or guesses[-1] != row["target"]:
            guesses.append((low + high) // 2)
            low, high = (guesses[-1] + 1, high) if guesses[-1] < row["target"] else (low, guesses[-1] - 1)
        other = row["low"] if row["target"] != row["low"] else row["high"]
        return {"good": [[str(guess) for guess in guesses]], "bad": [[str(other)] * row["max_guesses"]]}

    @classmethod
    def make_tasks(cls, knobs: Knobs, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Rows of one split; the split of a range and its number is fixed."""
        refuse_more_than(MAX_TASKS, num_tasks)

        def draw(generator: Random) -> tuple[int, int]:
            low = generator.randint(0, MAX_LOW)
            return low, low + generator.randrange(knobs.size)

        games = drawn(draw, identity=lambda game: f"{game} of {knobs.size}", num_tasks=num_tasks, seed=seed, split=split)
        max_guesses = knobs.size.bit_length() + knobs.spare_guesses  # halving finds one of 2**n - 1 numbers in n guesses
        return (_row(low, low + knobs.size - 1, target, max_guesses, split) for low, target in games)


def _whole(number: str) -> int | None:
    """The whole number, or None; minus zero is none that anybody thinks of."""
    return int(number) if number.lstrip("-").isdigit() and number != "-0" and len(number) <= 10 else None


def _hint(guess: str | None, task: GameTask) -> str:
    number = None if guess is None else _whole(guess)
    if number is None or not task.low <= number <= task.high:
        return f"That is no whole number from {task.low} to {task.high}."
    return "Higher." if number < task.target else "Lower."


def _left(left: int) -> str:
    return f"{_guesses(left)} left."


def _guesses(count: int) -> str:
    return "1 guess" if count == 1 else f"{count} guesses"


def _step(game: Game, observation: str, *, reward: float = 0.0) -> Step:
    return Step(reward=reward, observation=observation, terminated=game.over, info={"num_guesses": game.num_guesses})


def _row(low: int, high: int, target: int, max_guesses: int, split: Split) -> Row:
    return {
        "responses_create_params": {"input": [{"role": "system", "content": SYSTEM}]},
        "low": low,
        "high": high,
        "target": target,
        "max_guesses": max_guesses,
        "split": split,
    }
