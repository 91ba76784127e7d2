"""What orchestration costs a rollout of online training, from few rollouts in flight to many.

    python -m benchmarks.scale [--in-flight 64 1000 4000 16000] [--replicas 64] [--rollouts 16000]

The real training (`gym-bridge train grpo`: tasks, renderer, collector, turns with a tool over HTTP, verification, durable log,
token store, sequences, advantages, packing, metrics) with two parts that only wait: a sampler of so many replicas, each of which
keeps to its rollouts and answers after a while (half to one and a half of it, by the rollout), and a policy whose update takes no
time. A batch has as many rollouts as are in flight. Each size runs in a process of its own; its cost is CPU seconds of that process
between updates, the first batch left out.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.event_loop_lag import LagSampler, weighted_percentile
from benchmarks.parts import row, table
from benchmarks.processes import memory_mib, null_server, printed_by
from benchmarks.weather_tasks import write_tasks
from gym_bridge.schemas.seams import LossFn, StepResult
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams, TrainingSequence

GROUP_SIZE = 8
NUM_REPLICAS, WAIT_S = "GYM_BRIDGE_BENCHMARK_REPLICAS", "GYM_BRIDGE_BENCHMARK_WAIT_S"
"""Environment variables: of `SimulatedSampler`, and how long one of its answers takes."""
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "San Francisco"}}\n</tool_call><|im_end|>'
ANSWER = "It is cold in San Francisco today: take a coat when you go out.<|im_end|>"


class SimulatedSampler:
    """`sampler.kind=benchmarks.scale:SimulatedSampler`: replicas that only wait. Their rollouts call the tool, then answer."""

    def __init__(self, policy: "SimulatedPolicy", settings: Any, **options: Any):
        self.version, self._wait_s = policy.version, float(os.environ[WAIT_S])
        self._busy = [0] * int(os.environ[NUM_REPLICAS])
        self.most_at_once = self.most_of_a_replica = 0
        self._turns = [policy.encoded(CALL), policy.encoded(ANSWER)]
        policy.sampler = self

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """The turn's text, after a while."""
        version, replica = self.version, hash((key.task_index, key.rollout_index)) % len(self._busy)
        self._busy[replica] += 1
        self.most_of_a_replica = max(self.most_of_a_replica, self._busy[replica])
        self.most_at_once = max(self.most_at_once, sum(self._busy))
        luck = zlib.crc32(repr(tuple(key)).encode()) / 2**32
        await asyncio.sleep(self._wait_s * (0.5 + luck))
        self._busy[replica] -= 1
        ids = self._turns[min(key.turn, 1)]
        return Completion(ids=ids, logprobs=(-1.0,) * len(ids), finish_reason="stop", policy_version=version)

    def push(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """New answers carry `version`."""
        self.version = version

    def ensure(self, version: int) -> None:
        """Nothing: no weights are held."""

    def expect(self, num_in_flight: int) -> None:
        """Nothing: no batch waits for anybody."""

    def close(self) -> None:
        """Nothing to release."""


class SimulatedPolicy:
    """`policy.backend=benchmarks.scale:SimulatedPolicy`: takes updates, and notes when."""

    sampler: SimulatedSampler
    noted: tuple[tuple[float, float], ...] = ()
    """CPU seconds of this process, and the time, at every update of the policy that was opened last."""
    opened: "SimulatedPolicy"

    def __init__(self, directory: Path, settings: Any, *, head: str = "lm", total_steps: int | None = None):
        from tokenizers import Tokenizer

        self.version = 0
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        type(self).opened = self

    def encoded(self, text: str) -> tuple[int, ...]:
        """Token ids of a completion."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def step(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> StepResult:
        """Nothing is learnt."""
        self.version += 1
        self.noted += ((time.process_time(), time.perf_counter()),)
        num_trained = sum(one.num_trained for part in microbatches for one in part)
        return StepResult(metrics={"loss": 0.0, "num_trained_tokens": float(num_trained), "train_s": 0.0, "grad_norm": 0.0})

    def weights(self) -> Iterable[tuple[str, Any]]:
        """None."""
        return ()

    def save(self, directory: Path, *, source_state: Mapping[str, Any]) -> None:
        """Nothing but the place."""
        directory.mkdir(parents=True)


def one_size(options: argparse.Namespace) -> None:
    """In a process of its own: train, and print what it cost."""
    from benchmarks import scale  # what runs as a script is another module
    from gym_bridge.api.training import train
    from gym_bridge.config import validate
    from gym_bridge.schemas.settings import GRPOSettings

    (in_flight,) = options.in_flight
    steps = max(2, options.rollouts // in_flight) + 1
    os.environ |= {NUM_REPLICAS: str(options.replicas), WAIT_S: str(options.wait_s)}
    lag = LagSampler()
    with tempfile.TemporaryDirectory() as directory, null_server("resources") as server:
        tasks = write_tasks(Path(directory, "tasks.jsonl"), num_tasks=in_flight // GROUP_SIZE)
        values = {
            "policy": {"backend": "benchmarks.scale:SimulatedPolicy"},
            "data": {"train": tasks},
            "env": {"server": server.said["resources"], "dialect": "seed_verify", "concurrency": in_flight},
            "sampler": {"kind": "benchmarks.scale:SimulatedSampler", "max_tokens": 64},
            "algorithm": {"tasks_per_step": in_flight // GROUP_SIZE, "group_size": GROUP_SIZE, "baseline": "none", "scale": "none"},
            "trainer": {"output": Path(directory, "run"), "max_steps": steps, "alarms": {"max_gap": None}},
        }
        lag.switch_on()
        train(validate(GRPOSettings, values))
        lag.switch_off()
    policy = scale.SimulatedPolicy.opened
    spans = [(later[0] - before[0], later[1] - before[1]) for before, later in zip(policy.noted, policy.noted[1:], strict=False)]
    print(
        json.dumps(
            {
                "cpu_ms": 1e3 * fmean(cpu for cpu, _ in spans) / in_flight,
                "rate": in_flight / fmean(seconds for _, seconds in spans),
                "most": policy.sampler.most_at_once,
                "of_a_replica": policy.sampler.most_of_a_replica,
                "lag_p99_ms": 1e3 * weighted_percentile(lag.lags_s, 99),
                "peak_mib": memory_mib("self", "VmHWM"),
            }
        )
    )


def main(argv: list[str] | None = None) -> None:
    """Print a table, a row for each number in flight."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 1000, 4000, 16000], help="multiples of 8")
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=16000, help="of each size, after the first batch; two batches at least")
    parser.add_argument("--wait-s", type=float, help="of an answer; left out: 0.1 s, and more with more in flight")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.alone:
        one_size(options)
        return
    table("in flight", "at once", "of a replica", "CPU ms a rollout", "of the first", "rollouts/s", "lag p99 ms", "peak MiB")
    first = None
    for in_flight in options.in_flight:
        wait_s = options.wait_s or max(0.1, in_flight / 500)
        sizes = ["--in-flight", in_flight, "--replicas", options.replicas, "--rollouts", options.rollouts, "--wait-s", wait_s]
        found = json.loads(printed_by([sys.executable, "-m", "benchmarks.scale", "--alone", *map(str, sizes)]))
        first = first or found["cpu_ms"]
        cost = (f"{found['cpu_ms']:.2f}", f"{found['cpu_ms'] / first:.2f}", f"{found['rate']:.0f}")
        row(in_flight, found["most"], found["of_a_replica"], *cost, f"{found['lag_p99_ms']:.0f}", f"{found['peak_mib']:.0f}")


if __name__ == "__main__":
    main()
