"""Collectors of a collection in places of Ray, which play for the one process that writes the log."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yarl import URL

from gym_bridge.api.clustered import collectors_of
from gym_bridge.cluster.commands import Place
from gym_bridge.errors import ConfigError
from gym_bridge.io.rollout_log import sibling
from gym_bridge.rollouts.shards import ShardPool
from gym_bridge.schemas.cluster_settings import ClusterSettings, RoleSettings
from gym_bridge.schemas.play_settings import RunSettings
from gym_bridge.schemas.remote_names import shown, url_of

if TYPE_CHECKING:
    from gym_bridge.cluster.services import Services
    from gym_bridge.rollouts.remote_player import OpenPlayer

ROLE = "collectors"
COLLECTORS_S = 600.0
"""How long a run waits for collectors, which come when Ray has places for them."""
LOOK_S = 0.5
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1", "0.0.0.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class FarCollectors:
    """Collectors that Ray keeps."""

    services: "Services"
    board: Path
    """The file that tells them where to connect."""
    host: str
    """This machine, as they reach it."""

    def pool(self, open_player: "OpenPlayer", *, trusted: bool) -> ShardPool:
        """The player over them."""
        return ShardPool(open_player, board=self.board, host=self.host, trusted=trusted, patience_s=COLLECTORS_S)

    async def keep(self) -> None:
        """Replace those that end, until cancelled. Raises PolicyError when one does not come up."""
        from gym_bridge.cluster.services import look

        while True:
            await asyncio.to_thread(look, self.services.processes, timeout_s=LOOK_S)
            await asyncio.to_thread(self.services.replace)


@contextmanager
def far_collectors(settings: RunSettings) -> Iterator[FarCollectors]:
    """So many as `settings.workers` on the cluster at `settings.ray`, for as long as the block.

    Raises ConfigError for a cluster that is not there or too small, and for a server that they cannot reach.
    """
    from gym_bridge.cluster.ray_places import RayPlaces
    from gym_bridge.cluster.services import Services

    role = RoleSettings(count=settings.workers)
    cluster = ClusterSettings(kind="ray", address=str(settings.ray))
    board = sibling(settings.output, "_collectors.json").resolve()
    logs = sibling(settings.output, "_logs").resolve()
    with RayPlaces(cluster, {ROLE: role}) as places:
        services = Services(places, [collectors_of(cluster, role, board, logs)])
        try:
            services.start()
            _check_reached(settings, services.places(ROLE), host=places.host)
            yield FarCollectors(services=services, board=board, host=places.host)
        finally:
            services.close()


def _check_reached(settings: RunSettings, places: Sequence[Place], *, host: str) -> None:
    elsewhere = sorted({one.address for one in places} - {host})
    if not elsewhere:
        return
    where = f"is reached on {host} alone, and collectors run on {elsewhere[0]} too"
    if settings.gym_config:
        raise ConfigError(f"NeMo Gym of --gym-config {where}: start it where all reach it, and pass --head-url")
    addresses = {"server": [settings.server], "agent_url": [settings.agent_url], "head_url": [settings.head_url]}
    for name, urls in (*addresses.items(), ("model_url", settings.model_url)):
        for url in filter(None, urls):
            if "://" not in url or URL(url).host in LOOPBACK_HOSTS:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} {url} {where}: serve it where all reach it, and pass its URL")
    if url_of(settings.output) is not None and "GYM_BRIDGE_CACHE" not in os.environ:
        raise ConfigError(
            f"--output {shown(settings.output)} is kept on {host} while it grows, and collectors run on {elsewhere[0]} too: let "
            "GYM_BRIDGE_CACHE name a directory that all machines share"
        )
