"""A learned reward: a sequence-classification model scores the whole conversation."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from math import isfinite
from typing import Any, Literal, cast

from pydantic import Field

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError, DataError, missing_extra
from gym_bridge.resource_servers.base import ResourceServer, Response, Split, Task, Verdict, VerificationFailed
from gym_bridge.resource_servers.reward_model.batches import Batches
from gym_bridge.resource_servers.reward_model.scorer import RewardScorer
from gym_bridge.schemas.chat import chat_messages, chat_tools
from gym_bridge.schemas.rollouts import Item, Row


class Settings(StrictModel):
    """Which model scores, and how."""

    model: str
    """A run or checkpoint of a reward model, a Hugging Face directory with one label, or a hub name."""
    device: str = "auto"
    """auto: the GPU where there is one; or cpu, cuda, cuda:1, ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and computation. In float32 a score does not depend on its batch by more than rounding."""
    renderer: str | None = None
    """How conversations become tokens; told from the model's directory when left out."""
    max_length: int = Field(4096, ge=1)
    """Tokens that the model reads; of a longer conversation the last ones."""
    batch_size: int = Field(16, ge=1)
    """Conversations scored at once."""
    gather_ms: float = Field(4.0, ge=0, le=1000)
    """Milliseconds that a request waits for others to share its batch."""


class Conversation(Task):
    """What is read of a row: the conversation that the response goes on."""


class RewardModelServer(ResourceServer[Conversation, None]):
    """The reward is the model's score of the task's conversation with the rollout's response: any finite number."""

    Task = Conversation
    Settings = Settings
    deadline_s = 600.0  # a queue of batches on a CPU takes its time

    def __init__(self, settings: Settings | None = None, *, shuffle_rewards: bool = False):
        if find_spec("torch") is None or find_spec("transformers") is None:
            raise missing_extra("resource server 'reward_model'", "train")
        super().__init__(settings, shuffle_rewards=shuffle_rewards)
        self._given = cast(Settings, self.settings)
        self._thread: ThreadPoolExecutor | None = None
        self._scorer: RewardScorer
        self._batches: Batches[list[int]] | None = None

    async def start(self) -> None:
        """Load the model. Raises ConfigError or PolicyError for one that cannot be."""
        given = self._given
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward_model")
        self._scorer = await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: RewardScorer(given.model, device=given.device, dtype=given.dtype, renderer=given.renderer)
        )
        self._batches = Batches(
            self._scorer.scores, thread=self._thread, batch_size=given.batch_size, gather_s=given.gather_ms / 1000
        )
        await self._batches.start()

    async def stop(self) -> None:
        """End the thread."""
        if self._batches is not None:
            await self._batches.stop()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    async def seed(self, task: Conversation) -> None:
        """A session holds nothing."""

    async def verify(self, task: Conversation, response: Response, session: None) -> Verdict:
        """The score; `reward_model_truncated` tells that the model read the last `max_length` tokens only.

        Raises VerificationFailed for a conversation that cannot be rendered, and for a score that is no finite number.
        """
        assert self._batches is not None
        ids = self._token_ids(task.responses_create_params, response.output)
        try:
            score = await self._batches.one(ids[-self._given.max_length :])
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise VerificationFailed(f"the reward model cannot score the conversation: {error}") from error
        if not isfinite(score):
            raise VerificationFailed(f"the reward model's score is {score}")
        return Verdict(reward=score, fields={"reward_model_truncated": len(ids) > self._given.max_length})

    @classmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """None: a reward model scores answers to tasks that come from elsewhere. Raises ConfigError."""
        raise ConfigError("server 'reward_model' makes no tasks: it scores answers to yours; see its data/example.jsonl")

    def _token_ids(self, params: dict[str, Any], output: list[Item]) -> list[int]:
        given = params.get("input") or []
        instructions = params.get("instructions")
        try:
            before: list[Item] = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
            if isinstance(instructions, str):
                before = [{"role": "system", "content": instructions}, *before]
            messages = chat_messages([*before, *output])
            ids = self._scorer.token_ids(messages, chat_tools(params.get("tools") or []))
        except (DataError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise VerificationFailed(f"the conversation cannot be rendered for the reward model: {error}") from error
        if not ids:
            raise VerificationFailed("the conversation is empty")
        return ids
