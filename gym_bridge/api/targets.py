"""Where rollouts are played: what --server, --agent-url, --head-url and --gym-config come to."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gym_bridge.errors import ConfigError, nearest
from gym_bridge.io.digests import digest_json
from gym_bridge.schemas.addresses import TOKEN_VARIABLE
from gym_bridge.schemas.play_settings import LimitSettings, TargetSettings

if TYPE_CHECKING:
    from gym_bridge.rollouts.http import HttpClient
    from gym_bridge.rollouts.policy_server.calls import PolicyServer
    from gym_bridge.rollouts.sessions.detection import Dialect
    from gym_bridge.rollouts.sessions.environment import Environment
    from gym_bridge.rollouts.sessions.head import HeadConfig
    from gym_bridge.rollouts.turn_loop import TurnLoop

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Addresses, so that any process can play there."""

    dialect: "Dialect"
    url: str = ""
    by_agent: Mapping[str, str] = field(default_factory=dict)
    """Addresses of agents by name, instead of `url`."""
    default_agent: str | None = None
    """Who plays the rows that name no agent."""
    cohorts: bool = False
    """The rollouts of a task are played together."""
    cohort_size: int | None = None
    """How many of them the verifier waits for, where its config tells."""
    policy: "PolicyServer | None" = None
    """The endpoint of the policy that trains, where it is the agents' model; in the process that serves it alone."""


@contextmanager
def open_target(settings: TargetSettings, *, log: Path, policy: Sequence[str] = ()) -> Iterator[Target]:
    """The target of a run; what has to be started for it runs as long as the block. Raises ConfigError and ServerError.

    NeMo Gym, where it is started, prints to `log` and gets the words `policy` on its command line.
    """
    with ExitStack() as stack:
        if settings.agent_url:
            target = Target(dialect="agent", url=settings.agent_url)
        elif settings.head_url or settings.gym_config:
            target = _behind_head(settings, settings.head_url or stack.enter_context(_nemo_gym(settings, log, policy)))
        else:
            name = str(settings.server)
            url = name if "://" in name else stack.enter_context(_started(name))
            target = Target(dialect=_dialect(settings, url), url=url)
        if settings.cohort is not None:
            target = replace(target, cohorts=settings.cohort)
        yield target


def server_client(target: Target | None = None) -> "HttpClient":
    """Connections to a resource server, with the token of one of ours from the environment; agents are sent none."""
    from gym_bridge.rollouts.http import HttpClient, connections_for

    to_agents = target is not None and target.dialect == "agent"
    return HttpClient(max_connections=connections_for("tools"), bearer=None if to_agents else os.environ.get(TOKEN_VARIABLE))


def environment_of(target: Target, *, loop: "TurnLoop | None", http: "HttpClient", limits: LimitSettings) -> "Environment":
    """The environment at `target`; `loop` plays where no agent does. To be used in the event loop that closes `http`.

    Agents that play a policy's endpoint bring the tokens that it sampled, and their versions.
    """
    from gym_bridge.rollouts.sessions.routing import ByAgent

    if not target.by_agent:
        return _at(target, target.url, loop=loop, http=http, limits=limits)
    environments = {name: _at(target, url, loop=loop, http=http, limits=limits) for name, url in target.by_agent.items()}
    return ByAgent(environments, default=environments[target.default_agent] if target.default_agent else None)


def _at(target: Target, url: str, *, loop: "TurnLoop | None", http: "HttpClient", limits: LimitSettings) -> "Environment":
    from gym_bridge.rollouts.sessions.agent import Agent
    from gym_bridge.rollouts.sessions.gymnasium import Gymnasium
    from gym_bridge.rollouts.sessions.seed_verify import SeedVerify

    if target.dialect == "agent" or loop is None:
        return Agent(url=url, http=http, timeout_s=limits.rollout_timeout_s, policy=target.policy)
    kind = Gymnasium if target.dialect == "gymnasium" else SeedVerify
    return kind(url=url, http=http, loop=loop, request_timeout_s=limits.request_timeout_s)


def _dialect(settings: TargetSettings, url: str) -> "Dialect":
    from gym_bridge.rollouts.sessions.detection import detect

    return settings.dialect if settings.dialect != "auto" else _now(lambda http: detect(url, http))


def _behind_head(settings: TargetSettings, head_url: str) -> Target:
    from gym_bridge.rollouts.sessions.head import read_head

    head = _now(lambda http: read_head(head_url, http))
    if settings.server:
        return _resources_server(settings, settings.server, head)
    running = {name: agent.url for name, agent in head.agents.items() if agent.url is not None}
    if not running:
        raise ConfigError(f"{head_url}: no agent runs there; give --server NAME to play a resource server from here")
    if settings.agent is not None:
        head.address(settings.agent)
    sizes = {size for name in running if (size := head.cohort_size(name)) is not None}
    return Target(
        dialect="agent",
        by_agent=running,
        default_agent=settings.agent or (next(iter(running)) if len(running) == 1 else None),
        cohorts=bool(sizes),
        cohort_size=next(iter(sizes)) if len(running) == len(sizes) == 1 else None,
    )


def _resources_server(settings: TargetSettings, name: str, head: "HeadConfig") -> Target:
    server = head.resources_servers.get(name)
    if server is None or server.url is None:
        known = nearest(name, head.resources_servers)
        raise ConfigError(f"{head.url}: no resource server {name!r} runs there{known if server is None else ''}")
    size = server.cohort_size
    return Target(dialect=_dialect(settings, server.url), url=server.url, cohorts=size is not None, cohort_size=size)


def descriptions_of(target: Target) -> dict[str, str]:
    """Digests of what the servers of `target` say of themselves, by address; those that say nothing are left out.

    Raises ServerError for one that does not answer.
    """
    from gym_bridge.api.models import public_url
    from gym_bridge.rollouts.sessions.detection import description

    async def ask(http: "HttpClient") -> dict[str, str]:
        urls = sorted(target.by_agent.values()) or [target.url]
        described = [await description(url, http) for url in urls]
        return {public_url(url): digest_json(one) for url, one in zip(urls, described, strict=True) if one is not None}

    return _now(ask)


def _now(ask: "Callable[[HttpClient], Awaitable[T]]") -> T:
    """What `ask` answers, in an event loop of its own."""

    async def run() -> T:
        http = server_client()
        try:
            return await ask(http)
        finally:
            await http.close()

    return asyncio.run(run())


@contextmanager
def _nemo_gym(settings: TargetSettings, log: Path, policy: Sequence[str]) -> Iterator[str]:
    from gym_bridge.rollouts.sessions.launcher import NemoGymProcess

    with NemoGymProcess(settings.gym_config, log=log, overrides=policy) as started:
        yield started.head_url


@contextmanager
def _started(name: str) -> Iterator[str]:
    from gym_bridge.resource_servers.process import ServerProcess
    from gym_bridge.resource_servers.registry import load_server

    load_server(name)  # an unknown name is the user's mistake, not the child's
    with ServerProcess(name) as server:
        yield server.url
