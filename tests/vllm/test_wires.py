"""The three wires of a real vLLM: the same greedy model gives the same rollouts through each."""

import asyncio
from typing import Any

import pytest

from gym_bridge.errors import ContextOverflowError, GymBridgeError
from gym_bridge.rollouts.models.model_http import EndpointError
from gym_bridge.schemas.rollouts import Rollout
from gym_bridge.schemas.seams import Turn, TurnRequest
from gym_bridge.schemas.tokens import SampleKey
from tests.vllm.playing import WIRES, ServedModel, Wire, connected, endpoint_of, play, tasks

pytestmark = pytest.mark.vllm


def told(rollout: Rollout) -> list[tuple[str, str]]:
    """What was said and done, without ids."""
    assert rollout.failure is None, rollout.failure
    parts = {
        "message": lambda item: item["content"][0]["text"].strip(),
        "function_call": lambda item: f"{item['name']} {item['arguments']}".replace(" ", ""),
        "function_call_output": lambda item: item["output"],
    }
    return [(item["type"], parts[item["type"]](item)) for item in rollout.row["response"]["output"]]


def test_sums_come_out_alike_over_every_wire(served: ServedModel):
    rows = tasks("sum", num_tasks=3, temperature=0)
    chat, responses, tokens = (play(wire, served, rows)[0] for wire in WIRES)
    assert [told(one) for one in chat] == [told(one) for one in responses] == [told(one) for one in tokens]
    assert [one.reward for one in chat] == [one.reward for one in responses] == [one.reward for one in tokens]
    assert all(one.row["gym_bridge"]["stop_reason"] == "answered" for one in tokens)
    assert [bool(one.turns) for one in (chat[0], responses[0], tokens[0])] == [False, False, True]


def test_a_tool_is_called_and_its_output_answered_alike_over_every_wire(served: ServedModel):
    rows = tasks("tool", num_tasks=3, temperature=0)
    chat, responses, tokens = (play(wire, served, rows)[0] for wire in WIRES)
    assert [told(one) for one in chat] == [told(one) for one in responses] == [told(one) for one in tokens]
    kinds = {tuple(kind for kind, _ in told(one)) for one in tokens}
    assert ("function_call", "function_call_output", "message") in kinds
    usages = [[one.row["response"]["usage"]["input_tokens"] for one in played] for played in (chat, responses, tokens)]
    assert usages[0] == usages[1] == usages[2]


def asked(wire: Wire, served: ServedModel, text: str, *, model: str | None = None, **params: Any) -> Turn | GymBridgeError:
    """The outcome of one call."""
    request = TurnRequest(
        items=({"role": "user", "content": text},), tools=(), params={"temperature": 0, **params}, key=SampleKey(0, 0, 0, 0)
    )

    async def run() -> Turn | GymBridgeError:
        async with connected(served) as http:
            endpoint = endpoint_of(wire, http, served, **({"model": model} if model else {}))
            try:
                return await endpoint.turn(request)
            except GymBridgeError as error:
                return error

    return asyncio.run(run())


@pytest.mark.parametrize("wire", WIRES)
def test_a_prompt_beyond_the_context_is_an_overflow(served: ServedModel, wire: Wire):
    error = asked(wire, served, "again " * 3000)
    assert isinstance(error, ContextOverflowError) or (isinstance(error, EndpointError) and error.context_overflow), error


@pytest.mark.parametrize("wire", WIRES)
def test_an_unknown_model_is_a_mistake_in_the_configuration(served: ServedModel, wire: Wire):
    error = asked(wire, served, "Hello", model="nobody")
    assert isinstance(error, EndpointError)
    assert (error.status, error.configuration) == (404, True)
