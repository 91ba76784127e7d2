"""A collection from its plan to its log: what was played goes to disk, progress is shown, budgets and failures are watched."""

import asyncio
from collections.abc import Iterable
from contextlib import aclosing

from gym_bridge.io.progress import Progress
from gym_bridge.io.rollout_log import SYNC_S, RolloutLog
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.plan import PlannedRollout
from gym_bridge.rollouts.stopping import Stop, StopRules, StopWatch


async def collect_into(
    log: RolloutLog,
    collector: RolloutCollector,
    planned: Iterable[PlannedRollout],
    *,
    rules: StopRules,
    progress: Progress,
    time_budget_s: float | None = None,
) -> Stop | None:
    """Play what is planned into `log`; why it stopped early, or None. Raises ServerError, and ConfigError for a full disk.

    When the time budget ends, rollouts in flight are called off; when tokens or money are spent, they may end.
    """
    watch, stop = StopWatch(rules), None
    out_of_time = asyncio.Event()
    timer = asyncio.create_task(_call_off_after(time_budget_s, collector, out_of_time))
    syncing = asyncio.create_task(_sync_every(log, SYNC_S))
    try:
        async with aclosing(collector.attempts(planned)) as attempts:
            async for attempt in attempts:
                for rollout in attempt:
                    seen = watch.see(rollout)
                    stop = stop if stop is not None and stop.failed else seen or stop
                # One that has its row was played again for the sake of its cohort.
                new = [rollout for rollout in attempt if not log.outcomes.is_written(rollout.key)]
                log.append_group(new)
                if syncing.done():
                    syncing.result()  # a full disk, which ends the collection
                numbers = {"reward": log.mean_reward, "failed attempts": watch.num_failed}
                progress.advance(numbers, count=sum(rollout.failure is None for rollout in new))
                if stop is not None and stop.failed:
                    collector.call_off()
                elif stop is not None:
                    collector.drain()
    finally:
        timer.cancel()
        syncing.cancel()
        log.sync()
    if out_of_time.is_set() and stop is None:
        return Stop(message=f"the time budget of {time_budget_s:g} s is spent", failed=False)
    return stop


async def _call_off_after(seconds: float | None, collector: RolloutCollector, out_of_time: asyncio.Event) -> None:
    if seconds is not None:
        await asyncio.sleep(seconds)
        out_of_time.set()
        collector.call_off()


async def _sync_every(log: RolloutLog, seconds: float) -> None:
    """Bounds what a kill can cost when rollouts end rarely."""
    while True:
        await asyncio.sleep(seconds)
        log.sync()
