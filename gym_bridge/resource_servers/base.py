"""What a resource server is: tasks to attempt, tools to call, and a verifier. `http.py` puts one on the network.

class Dice(ResourceServer[DiceTask, Rolls]):
    @tool
    async def roll(self, session: Rolls, sides: int) -> dict[str, int]:
        "Throw a die with that many sides."
"""

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from gym_bridge.config import StrictModel, validate
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.resource_servers.records import Record
from gym_bridge.resource_servers.tools import Tool, tools_of
from gym_bridge.schemas.rollouts import Item, Row

Split = Literal["train", "heldout"]
KnownAnswers = Mapping[str, Sequence[str | Sequence[str | Item]]]


class Task(BaseModel):
    """What a server reads of a task row. Other keys are left alone: the row belongs to the client, which adds its own."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    responses_create_params: dict[str, Any]


class Response(BaseModel):
    """What a verifier reads of a Responses object."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    output: list[Item]
    usage: Any = None
    """Foreign: a dict of counts where the model's endpoint reports them."""

    @property
    def num_output_tokens(self) -> int | None:
        """Tokens that the model wrote in the whole rollout; None where that is not reported."""
        count = self.usage.get("output_tokens") if isinstance(self.usage, dict) else None
        return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None

    @property
    def final_text(self) -> str:
        """Text of the assistant messages after the last tool item; empty when the rollout ended within a tool call."""
        texts: list[str] = []
        for item in reversed(self.output):
            if item.get("type") == "reasoning":
                continue
            if item.get("type", "message") != "message" or item.get("role") != "assistant":
                break
            texts.append(_text(item.get("content")))
        return "\n".join(reversed(texts))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(part for part in parts if isinstance(part, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier found: a finite reward, and JSON fields for the rollout's row."""

    reward: float
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.reward, bool) or not isinstance(self.reward, int | float) or not isfinite(self.reward):
            raise ValueError(f"reward {self.reward!r} is not a finite float")


class ShuffledRewards:
    """A control for training: each rollout gets the reward of an earlier one. The distribution stays, the signal is gone.

    Only the first rollout, which none precedes, gets its own.
    """

    def __init__(self, *, pool_size: int = 1000, seed: int = 0):
        self._pool: deque[float] = deque(maxlen=pool_size)
        self._random = random.Random(seed)

    def __call__(self, reward: float) -> float:
        drawn = self._random.choice(self._pool) if self._pool else reward
        self._pool.append(reward)
        return drawn


def true_reward(reward: float) -> float:
    """The reward as the verifier gave it."""
    return reward


TaskT = TypeVar("TaskT", bound=Task)
StateT = TypeVar("StateT")


class VerificationFailed(Exception):  # noqa: N818 - the word of the wire: judge_failed
    """The verifier could not tell: a judge or a model that it asks is broken. No reward of 0, but none."""


class InvalidTask(Exception):  # noqa: N818 - the client's fault, as a row that is no Task is
    """The row is a Task in form and still none that can be played. Any handler may raise it; the client is answered 422.

    `loc` is the path of the wrong field in the row, `kind` the `type` of the reply, a word for programs.
    """

    def __init__(self, message: str, *, loc: Sequence[str | int], kind: str = "value_error"):
        super().__init__(message)
        self.loc = tuple(loc)
        self.kind = kind


class TaskServer(ABC, Generic[TaskT]):
    """What all servers are: tasks, settings, and a life. The two kinds of conversation with them stand below."""

    Task: type[TaskT]
    """What the server needs of a task row; a row without it is refused with 422."""
    Knobs: type[StrictModel] = StrictModel
    """Settings of `tasks`."""
    FileKnobs: type[StrictModel] = StrictModel
    """Settings of `tasks_from`."""
    Settings: type[StrictModel] = StrictModel
    """Settings of the server, from a YAML file or from overrides of `serve`."""
    stateless: ClassVar[bool] = False
    """Sessions hold nothing, so that several processes may answer side by side."""
    deadline_s: float = 60.0
    """Seconds that a handler may take; then the request is answered with 504. A class sets it and the two below, or __init__."""
    session_ttl_s: float = 3600.0
    """Seconds after its last use at which a session ends."""
    max_sessions: int = 100_000
    """Sessions that live at once; a further one pushes out the one that is idle for longest."""

    def __init__(self, settings: StrictModel | None = None, *, shuffle_rewards: bool = False):
        """`settings`, an instance of `Settings`, are the defaults when left out. Raises ConfigError where they need a value."""
        self.settings = settings if settings is not None else validate(self.Settings, {})
        self.final_reward = ShuffledRewards() if shuffle_rewards else true_reward

    @classmethod
    def tasks(cls, *, num_tasks: int, seed: int, split: Split, **knobs: Any) -> Iterator[Row]:
        """`num_tasks` different task rows, the same for the same arguments. Raises ConfigError at once for wrong arguments."""
        if split not in get_args(Split):
            raise ConfigError(f"unknown split {split!r}{nearest(split, get_args(Split))}")
        if num_tasks < 0:
            raise ConfigError(f"num_tasks={num_tasks}: expected 0 or more")
        return cls.make_tasks(validate(cls.Knobs, knobs), num_tasks=num_tasks, seed=seed, split=split)

    @classmethod
    def tasks_for(cls, settings: StrictModel, *, num_tasks: int, seed: int, split: Split, **knobs: Any) -> Iterator[Row]:
        """`tasks` for a server with these `settings`; a server that stands before others asks theirs. Raises ConfigError."""
        return cls.tasks(num_tasks=num_tasks, seed=seed, split=split, **knobs)

    @classmethod
    @abstractmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """What `tasks` promises, from an instance of `Knobs`. No task of one split is in the other, whatever the seeds."""

    @classmethod
    def tasks_from(cls, records: Iterable[Record], *, seed: int, **knobs: Any) -> Iterator[Row]:
        """A task row for each record of a published benchmark.

        Raises ConfigError at once where the server reads none and for wrong knobs, DataError for a record that is not understood.
        """
        return cls.read_tasks(validate(cls.FileKnobs, knobs), records, seed=seed)

    @classmethod
    def read_tasks(cls, knobs: Any, records: Iterable[Record], *, seed: int) -> Iterator[Row]:
        """What `tasks_from` promises, from an instance of `FileKnobs`. Raises ConfigError where a server does not write it."""
        raise ConfigError(f"{cls.__name__} makes its tasks itself, and reads none from files")

    @classmethod
    def known_answers(cls, row: Row) -> KnownAnswers:
        """Answers to a task by their worth, `good`, `bad` and `adversarial` ones, for `check-reward` and demonstrations.

        Each is a text, or a list of texts and function calls, one a turn. Empty where what the row tells of itself will do: its
        `expected_answer`, `solution` and `ground_truth`. Asked of rows that are tasks of this server.
        """
        return {}

    @classmethod
    def answers_to(cls, row: Row) -> KnownAnswers:
        """`known_answers`, none for a row that is no task of this server."""
        try:
            cls.Task.model_validate(row)
        except ValidationError:
            return {}
        return cls.known_answers(row)

    @classmethod
    def known_answers_for(cls, settings: StrictModel, row: Row) -> KnownAnswers:
        """`answers_to` for a server with these `settings`; a server that stands before others asks theirs."""
        return cls.answers_to(row)

    async def start(self) -> None:
        """Called in the server's event loop before the first request: open pools and connections here."""

    async def stop(self) -> None:
        """Called after the last request, also when `start` failed half way."""


class ResourceServer(TaskServer[TaskT], Generic[TaskT, StateT]):
    """Tools and a verdict. A session holds one StateT from /seed_session on; tools change it, the verifier reads it."""

    reverify_mode: Literal["stateless", "unsupported"] = "stateless"
    """Whether `verify` gives the same reward again from the row alone, without a session."""

    def __init__(self, settings: StrictModel | None = None, *, shuffle_rewards: bool = False):
        super().__init__(settings, shuffle_rewards=shuffle_rewards)
        if shuffle_rewards:
            self.reverify_mode = "unsupported"

    @classmethod
    def tools(cls) -> list[Item]:
        """The tools in the flat Responses form, as task rows carry them."""
        return [one.schema for one in tools_of(cls).values()]

    def tool_table(self) -> dict[str, Tool]:
        """The tools by name; of each there is a method, or an attribute that can be called like one."""
        return tools_of(type(self))

    @abstractmethod
    async def seed(self, task: TaskT) -> StateT:
        """The state of a new session. Raises InvalidTask for a row that cannot be played."""

    @abstractmethod
    async def verify(self, task: TaskT, response: Response, session: StateT | None) -> Verdict:
        """The reward. Raises SessionMissing where `session` is None and needed, VerificationFailed where it cannot tell."""

    def end(self, session: StateT) -> None:
        """Called once when a session is over, idle for too long or pushed out by younger ones: release what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one answer of the model came to in a step-wise environment."""

    reward: float
    """Of this step alone; the rollout's is the sum."""
    observation: str | None = None
    """What the model reads next."""
    terminated: bool = False
    """The task is over."""
    truncated: bool = False
    """The environment cuts the task off."""
    info: dict[str, Any] = field(default_factory=dict)


class StepwiseServer(TaskServer[TaskT], Generic[TaskT, StateT]):
    """An environment that answers every answer: NeMo Gym's gymnasium family, /reset and /step."""

    @abstractmethod
    async def reset(self, task: TaskT) -> tuple[StateT, str | None]:
        """The state of a new episode, and the first observation. Raises InvalidTask for a row that cannot be played."""

    @abstractmethod
    async def step(self, task: TaskT, response: Response, session: StateT) -> Step:
        """Take the model's latest response."""

    def end(self, session: StateT) -> None:
        """Called once when an episode is closed, idle for too long or pushed out by younger ones."""
