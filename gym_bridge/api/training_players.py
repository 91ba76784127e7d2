"""Who plays the tasks of a training: in this process, or in collectors elsewhere that sample here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge.api.clustered import ClusterFiles
from gym_bridge.api.runs import renderer_of
from gym_bridge.api.targets import Target, environment_of, server_client
from gym_bridge.cluster.commands import ADDRESS_VARIABLE
from gym_bridge.schemas.addresses import LOOPBACK
from gym_bridge.schemas.seams import Sampler
from gym_bridge.schemas.settings import EnvSettings, GRPOSettings, PolicySettings

if TYPE_CHECKING:
    from gym_bridge.rollouts.collector import RolloutCollector
    from gym_bridge.rollouts.players import LocalPlayer, Player
    from gym_bridge.rollouts.turn_loop import TurnLoop
    from gym_bridge.schemas.seams import ModelEndpoint

COLLECTORS_S = 600.0
"""How long a run waits for its collectors, which come when Ray has places for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlayers:
    """Makes players of a run. It is pickled for collectors elsewhere."""

    env: EnvSettings
    seed: int
    trusted: bool
    """Rollouts have succeeded before, so that a server which is away is waited for from the start."""
    targets: Mapping[str, Target]
    """By environment."""
    names: Mapping[int, str]
    """Each task's environment, where there are several."""

    def player(self, endpoint: "ModelEndpoint") -> "LocalPlayer":
        """Plays a task at the target of its environment."""
        from gym_bridge.rollouts.attempts import Attempts
        from gym_bridge.rollouts.players import LocalPlayer, Retries
        from gym_bridge.rollouts.sessions.routing import ByTask

        clients = {name: server_client(target) for name, target in self.targets.items()}
        places = {
            name: environment_of(target, loop=self._turn_loop(endpoint, target), http=clients[name], limits=self.env)
            for name, target in self.targets.items()
        }
        player = LocalPlayer(
            Attempts(
                environment=ByTask(places, self.names) if len(places) > 1 else next(iter(places.values())),
                timeout_s=self.env.rollout_timeout_s,
            ),
            retries=Retries(max_attempts=self.env.max_attempts),
            patience_s=self.env.patience_s,
            closers=[one.close for one in clients.values()],
        )
        if self.trusted:
            player.trust()
        return player

    def collector(self, player: "Player") -> "RolloutCollector":
        """The collector over a player."""
        from gym_bridge.rollouts.collector import RolloutCollector
        from gym_bridge.rollouts.concurrency import FixedConcurrency

        cohorts = any(target.cohorts for target in self.targets.values())
        return RolloutCollector(player, concurrency=FixedConcurrency(self.env.concurrency), cohorts=cohorts)

    def _turn_loop(self, endpoint: "ModelEndpoint", target: Target) -> "TurnLoop | None":
        from gym_bridge.rollouts.limits import Limits
        from gym_bridge.rollouts.turn_loop import TurnLoop

        if target.dialect == "agent":
            return None
        limits = Limits(**{one.name: getattr(self.env, one.name) for one in fields(Limits)})
        return TurnLoop(endpoint=endpoint, limits=limits, seed=self.seed)


def open_training_player(
    players: TrainingPlayers, settings: GRPOSettings, model: Path, endpoint: "ModelEndpoint", sampler: Sampler
) -> "Player":
    """Who plays the training's own tasks: this process through `endpoint`, or the collectors of `cluster`, which sample from
    `sampler`."""
    if not settings.cluster.collectors.count:
        return players.player(endpoint)
    from gym_bridge.rollouts.shards import ShardPool

    return ShardPool(
        partial(far_player, players, settings.policy, model, settings.sampler.max_tokens),
        board=ClusterFiles(settings.trainer.output).collectors,
        host=os.environ.get(ADDRESS_VARIABLE, LOOPBACK),
        sampler=sampler,
        whole_rows=True,
        trusted=players.trusted,
        patience_s=COLLECTORS_S,
    )


def far_player(
    players: TrainingPlayers, policy: PolicySettings, model: Path, max_tokens: int, sampler: Sampler | None
) -> "LocalPlayer":
    """In a collector: the player whose policy answers where the training runs. Raises ConfigError as the renderer does."""
    from gym_bridge.rollouts.models.sampled import SampledEndpoint

    assert sampler is not None, "collectors of a training sample from its policy"
    endpoint = SampledEndpoint(sampler, renderer_of(policy, model), max_tokens=max_tokens, model=policy.model)
    return players.player(endpoint)
