"""A resource server for a model of random weights: it is to write the kind of characters that it is asked for."""

import random
from collections.abc import Iterator
from typing import Literal

from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.base import ResourceServer, Response, Split, Task, Verdict
from gym_bridge.schemas.rollouts import Row

NAME = "benchmarks.kind_server:KindServer"
KINDS = {"letters": "abcdefghijklmnopqrstuvwxyz", "digits": "0123456789"}


class Order(Task):
    """What is ordered."""

    kind: Literal["letters", "digits"]


class KindServer(ResourceServer[Order, None]):
    """No tools; an answer is worth its share of what was asked for. One kind alone is worth half."""

    Task = Order

    async def seed(self, task: Order) -> None:
        """Nothing."""

    async def verify(self, task: Order, response: Response, session: None) -> Verdict:
        """The share of the answer's characters that are of the kind; 0 without any."""
        text = response.final_text
        return Verdict(reward=sum(one in KINDS[task.kind] for one in text) / max(1, len(text)))

    @classmethod
    def make_tasks(cls, knobs: StrictModel, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Orders of both kinds, numbered so that no two are the same; the number means nothing."""
        draw = random.Random(f"{seed}-{split}")
        first = 0 if split == "train" else 1_000_000
        for number in draw.sample(range(first, first + 1_000_000), num_tasks):
            kind = draw.choice(tuple(KINDS))
            yield {"responses_create_params": {"input": [{"role": "user", "content": f"{kind} {number}"}]}, "kind": kind}
