"""The collector that settings ask for: who plays, how many at once, and when it stops early."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gym_bridge.api.known_tasks import known_server, right_answers, tried_answers
from gym_bridge.api.models import http_endpoint, sampled_endpoint
from gym_bridge.api.targets import Target, environment_of, server_client
from gym_bridge.errors import ConfigError
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import AutoConcurrency, FixedConcurrency
from gym_bridge.rollouts.http import HttpClient, connections_for
from gym_bridge.rollouts.known_answers import KnownAnswer, ScriptedEndpoint
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.models.server_load import ServerLoad
from gym_bridge.rollouts.players import LocalPlayer, Player, Retries
from gym_bridge.rollouts.stopping import LEAST_FAILURES, StopRules
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.rollouts.workers import WorkerPool
from gym_bridge.schemas.play_settings import KNOWN_ANSWERS, CollectSettings, PlaySettings

if TYPE_CHECKING:
    from gym_bridge.api.far_collectors import FarCollectors
    from gym_bridge.policy.samplers.local import LocalSampler
    from gym_bridge.schemas.seams import ModelEndpoint

MAX_AUTO_CONCURRENCY = 4096
SCRIPTED_AT_ONCE = 64


def open_collector(
    settings: PlaySettings,
    target: Target,
    sampler: "LocalSampler | None",
    *,
    far: "FarCollectors | None" = None,
    trusted: bool = False,
) -> RolloutCollector:
    """The collector of a run; `sampler` plays where it is given, or the collectors `far`. To be closed in the event loop that
    collects.

    `trusted` says that rollouts have succeeded before: then nothing that turns one away can be a wrong setting.
    """
    workers, wanted = settings.workers, settings.concurrency
    player: Player
    open_there, beside = partial(_open_in_worker, settings, target), []
    if far is not None:
        player, beside = far.pool(open_there, trusted=trusted), [far.keep]
    elif workers > 1:
        player = WorkerPool(open_there, num_workers=workers, trusted=trusted)
    else:
        player = open_player(settings, target, sampler)
        if trusted:
            player.trust()
    if isinstance(wanted, int):
        fixed = FixedConcurrency(wanted)
        return RolloutCollector(player, concurrency=fixed, cohorts=target.cohorts, preflight=not trusted, beside=beside)
    load = ServerLoad(settings.model_url, HttpClient())
    return RolloutCollector(
        player,
        concurrency=AutoConcurrency(largest=MAX_AUTO_CONCURRENCY, pressure=load),
        cohorts=target.cohorts,
        preflight=not trusted,
        beside=[*beside, *([load.watch] if settings.model_url else [])],
    )


def open_scripted_collector(
    settings: PlaySettings, target: Target, script: Mapping[int, Sequence[KnownAnswer]]
) -> RolloutCollector:
    """The collector that plays known answers, by task index, in place of the policy. To be closed as that of `open_collector`."""
    player = _local_player(settings, target, ScriptedEndpoint(script), HttpClient())
    in_flight = settings.concurrency if isinstance(settings.concurrency, int) else SCRIPTED_AT_ONCE
    return RolloutCollector(player, concurrency=FixedConcurrency(in_flight), cohorts=False)


def stop_rules(settings: PlaySettings) -> StopRules:
    """When the collection that `settings` ask for stops early."""
    in_flight = settings.concurrency if isinstance(settings.concurrency, int) else 0
    return StopRules(
        max_failure_rate=settings.max_failure_rate,
        max_consecutive_failures=settings.max_consecutive_failures,
        token_budget=settings.token_budget,
        cost_budget=settings.cost_budget,
        input_price=settings.input_price,
        output_price=settings.output_price,
        hopeless_after=max(LEAST_FAILURES, 2 * in_flight),
    )


def _open_in_worker(settings: PlaySettings, target: Target, sampler: None) -> LocalPlayer:
    return open_player(settings, target)


def open_player(settings: PlaySettings, target: Target, sampler: "LocalSampler | None" = None) -> LocalPlayer:
    """Who plays in one process. Connections belong to the event loop that plays."""
    model_http = HttpClient(max_connections=connections_for("model"))
    endpoint = None
    if target.dialect != "agent":
        endpoint = _endpoint(settings, sampler, model_http)
    return _local_player(settings, target, endpoint, model_http)


def _endpoint(settings: PlaySettings, sampler: "LocalSampler | None", model_http: HttpClient) -> "ModelEndpoint":
    if sampler is not None:
        return sampled_endpoint(settings, sampler)
    if settings.played_by != "process":
        return http_endpoint(settings, model_http)
    tasks = getattr(settings, "input", None)
    if tasks is None:
        raise ConfigError(f"--model {settings.model} knows the answers to a file of tasks; give --input")
    answers = right_answers if settings.model == KNOWN_ANSWERS else tried_answers
    return ScriptedEndpoint(answers(tasks, server=known_server(settings), limit=settings.limit))


def _local_player(settings: PlaySettings, target: Target, endpoint: "ModelEndpoint | None", model_http: HttpClient) -> LocalPlayer:
    http = server_client(target)
    loop = None
    if endpoint is not None:
        limits = Limits(
            max_turns=settings.max_turns,
            max_tool_calls=settings.max_tool_calls,
            max_total_tokens=settings.max_total_tokens,
            max_repeated_turns=settings.max_repeated_turns,
        )
        loop = TurnLoop(endpoint=endpoint, limits=limits, seed=settings.seed)
    attempts = Attempts(
        environment=environment_of(target, loop=loop, http=http, limits=settings),
        timeout_s=settings.rollout_timeout_s,
        inline_token_ids=isinstance(settings, CollectSettings) and settings.inline_token_ids,
    )
    return LocalPlayer(
        attempts,
        retries=Retries(max_attempts=settings.max_attempts),
        patience_s=settings.patience_s,
        closers=[http.close, model_http.close],
    )
