"""Rollouts that an agent plays with the policy as its model; the agent is a stand-in that forgets what it is told to."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from aiohttp import web

from gym_bridge.errors import ContextOverflowError
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.models.sampled import SampledEndpoint
from gym_bridge.rollouts.plan import PlannedRollout
from gym_bridge.rollouts.policy_server.asked import TOKEN_FIELDS
from gym_bridge.rollouts.policy_server.serving import served_policy
from gym_bridge.rollouts.sessions.agent import Agent
from gym_bridge.schemas.rollouts import FailureType, Rollout, RolloutKey
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams
from gym_bridge.tokens.chatml import ChatMLRenderer
from tests.rollouts.model_stage import client
from tests.rollouts.stage import serving
from tests.rollouts.test_sampled import ScriptedSampler, renderer  # noqa: F401

TASK = {"responses_create_params": {"input": [{"role": "user", "content": "go"}], "metadata": {"k": "v"}}, "own": 1}
MORE = {"role": "user", "content": "more"}


class Full:
    """A sampler whose context is full."""

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """No completion."""
        raise ContextOverflowError("a prompt of 9 tokens fills the model's context of 8")


def without_tokens(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in TOKEN_FIELDS}


def agent_asking(url: str, forgets: frozenset[str]) -> web.Application:
    """An agent that asks twice, with what it forgets: the metadata, the tokens of the first or of all calls, the policy itself."""

    async def run(request: web.Request) -> web.Response:
        row = await request.json()
        params = dict(row["responses_create_params"])
        asked = {name: value for name, value in params.items() if name != "metadata" or "metadata" not in forgets}
        history, output = list(params["input"]), []
        reply: dict[str, Any] = {"metadata": params["metadata"]}
        async with httpx.AsyncClient(trust_env=False) as http:
            for number in range(2):
                if "policy" in forgets:
                    said = {"type": "message", "role": "assistant", "content": "else"}
                    output.append({**said, **dict(zip(TOKEN_FIELDS, ([1, 2], [3], [-0.5]), strict=True))})
                    continue
                reply = (await http.post(f"{url}/v1/responses", json={**asked, "input": history})).json()
                items = reply["output"]
                if "tokens" in forgets or ("first tokens" in forgets and number == 0):
                    items = [without_tokens(item) for item in items]
                output += items if not number else [MORE, *items]
                history += [*items, MORE]
                if reply["incomplete_details"]:
                    break
        answer = {**reply, "object": "response", "output": output}
        return web.json_response({"responses_create_params": params, "response": answer, "reward": 1.0})

    app = web.Application()
    app.router.add_post("/run", run)
    return app


def played(renderer: ChatMLRenderer, *forgets: str, sampler: Any = None) -> tuple[Rollout, Any, int]:  # noqa: F811
    """The rollout, the error that ended it, and how many tokens are kept after it."""
    endpoint = SampledEndpoint(sampler or ScriptedSampler(renderer, "one", "two"), renderer, max_tokens=20, model="tiny")

    async def run() -> tuple[Rollout, Any, int]:
        with served_policy(endpoint) as policy:
            async with serving(agent_asking(policy.url, frozenset(forgets))) as url, client() as http:
                agent = Agent(url=url, http=http, timeout_s=20, policy=policy)
                planned = PlannedRollout(key=RolloutKey(4, 2), row=TASK)
                attempted = await Attempts(environment=agent, timeout_s=20).one(planned, 1)
            kept = sum(policy.calls.find(turn.all_ids) is not None for turn in attempted.rollout.turns)
            return attempted.rollout, attempted.error, kept

    return asyncio.run(run())


@pytest.mark.parametrize("forgets", [(), ("tokens",), ("first tokens",), ("metadata",)])
def test_a_rollout_has_the_turns_that_were_sampled_whatever_the_agent_forgets(
    renderer: ChatMLRenderer,  # noqa: F811
    forgets: tuple[str, ...],
):
    rollout, _, kept = played(renderer, *forgets)
    assert rollout.failure is None
    assert [renderer.tokenizer.decode(turn.completion_ids) for turn in rollout.turns] == ["one<|im_end|>", "two<|im_end|>"]
    assert [(turn.policy_version, turn.starts_segment) for turn in rollout.turns] == [(3, True), (3, False)]
    assert kept == (2 if "metadata" in forgets else 0)
    assert rollout.row["responses_create_params"]["metadata"] == {"k": "v"}
    assert not any(name in str(rollout.row) for name in ("gym_bridge_rollout", "_ng_rollout_id", *TOKEN_FIELDS))
    assert rollout.row["own"] == 1


@pytest.mark.parametrize(
    ("forgets", "told"),
    [
        (("tokens", "metadata"), "set return_token_id_information: true"),
        (("policy",), "never called the policy's endpoint"),
    ],
)
def test_a_rollout_whose_tokens_are_unknown_fails_and_says_what_to_set(
    renderer: ChatMLRenderer,  # noqa: F811
    forgets: tuple[str, ...],
    told: str,
):
    rollout, error, _ = played(renderer, *forgets)
    assert rollout.failure is not None
    assert rollout.failure.type is FailureType.AGENT
    assert told in rollout.failure.message
    assert error.blocks == "refused"  # every other rollout would end in the same way
    assert rollout.turns == ()


def test_a_task_that_fills_the_context_is_no_wrong_setting(renderer: ChatMLRenderer):  # noqa: F811
    rollout, error, _ = played(renderer, sampler=Full())
    assert rollout.failure is not None
    assert (rollout.failure.type, rollout.failure.terminal) == (FailureType.CONTEXT_OVERFLOW, True)
    assert error.blocks is None
