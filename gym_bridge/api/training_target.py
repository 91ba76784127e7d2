"""Where a policy that trains is played, by us or by NeMo Gym's agents, whose model it then is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge.api.targets import Target, open_target
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.addresses import LOOPBACK, TOKEN_VARIABLE
from gym_bridge.schemas.play_settings import TargetSettings
from gym_bridge.schemas.settings import EnvSettings, GRPOSettings

if TYPE_CHECKING:
    from gym_bridge.schemas.seams import ModelEndpoint

MODEL_NAME = "policy"
"""What NeMo Gym is told that its policy is called; any name is answered."""
OWN_HOSTS = (LOOPBACK, "localhost", "::1")
EXAMPLE_PORT = 8765


@contextmanager
def open_training_target(settings: GRPOSettings, env: EnvSettings, endpoint: "ModelEndpoint", *, run: Path) -> Iterator[Target]:
    """The target of a training; what has to be started for it runs as long as the block.

    Where agents play, `endpoint` is served at env.policy_address, and NeMo Gym, where env.gym_configs start it, is told so; its
    log goes to `run`. Raises ConfigError, also for agents that nobody can tell of a free port, and ServerError.
    """
    where = _where(env)
    log = run / "nemo_gym.log"
    if env.played_by == "us":
        with open_target(where, log=log) as target:
            yield target
        return
    from gym_bridge.rollouts.policy_server.serving import served_policy

    host, port = _address(env)
    token = _token(host)
    keep_s = 2 * env.max_attempts * env.rollout_timeout_s
    with served_policy(
        endpoint, model=MODEL_NAME, host=host, port=port, seed=settings.trainer.seed, token=token, keep_s=keep_s
    ) as policy:
        words = [f"++policy_base_url={policy.base_url}", f"++policy_model_name={MODEL_NAME}"]
        words.append("++policy_api_key=" + ("none" if token is None else f"${{oc.env:{TOKEN_VARIABLE}}}"))
        with open_target(where, log=log, policy=words) as target:
            yield replace(target, policy=policy)


def _where(env: EnvSettings) -> TargetSettings:
    return TargetSettings(
        server=env.server,
        dialect=env.dialect,
        agent_url=env.agent_url,
        head_url=env.head_url,
        gym_config=env.gym_configs,
        agent=env.agent,
        cohort=env.cohort,
    )


def _address(env: EnvSettings) -> tuple[str, int]:
    """Host and port of env.policy_address. Raises ConfigError."""
    host, _, number = env.policy_address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not number.isdecimal() or int(number) > 65535:
        raise ConfigError(f"env.policy_address={env.policy_address!r}; expected HOST:PORT, such as {LOOPBACK}:{EXAMPLE_PORT}")
    if number == "0" and not env.gym_configs:
        name = "agent_url" if env.agent_url else "head_url"
        example = f"{host}:{EXAMPLE_PORT}"
        raise ConfigError(
            f"env.{name}: these agents run already, and nobody can tell them of a free port; set env.policy_address={example}, "
            f"and start their model server with ++policy_base_url=http://{example}/v1"
        )
    return host, int(number)


def _token(host: str) -> str | None:
    """The key that the agents must send. Raises ConfigError for an address beyond loopback without one."""
    if host in OWN_HOSTS:
        return None
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise ConfigError(
            f"env.policy_address lets other machines in at {host}: set {TOKEN_VARIABLE}, which the agents send as policy_api_key"
        )
    return token
