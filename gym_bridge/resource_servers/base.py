"""What a resource server is: tasks to attempt, tools to call, and a verifier. `http.py` puts one on the network.

class Dice(ResourceServer[DiceTask, Rolls]):
    @tool
    async def roll(self, session: Rolls, sides: int) -> dict[str, int]:
        "Throw a die with that many sides."
"""

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

from gym_bridge.config import StrictModel, validate
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.resource_servers.tools import tools_of
from gym_bridge.schemas.rollouts import Item, Row

Split = Literal["train", "heldout"]


class Task(BaseModel):
    """What a server reads of a task row. Other keys are left alone: the row belongs to the client, which adds its own."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    responses_create_params: dict[str, Any]


class Response(BaseModel):
    """What a verifier reads of a Responses object."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    output: list[Item]

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


class ResourceServer(ABC, Generic[TaskT, StateT]):
    """Base of all resource servers. A session holds one StateT from /seed_session on; tools change it, the verifier reads it."""

    Task: type[TaskT]
    """What the server needs of a task row; a row without it is refused with 422."""
    Knobs: type[StrictModel] = StrictModel
    """Settings of `tasks`."""
    reverify_mode: Literal["stateless", "unsupported"] = "stateless"
    """Whether `verify` gives the same reward again from the row alone, without a session."""

    def __init__(self, *, shuffle_rewards: bool = False):
        self.final_reward = ShuffledRewards() if shuffle_rewards else true_reward
        if shuffle_rewards:
            self.reverify_mode = "unsupported"

    @classmethod
    def tools(cls) -> list[Item]:
        """The tools in the flat Responses form, as task rows carry them."""
        return [one.schema for one in tools_of(cls).values()]

    @classmethod
    def tasks(cls, *, num_tasks: int, seed: int, split: Split, **knobs: Any) -> Iterator[Row]:
        """`num_tasks` different task rows, the same for the same arguments. Raises ConfigError at once for wrong arguments."""
        if split not in get_args(Split):
            raise ConfigError(f"unknown split {split!r}{nearest(split, get_args(Split))}")
        if num_tasks < 0:
            raise ConfigError(f"num_tasks={num_tasks}: expected 0 or more")
        return cls.make_tasks(validate(cls.Knobs, knobs), num_tasks=num_tasks, seed=seed, split=split)

    @classmethod
    @abstractmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """What `tasks` promises, from an instance of `Knobs`. No task of one split is in the other, whatever the seeds."""

    @abstractmethod
    async def seed(self, task: TaskT) -> StateT:
        """The state of a new session."""

    @abstractmethod
    async def verify(self, task: TaskT, response: Response, session: StateT | None) -> Verdict:
        """The reward. Raises SessionMissing where it needs a session and `session` is None."""
