"""`gym-bridge collect`, as its function: log on the disk, synced, resumable."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge import collect
from gym_bridge.rollouts import http, turn_loop, workers  # noqa: F401  imported late by the verb, and not timed
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.models import responses  # noqa: F401
from gym_bridge.schemas.play_settings import CollectSettings

if TYPE_CHECKING:
    from benchmarks.client import Run


def timed(run: "Run", *, when_all_ended: Callable[[], None]) -> tuple[int, float]:
    """Rollouts with a reward, and seconds. `when_all_ended` is called once all rows are on the disk, before connections close."""
    close = RolloutCollector.close

    async def closing(collector: RolloutCollector) -> None:
        when_all_ended()
        await close(collector)

    RolloutCollector.close = closing
    settings = CollectSettings(
        input=Path(run.tasks),
        output=Path(run.output),
        model="null",
        model_url=(f"{run.model_url}/v1",),
        num_repeats=run.num_repeats,
        concurrency=run.concurrency,
        workers=run.workers,
        agent_url=run.agent_url or None,
        server=run.resources_url or None,
        dialect="auto" if run.agent_url else "seed_verify",
    )
    started = time.perf_counter()
    result = collect(settings)
    return result.ledger.completed, time.perf_counter() - started
