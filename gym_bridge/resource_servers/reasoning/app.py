"""Any task of reasoning-gym, scored by its own scorer in a process that can be killed."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.resource_servers.base import InvalidTask, Response, Split, Task, Verdict
from gym_bridge.resource_servers.reasoning.answers import extract_answer, follows_the_rules, has_rules, may_be_scored
from gym_bridge.resource_servers.reasoning.datasets import Entry, checked_config, entries, kinds
from gym_bridge.resource_servers.scoring_server import ScoringServer, ScoringSettings
from gym_bridge.schemas.rollouts import Row

INSTRUCTION = (
    "Solve the problem. Reason as far as you need, then write your final answer between <answer> and </answer>, in exactly "
    "the form that the problem asks for."
)


class ReasoningEntry(BaseModel):
    """A task as reasoning-gym makes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    question: str
    answer: str | None
    """One right answer; empty or null where there are many."""
    metadata: dict[str, Any]


class ReasoningTask(Task):
    """What the scorer reads of a row."""

    dataset: str
    """Name of the dataset."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Its difficulty knobs, where they were set."""
    entry: ReasoningEntry


class Knobs(StrictModel):
    """Which tasks to ask: a dataset, and the fields of its config."""

    model_config = ConfigDict(extra="allow")  # every dataset has knobs of its own; they are checked against its config

    kind: str
    """Name of a dataset of reasoning-gym, such as countdown, chain_sum or knights_knaves."""


class Settings(ScoringSettings):
    """How answers are scored and rewarded."""

    partial_credit: bool = False
    """The reward is the dataset's own score, which may be 0.01 to 0.9 for wrong answers; else 1 for a full score and 0 below."""


class ReasoningServer(ScoringServer[ReasoningTask]):
    """Asks tasks of one dataset; the reward is what the dataset's own scorer gives the text between the last answer tags."""

    Task = ReasoningTask
    Knobs = Knobs
    Settings = Settings
    library = "reasoning_gym"
    function = "gym_bridge.resource_servers.reasoning.scoring:score"

    async def start(self) -> None:
        """Make the workers, and read which datasets there are."""
        await super().start()
        await asyncio.to_thread(kinds)

    async def seed(self, task: ReasoningTask) -> None:
        """A session holds nothing. Raises InvalidTask for a dataset that is unknown, knobs or metadata that are not its own."""
        _check(task)

    async def verify(self, task: ReasoningTask, response: Response, session: None) -> Verdict:
        """The score of the answer; an answer that takes the scorer too long, or breaks it, scores 0.

        Raises VerificationFailed when the task's own answer does so, InvalidTask as `seed` does.
        """
        _check(task)
        answer, entry = extract_answer(response.final_text), task.entry.model_dump()
        fields: dict[str, Any] = {"extracted_answer": answer, "score": 0.0, "verification_timed_out": False}
        if answer is None or not may_be_scored(task.dataset, answer):
            return Verdict(reward=0.0, fields=fields)
        arguments = {"dataset": task.dataset, "config": task.config, "entry": entry, "answer": answer}
        scored = await self.scorer.score(arguments, reference={**arguments, "answer": entry["answer"]})
        fields |= {"verification_timed_out": scored.timed_out}
        if scored.result is None or not follows_the_rules(task.dataset, answer, entry["metadata"]):
            return Verdict(reward=0.0, fields=fields)
        reward = scored.result if cast(Settings, self.settings).partial_credit else float(scored.result >= 1.0)
        return Verdict(reward=reward, fields={**fields, "score": scored.result})

    @classmethod
    def make_tasks(cls, knobs: Knobs, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Rows of one split; the split of a question is fixed by its hash."""
        config = checked_config(knobs.kind, knobs.model_extra or {})
        found = entries(knobs.kind, config, num_tasks=num_tasks, seed=seed, split=split)
        return (_row(knobs.kind, config, entry, split) for entry in found)


def _check(task: ReasoningTask) -> None:
    if task.dataset not in kinds():
        raise InvalidTask(f"unknown dataset {task.dataset!r}{nearest(task.dataset, kinds())}", loc=("dataset",))
    try:
        checked_config(task.dataset, task.config)
    except ConfigError as error:
        raise InvalidTask(str(error), loc=("config",)) from error
    if not has_rules(task.dataset, task.entry.metadata):
        raise InvalidTask(f"expected the numbers of {task.dataset}", loc=("entry", "metadata", "numbers"))


def _row(dataset: str, config: dict[str, Any], entry: Entry, split: Split) -> Row:
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": entry["question"]}]
    return {"responses_create_params": {"input": messages}, "dataset": dataset, "config": config, "entry": entry, "split": split}
