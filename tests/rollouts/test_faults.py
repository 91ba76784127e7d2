"""Servers that fail in every way: each requested rollout has one outcome, none that failed has a reward, nothing is repeated."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.io.progress import Progress
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.rollouts import http
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.collecting import collect_into
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import FixedConcurrency
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.models import model_http
from gym_bridge.rollouts.models.model_http import ModelHttp
from gym_bridge.rollouts.models.responses import ResponsesEndpoint
from gym_bridge.rollouts.plan import plan
from gym_bridge.rollouts.players import LocalPlayer, Retries
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.stopping import Stop, StopRules
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import FailureType, Ledger, Row
from tests.rollouts.fault_stage import FAULTS, FaultServers, at_random, fault_task
from tests.rollouts.stage import serving

MAX_ATTEMPTS = 3
STAGES = {"start", "seed", "model", "tool add", "verify"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between calls of the model, and the size of a reply that is too large, small enough for a test."""
    monkeypatch.setattr(model_http, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(http, "MAX_REPLY_BYTES", 200_000)


@dataclass(frozen=True)
class Collected:
    """What a collection left on disk, and what it said."""

    rows: list[Row]
    failures: list[Row]
    ledger: Ledger
    stop: Stop | None

    def outcomes(self) -> dict[tuple[int, int], str]:
        """How every rollout ended, by the files alone."""
        ended = {key_of(row): str(row["_ng_failure_class"]) for row in self.failures}
        return ended | {key_of(row): "truncated" if row["gym_bridge"]["truncated"] else "completed" for row in self.rows}


def key_of(row: Row) -> tuple[int, int]:
    """Task and rollout index."""
    return row["_ng_task_index"], row["_ng_rollout_index"]


def collected(
    servers: FaultServers, output: Path, tasks: Sequence[Row], *, num_repeats: int = 1, max_attempts: int, timeout_s: float
) -> Collected:
    """A whole collection of `tasks`; a request may take `timeout_s`."""

    async def run() -> tuple[Ledger, Stop | None]:
        client = HttpClient()
        planned = list(plan(tasks, num_repeats=num_repeats))
        async with serving(servers.application()) as url:
            endpoint = ResponsesEndpoint(ModelHttp(url + "/v1", client=client, api_key=None, timeout_s=timeout_s), "m")
            loop = TurnLoop(endpoint=endpoint, limits=Limits(), seed=0)
            environment = SeedVerify(url=url, http=client, loop=loop, request_timeout_s=timeout_s)
            attempts = Attempts(environment=environment, timeout_s=20.0)
            retries = Retries(max_attempts=max_attempts, backoff_s=0.01, max_backoff_s=0.02)
            collector = RolloutCollector(
                LocalPlayer(attempts, retries=retries, closers=[client.close]), concurrency=FixedConcurrency(64)
            )
            with RolloutLog(output, identity={}) as log, Progress("x", total=None, quiet=True) as progress:
                try:
                    stop = await collect_into(log, collector, planned, rules=StopRules(hopeless_after=10_000), progress=progress)
                finally:
                    await collector.close()
                return log.ledger(one.key for one in planned), stop

    ledger, stop = asyncio.run(run())
    return Collected(list(lines(output)), list(lines(output.with_name(output.stem + "_failures.jsonl"))), ledger, stop)


def lines(path: Path) -> Iterator[Row]:
    """Rows of a file that may be missing."""
    return map(json.loads, path.read_bytes().splitlines() if path.exists() else [])


def check_failure(row: Row) -> None:
    """A failure says what, where, when and how long, and has no reward."""
    told = row["gym_bridge"]["failure"]
    assert row["reward"] is None
    assert row["_ng_failure_class"] == told["type"]
    assert told["type"] in set(FailureType)
    assert told["message"]
    assert told["status"] is None or 200 <= told["status"] < 600
    assert told["stage"] in STAGES
    assert row["_ng_attempt_index"] == row["gym_bridge"]["attempt"]
    assert row["gym_bridge"]["timings_s"]["total"] > 0


def check(found: Collected, servers: FaultServers, *, requested: set[tuple[int, int]], max_attempts: int) -> None:
    """What must hold, whatever failed."""
    assert found.stop is None
    keys = [key_of(row) for row in found.rows]
    assert len(set(keys)) == len(keys)
    outcomes = found.outcomes()
    assert outcomes.keys() == requested
    counts = Counter(outcomes.values())
    assert (found.ledger.requested, found.ledger.not_attempted) == (len(requested), 0)
    assert found.ledger.failed | {"completed": found.ledger.completed} == {"completed": 0} | counts
    for row in found.failures:
        check_failure(row)
    attempts = [(*key_of(row), row["gym_bridge"]["attempt"]) for row in (*found.rows, *found.failures)]
    assert sorted(attempts) == sorted({(*key, attempt) for key in requested for attempt in range(max_attempts)} & {*attempts})
    last = {key: max(attempt for *one, attempt in attempts if tuple(one) == key) for key in requested}
    assert all(last[key] == max_attempts - 1 for key in requested - set(keys))
    for row in found.rows:
        session = row["session"]
        assert row["gym_bridge"]["attempt"] == last[key_of(row)]
        assert row["reward"] == servers.rewards[session]
        assert servers.seeded[session] == row["number"]
        assert row["reward"] >= row["number"]
    assert len(servers.seeded) == len(attempts)  # every attempt in a session of its own, asked for once
    assert servers.cookies_of_seeds == {None}
    assert max(servers.num_added.values(), default=0) <= 1
    assert max(servers.num_verified.values(), default=0) <= 1


RIGHT = ("completed", None)
BROKEN_BODIES = ("reset", "half_body", "endless_body")
EXPECTED: dict[str, dict[str, tuple[str, int | None]]] = {
    "seed_session": {
        "status_500": ("seed_error", 500),
        "status_429": ("seed_error", 429),
        **dict.fromkeys(BROKEN_BODIES, ("seed_error", None)),
        **dict.fromkeys(("hang", "slow_drip"), ("timeout_exceeded", None)),
        **dict.fromkeys(("invalid_json", "nan_reward", "wrong_schema"), ("seed_error", 200)),
        "no_number": RIGHT,
    },
    "model": {
        "status_500": ("model_error", 500),
        "status_429": ("model_error", 429),
        **dict.fromkeys(BROKEN_BODIES, ("model_error", None)),
        **dict.fromkeys(("hang", "slow_drip"), ("timeout_exceeded", None)),
        **dict.fromkeys(("invalid_json", "nan_reward", "wrong_schema", "no_number"), ("model_error", None)),
    },
    "add": {
        **dict.fromkeys(BROKEN_BODIES, ("tool_error", None)),
        **dict.fromkeys(("hang", "slow_drip"), ("timeout_exceeded", None)),
        # what a tool answers is the model's to read
        **dict.fromkeys(("status_500", "status_429", "invalid_json", "nan_reward", "wrong_schema", "no_number"), RIGHT),
    },
    "verify": {
        "status_500": ("verify_error", 500),
        "status_429": ("verify_error", 429),
        **dict.fromkeys(BROKEN_BODIES, ("verify_error", None)),
        **dict.fromkeys(("hang", "slow_drip"), ("timeout_exceeded", None)),
        **dict.fromkeys(("invalid_json", "nan_reward", "wrong_schema"), ("verify_error", 200)),
        "no_number": ("verify_error", None),
    },
}
STAGE_OF = {"seed_session": "seed", "model": "model", "add": "tool add", "verify": "verify"}


@pytest.mark.parametrize("route", EXPECTED)
def test_every_fault_alone_is_told_by_its_type_its_status_and_its_stage(route: str, tmp_path: Path):
    """Task n meets the n-th fault at `route`, always."""
    faults = list(FAULTS)
    servers = FaultServers(choose=lambda where, task: faults[task] if where == route else None)
    tasks = [fault_task(number) for number in range(len(faults))]
    found = collected(servers, tmp_path / "r.jsonl", tasks, max_attempts=1, timeout_s=0.8)
    check(found, servers, requested={(number, 0) for number in range(len(faults))}, max_attempts=1)
    told: dict[str, Any] = {faults[row["number"]]: RIGHT for row in found.rows}
    for row in found.failures:
        failure = row["gym_bridge"]["failure"]
        told[faults[row["number"]]] = (failure["type"], failure["status"])
        assert (failure["stage"], failure["terminal"]) == (STAGE_OF[route], False)
        if failure["type"] == "timeout_exceeded":
            assert row["gym_bridge"]["timings_s"]["total"] >= 0.8
    assert told == EXPECTED[route]


def test_a_tools_error_is_counted_in_the_row_and_leaves_the_reward_to_the_verifier(tmp_path: Path):
    servers = FaultServers(choose=lambda where, task: "status_500" if where == "add" else None)
    found = collected(servers, tmp_path / "r.jsonl", [fault_task(number) for number in range(4)], max_attempts=2, timeout_s=20)
    assert [row["gym_bridge"]["num_tool_errors"] for row in found.rows] == [1] * 4
    assert sorted(row["reward"] - row["number"] for row in found.rows) == [0.0, 0.0, 0.5, 0.5]  # half of them had worked


def test_a_verdict_that_no_row_can_hold_fails_its_rollout_alone(tmp_path: Path):
    servers = FaultServers(choose=lambda where, task: "bottomless" if (where, task) == ("verify", 1) else None)
    found = collected(servers, tmp_path / "r.jsonl", [fault_task(number) for number in range(3)], max_attempts=1, timeout_s=20)
    check(found, servers, requested={(number, 0) for number in range(3)}, max_attempts=1)
    assert found.ledger.describe() == "3 requested = 2 completed + 0 truncated + 1 verify_error"


@pytest.mark.parametrize("seed", [1, 2])
def test_two_hundred_rollouts_among_all_faults_are_all_accounted_for(seed: int, tmp_path: Path):
    servers = FaultServers(choose=at_random(seed, share=0.15))
    tasks = [fault_task(number) for number in range(100)]
    found = collected(servers, tmp_path / "r.jsonl", tasks, num_repeats=2, max_attempts=MAX_ATTEMPTS, timeout_s=0.4)
    requested = {(task, index) for task in range(100) for index in range(2)}
    check(found, servers, requested=requested, max_attempts=MAX_ATTEMPTS)
    assert servers.injected.keys() == FAULTS.keys()
    assert found.ledger.completed > 100
    assert sum(found.ledger.failed.values()) > 5
    assert any(row["gym_bridge"]["attempt"] == 2 for row in found.rows)  # one that came right at the last attempt


@pytest.mark.parametrize("fault", ["reset", "half_body", "hang"])
def test_a_tool_that_worked_before_its_answer_was_lost_is_called_again_only_in_another_session(fault: str, tmp_path: Path):
    servers = FaultServers(choose=lambda where, task: fault if where == "add" else None, always_works=True)
    found = collected(servers, tmp_path / "r.jsonl", [fault_task(0)], max_attempts=3, timeout_s=0.4)
    check(found, servers, requested={(0, 0)}, max_attempts=3)
    assert servers.seeded == [0, 0, 0]
    assert servers.num_added == {0: 1, 1: 1, 2: 1}
    assert not servers.num_verified
    assert [row["gym_bridge"]["num_turns"] for row in found.failures] == [1, 1, 1]


def test_a_model_call_whose_answer_is_lost_is_asked_again_in_the_same_session(tmp_path: Path):
    lost = iter(["reset", "status_429", None, "half_body", "status_500", None])
    servers = FaultServers(choose=lambda where, task: next(lost) if where == "model" else None)
    found = collected(servers, tmp_path / "r.jsonl", [fault_task(0)], max_attempts=1, timeout_s=20)
    assert (len(found.rows), found.failures, servers.seeded, servers.num_added) == (1, [], [0], {0: 1})
