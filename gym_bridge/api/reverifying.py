"""Stored rollouts scored again by a resource server."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gym_bridge.api.collecting import check_ended
from gym_bridge.api.targets import server_client
from gym_bridge.errors import ConfigError
from gym_bridge.io.digests import digest_file
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.io.progress import Progress
from gym_bridge.io.remote_files import fetch, log_elsewhere
from gym_bridge.io.rollout_log import RolloutLog, log_files, sibling, tokens_of
from gym_bridge.rollouts import event_loop
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.collecting import collect_into
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import FixedConcurrency
from gym_bridge.rollouts.plan import PlannedRollout
from gym_bridge.rollouts.players import LocalPlayer, Retries
from gym_bridge.rollouts.reverifying import Reverification, check_stateless, stored_rollouts
from gym_bridge.rollouts.stopping import Stop, StopRules
from gym_bridge.schemas.play_settings import ReverifySettings
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, Ledger, RolloutKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverifyResult:
    """What verifying again came to."""

    output: Path
    ledger: Ledger
    num_changed: int
    """Rollouts whose reward is another one now."""
    num_new: int
    """Rollouts that had none."""
    mean_before: float | None
    """Mean reward of the rollouts that had one and were verified again; None without any."""
    mean_after: float | None
    """Of the same rollouts."""


def reverify(settings: ReverifySettings, *, quiet: bool = True) -> ReverifyResult:
    """Score the rollouts of `settings.input` again into `settings.output`; goes on where an earlier run stopped.

    Raises ConfigError for a server that needs a session, DataError for a line that is no row, ServerError when the server is gone.
    """
    if settings.output.resolve() == settings.input.resolve():
        raise ConfigError("--output is the file that is read; choose another --output")
    for path in (settings.input, sibling(settings.input, "_failures.jsonl")):
        fetch(path, optional=path != settings.input)
    with log_elsewhere(log_files(settings.output), tokens_of(settings.output)):
        return _reverify(settings, quiet=quiet)


def _reverify(settings: ReverifySettings, *, quiet: bool) -> ReverifyResult:
    if not settings.force:
        asyncio.run(_check(settings.server))
    identity = {"rollouts_sha256": digest_file(settings.input), "server": settings.server, "only": settings.only}
    with RolloutLog(settings.output, identity=identity, overwrite=settings.overwrite) as log:
        keys = [one.key for one in _stored(settings)]
        todo = (
            replace(one, first_attempt=log.num_failed_attempts(one.key))
            for one in _stored(settings)
            if not log.is_done(one.key) and not log.is_terminal(one.key)
        )
        with Progress("reverify", total=len(keys), done=log.num_with_reward, quiet=quiet) as progress:
            stop = event_loop.run(_verify(settings, log, todo, progress))
        ledger = log.ledger(keys)
        log.close(ledger)
        if keys:  # that nothing has failed is no failure
            check_ended(log, ledger, stop, where=settings.server)
    return _difference(settings, ledger)


async def _check(server: str) -> None:
    http = server_client()
    try:
        await check_stateless(server, http)
    finally:
        await http.close()


async def _verify(settings: ReverifySettings, log: RolloutLog, todo: Iterator[PlannedRollout], progress: Progress) -> Stop | None:
    http = server_client()
    environment = Reverification(url=settings.server, http=http, request_timeout_s=settings.request_timeout_s)
    attempts = Attempts(environment=environment, timeout_s=settings.request_timeout_s)
    player = LocalPlayer(attempts, retries=Retries(max_attempts=settings.max_attempts), closers=[http.close])
    collector = RolloutCollector(player, concurrency=FixedConcurrency(settings.concurrency))
    try:
        return await collect_into(log, collector, todo, rules=StopRules(), progress=progress)
    finally:
        await collector.close()


def _stored(settings: ReverifySettings) -> Iterator[PlannedRollout]:
    failures = sibling(settings.input, "_failures.jsonl")
    failed = (row for _, row in read_jsonl(failures)) if failures.exists() and failures.stat().st_size else iter(())
    return stored_rollouts((row for _, row in read_jsonl(settings.input)), failed, only=settings.only)


def _difference(settings: ReverifySettings, ledger: Ledger) -> ReverifyResult:
    before = {one.key: one.row.get("reward") for one in _stored(settings)}
    pairs = [
        (before.get(RolloutKey(row[TASK_INDEX], row[ROLLOUT_INDEX])), row["reward"])
        for _, row in (read_jsonl(settings.output) if settings.output.stat().st_size else ())
    ]
    had = [(old, new) for old, new in pairs if old is not None]
    return ReverifyResult(
        output=settings.output,
        ledger=ledger,
        num_changed=sum(old != new for old, new in had),
        num_new=len(pairs) - len(had),
        mean_before=sum(old for old, _ in had) / len(had) if had else None,
        mean_after=sum(new for _, new in had) / len(had) if had else None,
    )
