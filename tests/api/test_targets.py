"""Where a training plays: the agents of a target have the policy's endpoint as their model."""

import asyncio
import socket
from typing import Any

from gym_bridge.api.targets import Target, environment_of
from gym_bridge.api.training_target import open_training_target
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.sessions.agent import Agent
from gym_bridge.rollouts.sessions.routing import ByAgent
from gym_bridge.schemas.play_settings import LimitSettings
from gym_bridge.schemas.settings import GRPOSettings


class Silent:
    """An endpoint that nobody asks."""

    async def turn(self, request: Any) -> Any:
        """No turn."""
        raise AssertionError("nobody plays here")

    async def close(self) -> None:
        """Nothing is open."""


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def environment_at(target: Target) -> Any:
    async def made() -> Any:
        http = HttpClient()
        try:
            return environment_of(target, loop=None, http=http, limits=LimitSettings(rollout_timeout_s=7))
        finally:
            await http.close()

    return asyncio.run(made())


def test_the_agent_of_a_training_plays_the_policys_endpoint(tmp_path):
    env = {"agent_url": "http://127.0.0.1:1", "policy_address": free_address()}
    settings = GRPOSettings.model_validate({"data": {"train": "tasks.jsonl"}, "env": env})
    assert settings.env is not None
    with open_training_target(settings, settings.env, Silent(), run=tmp_path) as target:
        assert target.policy is not None
        assert target.policy.url == f"http://{settings.env.policy_address}"
        agent = environment_at(target)
    assert isinstance(agent, Agent)
    assert (agent.url, agent.timeout_s, agent.policy) == ("http://127.0.0.1:1", 7, target.policy)


def test_every_agent_behind_a_head_plays_it():
    policy: Any = object()
    environment = environment_at(Target(dialect="agent", by_agent={"a": "http://a", "b": "http://b"}, policy=policy))
    assert isinstance(environment, ByAgent)
    agents: dict[str, Any] = dict(environment.environments)
    assert {name: (one.url, one.policy) for name, one in agents.items()} == {"a": ("http://a", policy), "b": ("http://b", policy)}
    assert environment.default is None


def test_agents_that_are_only_collected_from_have_a_model_of_their_own():
    assert environment_at(Target(dialect="agent", url="http://a")).policy is None
