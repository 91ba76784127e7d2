"""A resource server whose rewards always differ within a group, and the same reward as a function."""

import random
from collections.abc import Iterator

from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.base import ResourceServer, Response, Split, Task, Verdict
from gym_bridge.schemas.rollouts import Row

NAME = "benchmarks.vowel_server:VowelServer"
HEROES = ("a sailor", "a baker", "an owl", "a fox", "a king", "a clock", "a tailor", "a river")
PLACES = ("in the mountains", "at sea", "in a small town", "under the ground", "in a library", "on the moon")


def questions(count: int, *, seed: int) -> list[str]:
    """What the model is asked: so that it answers with more tokens than it may."""
    draw = random.Random(seed)
    return [f"Tell me a long story about {draw.choice(HEROES)} {draw.choice(PLACES)}, number {number}." for number in range(count)]


def share_of_vowels(text: str) -> float:
    """The reward: the part of the text's characters that are vowels; 0 without any."""
    return sum(one in "aeiou" for one in text) / max(1, len(text))


class Question(Task):
    """Nothing beside what the model is asked."""


class VowelServer(ResourceServer[Question, None]):
    """No tools; an answer is worth its share of vowels."""

    Task = Question

    async def seed(self, task: Question) -> None:
        """Nothing."""

    async def verify(self, task: Question, response: Response, session: None) -> Verdict:
        """The share of vowels in the answer."""
        return Verdict(reward=share_of_vowels(response.final_text))

    @classmethod
    def make_tasks(cls, knobs: StrictModel, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """One user's question each."""
        for question in questions(num_tasks, seed=seed):
            yield {"responses_create_params": {"input": [{"role": "user", "content": question}]}}
