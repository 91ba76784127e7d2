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
    watch, stop, budget = StopWatch(rules), None, asyncio.timeout(time_budget_s)
    syncing = asyncio.create_task(_sync_every(log, SYNC_S))
    try:
        async with budget, aclosing(collector.rollouts(planned)) as attempts:
            async for rollout in attempts:
                stop = watch.see(rollout) or stop
                if not log.outcomes.is_written(rollout.key):  # else it was played again for the sake of its cohort
                    log.append(rollout)
                if syncing.done():
                    syncing.result()  # a full disk, which ends the collection
                numbers = {"reward": log.mean_reward, "failed attempts": watch.num_failed}
                progress.advance(numbers, count=rollout.failure is None)
                if stop is not None and stop.failed:
                    break
                if stop is not None:
                    collector.drain()
    except TimeoutError:
        if not budget.expired():
            raise
        stop = Stop(message=f"the time budget of {time_budget_s:g} s is spent", failed=False)
    finally:
        syncing.cancel()
        log.sync()
    return stop


async def _sync_every(log: RolloutLog, seconds: float) -> None:
    """Bounds what a kill can cost when rollouts end rarely."""
    while True:
        await asyncio.sleep(seconds)
        log.sync()
