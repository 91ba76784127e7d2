"""Rollouts of the arithmetic server, played over each of vLLM's wires."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.models.chat import ChatEndpoint
from gym_bridge.rollouts.models.model_http import ModelHttp
from gym_bridge.rollouts.models.responses import ResponsesEndpoint
from gym_bridge.rollouts.models.sampled import SampledEndpoint
from gym_bridge.rollouts.models.vllm_sampler import VLLMSampler
from gym_bridge.rollouts.plan import PlannedRollout
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Rollout, RolloutKey
from gym_bridge.schemas.seams import ModelEndpoint
from gym_bridge.tokens.renderers import load_renderer
from tests.rollouts.model_stage import client
from tests.rollouts.stage import serving

MODEL = "smollm2"
CONTEXT_LENGTH = 2048
MAX_TOKENS = 48
Wire = Literal["chat", "responses", "tokens"]
WIRES: tuple[Wire, ...] = ("chat", "responses", "tokens")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Where the model answers, and its files."""

    url: str
    directory: Path


class KeepingHttp(ModelHttp):
    """Keeps every reply."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.replies: list[dict[str, Any]] = []

    async def post(self, route: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The reply, kept."""
        self.replies.append(await super().post(route, payload))
        return self.replies[-1]


@asynccontextmanager
async def connected(served: ServedModel):
    """An address of the model on connections of its own."""
    async with client() as pool:
        yield KeepingHttp(served.url, client=pool, api_key=None, timeout_s=120)


def endpoint_of(wire: Wire, http: ModelHttp, served: ServedModel, *, model: str = MODEL) -> ModelEndpoint:
    """The endpoint that speaks `wire`."""
    kinds: dict[Wire, Callable[[], ModelEndpoint]] = {
        "chat": lambda: ChatEndpoint(http, model),
        "responses": lambda: ResponsesEndpoint(http, model),
        "tokens": lambda: SampledEndpoint(
            VLLMSampler(http, model), load_renderer(served.directory), max_tokens=MAX_TOKENS, model=model
        ),
    }
    return kinds[wire]()


def tasks(kind: Literal["sum", "tool"], *, num_tasks: int, **params: Any) -> list[dict[str, Any]]:
    """Tasks of the arithmetic server with `params` laid over theirs."""
    rows = list(ArithmeticServer.tasks(num_tasks=num_tasks, seed=0, split="train", kind=kind))
    for row in rows:
        row["responses_create_params"] |= {"max_output_tokens": MAX_TOKENS, **params}
    return rows


def play(wire: Wire, served: ServedModel, rows: Sequence[dict[str, Any]]) -> tuple[list[Rollout], list[list[dict[str, Any]]]]:
    """A rollout of each row, one after the other so that nothing else is in the batch, and the engine's replies to each."""

    async def run() -> tuple[list[Rollout], list[list[dict[str, Any]]]]:
        rollouts: list[Rollout] = []
        replies: list[list[dict[str, Any]]] = []
        async with connected(served) as http, client() as pool, serving(application(ArithmeticServer())) as url:
            loop = TurnLoop(endpoint=endpoint_of(wire, http, served), limits=Limits(max_turns=3), seed=5)
            environment = SeedVerify(url=url, http=pool, loop=loop, request_timeout_s=60)
            for index, row in enumerate(rows):
                planned = PlannedRollout(key=RolloutKey(index, 0), row=row)
                http.replies.clear()
                rollouts.append((await Attempts(environment=environment, timeout_s=120).one(planned, 0)).rollout)
                replies.append(list(http.replies))
        return rollouts, replies

    return asyncio.run(run())
