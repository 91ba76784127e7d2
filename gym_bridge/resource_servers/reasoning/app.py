"""Any task of reasoning-gym, scored by its own scorer in a process that can be killed."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from gym_bridge.config import StrictModel
from gym_bridge.errors import missing_extra
from gym_bridge.resource_servers.base import ResourceServer, Response, Split, Task, Verdict
from gym_bridge.resource_servers.reasoning.answers import extract_answer, follows_the_rules, may_be_scored
from gym_bridge.resource_servers.reasoning.datasets import Entry, checked_config, entries
from gym_bridge.resource_servers.scorer_pool import Scorer, ScorerPool
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


class Settings(StrictModel):
    """How answers are scored."""

    partial_credit: bool = False
    """The reward is the dataset's own score, which may be 0.01 to 0.9 for wrong answers; else 1 for a full score and 0 below."""
    deadline_s: float = Field(5.0, gt=0)
    """Seconds after which scoring is given up and its process killed."""
    num_workers: int = Field(2, ge=1)
    """Processes that score."""


class ReasoningServer(ResourceServer[ReasoningTask, None]):
    """Asks tasks of one dataset; the reward is what the dataset's own scorer gives the text between the last answer tags."""

    Task = ReasoningTask
    Knobs = Knobs
    Settings = Settings
    stateless = True
    deadline_s = 600.0  # the wait for an idle worker is in it

    def __init__(self, settings: Settings | None = None, *, shuffle_rewards: bool = False):
        if find_spec("reasoning_gym") is None:
            raise missing_extra("resource server 'reasoning'", "servers")
        super().__init__(settings, shuffle_rewards=shuffle_rewards)
        self._given = cast(Settings, self.settings)
        self._pool = ScorerPool(
            "gym_bridge.resource_servers.reasoning.scoring:score",
            num_workers=self._given.num_workers,
            deadline_s=self._given.deadline_s,
        )
        self._scorer = Scorer(self._pool)

    async def start(self) -> None:
        """Make the workers."""
        await self._pool.start()

    async def stop(self) -> None:
        """End the workers."""
        await self._pool.stop()

    async def seed(self, task: ReasoningTask) -> None:
        """A session holds nothing."""

    async def verify(self, task: ReasoningTask, response: Response, session: None) -> Verdict:
        """The score of the answer; an answer that takes the scorer too long, or breaks it, scores 0.

        Raises VerificationFailed when the task's own answer does so, and for a dataset that is unknown.
        """
        answer, entry = extract_answer(response.final_text), task.entry.model_dump()
        fields: dict[str, Any] = {"extracted_answer": answer, "score": 0.0, "verification_timed_out": False}
        if answer is None or not may_be_scored(task.dataset, answer):
            return Verdict(reward=0.0, fields=fields)
        arguments = {"dataset": task.dataset, "config": task.config, "entry": entry, "answer": answer}
        scored = await self._scorer.score(arguments, reference={**arguments, "answer": entry["answer"]})
        fields |= {"verification_timed_out": scored.timed_out}
        if scored.result is None or not _by_the_rules(task.dataset, answer, entry):
            return Verdict(reward=0.0, fields=fields)
        reward = scored.result if self._given.partial_credit else float(scored.result >= 1.0)
        return Verdict(reward=reward, fields={**fields, "score": scored.result})

    @classmethod
    def make_tasks(cls, knobs: Knobs, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Rows of one split; the split of a question is fixed by its hash."""
        config = checked_config(knobs.kind, knobs.model_extra or {})
        found = entries(knobs.kind, config, num_tasks=num_tasks, seed=seed, split=split)
        return (_row(knobs.kind, config, entry, split) for entry in found)


def _by_the_rules(dataset: str, answer: str, entry: Entry) -> bool:
    return follows_the_rules(dataset, answer, entry["metadata"])


def _row(dataset: str, config: dict[str, Any], entry: Entry, split: Split) -> Row:
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": entry["question"]}]
    return {"responses_create_params": {"input": messages}, "dataset": dataset, "config": config, "entry": entry, "split": split}
