"""NeMo Gym's head server, which knows every server of a run: its agents, its resources servers, and where they answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from yarl import URL

from gym_bridge.errors import ConfigError, ServerError, nearest
from gym_bridge.rollouts.http import HttpClient, HttpError

ROUTE = "/global_config_dict_yaml"
TIMEOUT_S = 30.0
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})
"""Hosts that a server binds to, and at which nobody can call it."""
REFERENCE = re.compile(r"\$\{(.+)\}")
MAX_REFERENCES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesServer:
    """A resources server as the head describes it."""

    name: str
    implementation: str
    """The name of its folder in NeMo Gym."""
    url: str | None
    """None until it is started."""
    cohort_size: int | None
    """Siblings of a task that its verifier waits for before it answers any of them (`num_rollouts_per_prompt`); None: it waits
    for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentServer:
    """An agent as the head describes it."""

    name: str
    implementation: str
    url: str | None
    resources_server: str | None
    """Name of the resources server that it drives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Servers by name."""

    url: str
    agents: Mapping[str, AgentServer]
    resources_servers: Mapping[str, ResourcesServer]

    def agent(self, name: str) -> AgentServer:
        """The agent of that name. Raises ConfigError with the nearest names."""
        if name not in self.agents:
            raise ConfigError(f"{self.url}: the head server knows no agent {name!r}{nearest(name, self.agents)}")
        return self.agents[name]

    def address(self, name: str) -> str:
        """The URL of an agent. Raises ConfigError where none of that name runs."""
        agent = self.agent(name)
        if agent.url is None:
            raise ConfigError(f"{self.url}: the agent {name!r} has no host and port; start it first")
        return agent.url

    def driven_by(self, name: str) -> ResourcesServer | None:
        """The resources server that an agent drives, where the head knows it. Raises ConfigError for an unknown agent."""
        driven = self.agent(name).resources_server
        return self.resources_servers.get(driven) if driven is not None else None

    def cohort_size(self, name: str) -> int | None:
        """Siblings of a task that the verifier behind an agent waits for. Raises ConfigError for an unknown agent."""
        server = self.driven_by(name)
        return server.cohort_size if server is not None else None


async def read_head(url: str, http: HttpClient, *, timeout_s: float = TIMEOUT_S) -> HeadConfig:
    """The servers that the head at `url` knows. Raises ServerError where it does not answer with a configuration."""
    url = url.rstrip("/")
    try:
        reply = await http.get(f"{url}{ROUTE}", timeout_s=timeout_s)
    except HttpError as error:
        raise ServerError(f"no head server answers {ROUTE}: {error}", url=url) from error
    if reply.status >= 300:
        message = f"{ROUTE} answered {reply.status}: {reply.short()}; expected NeMo Gym's head server"
        raise ServerError(message, url=url, status=reply.status)
    return head_config(parse_config(reply.body, url=url), url=url)


def head_config(config: Mapping[str, Any], *, url: str) -> HeadConfig:
    """The servers in NeMo Gym's merged configuration; `url` is the head's own, whose host stands for 0.0.0.0."""
    agents: dict[str, AgentServer] = {}
    resources: dict[str, ResourcesServer] = {}
    for name, instance in config.items():
        kind, implementation, fields = _server(instance)
        address = _address(config, fields, url)
        if kind == "responses_api_agents":
            driven = fields.get("resources_server")
            driven = _resolved(config, driven.get("name")) if isinstance(driven, dict) else None
            agents[name] = AgentServer(
                name=name,
                implementation=implementation,
                url=address,
                resources_server=driven if isinstance(driven, str) else None,
            )
        elif kind == "resources_servers":
            size = _resolved(config, fields.get("num_rollouts_per_prompt"))
            resources[name] = ResourcesServer(
                name=name,
                implementation=implementation,
                url=address,
                cohort_size=size if type(size) is int and size > 1 else None,
            )
    return HeadConfig(url=url, agents=agents, resources_servers=resources)


def parse_config(body: bytes, *, url: str) -> dict[str, Any]:
    """The configuration in a head's reply: YAML as the text of a JSON string, or as it is. Raises ServerError for no mapping."""
    import yaml  # OmegaConf's own dependency, and slow to import

    text = body.decode(errors="replace")
    try:
        told = orjson.loads(body)
        text = told if isinstance(told, str) else text
    except orjson.JSONDecodeError:
        pass  # some deployments answer the YAML itself
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ServerError(f"{ROUTE} answered no YAML: {str(error).splitlines()[0]}", url=url) from error
    if not isinstance(config, dict):
        raise ServerError(f"{ROUTE} answered {type(config).__name__}; expected a mapping", url=url)
    return {str(name): value for name, value in config.items()}


def addresses(config: Mapping[str, Any], *, url: str) -> dict[str, str]:
    """Where every server that NeMo Gym starts for a configuration answers, or will: agents, resources servers and models."""
    found: dict[str, str] = {}
    for name, instance in config.items():
        _, _, fields = _server(instance)
        address = _address(config, fields, url) if "entrypoint" in fields else None
        if address is not None:
            found[name] = address
    return found


def _server(instance: Any) -> tuple[str, str, dict[str, Any]]:
    """Kind, implementation and fields of an instance; all empty for what is none. Each is the only key of the one above."""
    kind, kinds = _only(instance)
    implementation, implementations = _only(kinds)
    return (kind, implementation, implementations) if isinstance(implementations, dict) else ("", "", {})


def _only(value: Any) -> tuple[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        return "", None
    ((name, inner),) = value.items()
    return str(name), inner


def _address(config: Mapping[str, Any], fields: Mapping[str, Any], head_url: str) -> str | None:
    host, port = _resolved(config, fields.get("host")), _resolved(config, fields.get("port"))
    if not isinstance(host, str) or "$" in host or type(port) is not int or not 0 < port < 65536:
        return None
    if host in EVERYWHERE:
        host = URL(head_url).host or "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolved(config: Mapping[str, Any], value: Any) -> Any:
    """A value behind its `${...}`: the head answers them unresolved. None where one leads nowhere."""
    for _ in range(MAX_REFERENCES):
        reference = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if reference is None:
            return value
        value = config
        for part in reference[1].split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return None
