"""Resource servers that even a model of random weights gets rewards from: the share of vowels, or of digits, in its reply."""

import asyncio
import random
from dataclasses import dataclass

from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.base import ResourceServer, Step, StepwiseServer, Task, Verdict


def share(text: str, letters: str) -> float:
    """How much of the text is `letters`."""
    return sum(one in letters for one in text) / max(len(text), 1)


class Settings(StrictModel):
    """How a server of letters answers."""

    letters: str = "aeiou"
    """What is rewarded."""
    jitter_s: float = 0.0
    """Verification takes a random time up to so many seconds."""
    level: bool = False
    """Every reply gets the same reward."""


class Letters(ResourceServer[Task, None]):
    """Rewards the share of the letters in the answer, and tells half of it apart."""

    Task = Task
    Settings = Settings

    @classmethod
    def make_tasks(cls, knobs, *, num_tasks, seed, split):
        first = 0 if split == "train" else 1000
        messages = [[{"role": "user", "content": f"Say {number}"}] for number in range(first, first + num_tasks)]
        return iter([{"responses_create_params": {"input": one}} for one in messages])

    async def seed(self, task: Task) -> None:
        return None

    async def verify(self, task: Task, response, session) -> Verdict:
        await asyncio.sleep(random.random() * self.settings.jitter_s)
        if self.settings.level:
            return Verdict(reward=0.25)
        found = share(response.final_text, self.settings.letters)
        return Verdict(reward=found, fields={"reward_components": {"letters": found, "short": float(len(response.final_text) < 9)}})


@dataclass(slots=True)
class Talk:
    """An episode."""

    num_turns: int = 0


class Turns(StepwiseServer[Task, Talk]):
    """Three turns, each of which earns its share of vowels."""

    Task = Task
    said = "Say more"
    """Between them."""

    @classmethod
    def make_tasks(cls, knobs, *, num_tasks, seed, split):
        return iter([{"responses_create_params": {"input": []}} for _ in range(num_tasks)])

    async def reset(self, task: Task) -> tuple[Talk, str]:
        return Talk(), "Say something"

    async def step(self, task: Task, response, session: Talk) -> Step:
        session.num_turns += 1
        reward = share(response.final_text, "aeiou")
        return Step(reward=reward, observation=self.said, terminated=session.num_turns == 3)


class Verbose(Turns):
    """Says two megabytes where a word would do."""

    said = "Say more. " * 200_000
