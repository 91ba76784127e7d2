"""One run of a client in a process of its own: `python -m benchmarks.client RUN` prints its figures. Both are JSON."""

import json
import logging
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from benchmarks import bare
from benchmarks.event_loop_lag import LagSampler, weighted_percentile
from benchmarks.processes import memory_mib


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a client is to do."""

    kind: Literal["bare", "collect"]
    tasks: str
    output: str
    model_url: str
    resources_url: str = ""
    agent_url: str = ""
    """Instead of the two before: the agent plays."""
    num_repeats: int
    concurrency: int
    workers: int = 1
    sampled: bool = False
    """Sample the lag of the event loop until the last rollout is on the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What it came to."""

    rollouts: int
    seconds: float
    """From reading the tasks to the closed log; without the start of the interpreter and the imports."""
    cpu_s: float
    workers_cpu_s: float
    peak_mib: float
    """Resident memory."""
    lag_p50_ms: float | None = None
    lag_p99_ms: float | None = None
    lag_max_ms: float | None = None

    @property
    def rate(self) -> float:
        """Rollouts a second."""
        return self.rollouts / self.seconds


def play(run: Run, sampler: LagSampler) -> tuple[int, float]:
    """Rollouts with a reward, and seconds."""
    if run.sampled:
        sampler.switch_on()
    if run.kind == "bare":
        targets = bare.Targets(model=run.model_url, resources=run.resources_url)
        return bare.timed(Path(run.tasks), targets, num_repeats=run.num_repeats, concurrency=run.concurrency)
    from benchmarks.ours import timed

    return timed(run, when_all_ended=sampler.switch_off)


def measured(run: Run) -> Figures:
    """Play in this process and measure it."""
    logging.disable(logging.INFO)
    sampler = LagSampler()
    before = cpu_s(resource.RUSAGE_SELF), cpu_s(resource.RUSAGE_CHILDREN)
    rollouts, seconds = play(run, sampler)
    after = cpu_s(resource.RUSAGE_SELF), cpu_s(resource.RUSAGE_CHILDREN)
    lags = sampler.lags_s
    return Figures(
        rollouts=rollouts,
        seconds=seconds,
        cpu_s=after[0] - before[0],
        workers_cpu_s=after[1] - before[1],
        peak_mib=memory_mib("self", "VmHWM"),
        lag_p50_ms=1e3 * weighted_percentile(lags, 50) if lags else None,
        lag_p99_ms=1e3 * weighted_percentile(lags, 99) if lags else None,
        lag_max_ms=1e3 * max(lags) if lags else None,
    )


def cpu_s(whose: int) -> float:
    """User and system seconds."""
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(asdict(measured(Run(**json.loads(sys.argv[1]))))))
