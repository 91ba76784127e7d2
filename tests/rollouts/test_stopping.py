"""What ends a collection early: failures that will not stop, and budgets that are spent."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.errors import ServerError
from gym_bridge.io.progress import Progress
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.rollouts.attempts import CALLED_OFF, Attempts
from gym_bridge.rollouts.collecting import collect_into
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import FixedConcurrency
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.plan import plan
from gym_bridge.rollouts.players import LocalPlayer, Retries
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.stopping import Stop, StopRules, StopWatch
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Failure, FailureType, Ledger, Rollout, RolloutKey
from gym_bridge.schemas.seams import Turn, TurnRequest
from tests.rollouts.stage import ScriptedEndpoint, counter_task, said, serving_counter, turn

BY_DEFAULT, ONCE = StopRules(), Retries(max_attempts=1)


def seen(outcomes: str, rules: StopRules, *, tokens: tuple[int, int] = (0, 0)) -> list[Stop | None]:
    """What the watch says after each of `outcomes`: `+` a success, `-` a failed attempt."""
    watch = StopWatch(rules)
    failure = Failure(type=FailureType.MODEL, message="HTTP 500", status=500)
    row = {"gym_bridge": {"num_input_tokens": tokens[0], "num_output_tokens": tokens[1]}}
    said = (
        watch.see(Rollout(key=RolloutKey(number, 0), attempt=0, row=row, failure=failure if outcome == "-" else None))
        for number, outcome in enumerate(outcomes)
    )
    return list(said)


def first(outcomes: str, rules: StopRules, **options: Any) -> tuple[int, Stop]:
    """After how many attempts the watch first says stop, and how."""
    stops = seen(outcomes, rules, **options)
    number = next(number for number, stop in enumerate(stops, 1) if stop is not None)
    stop = stops[number - 1]
    assert stop is not None
    return number, stop


def test_nothing_stops_a_collection_by_default_but_failures_without_one_success():
    assert not any(seen("+" + "-" * 500, BY_DEFAULT))
    number, stop = first("-" * 70, StopRules())
    assert (number, stop.failed) == (64, True)
    assert stop.message == "all 64 attempts so far failed; the last one: model_error: HTTP 500"
    assert first("-" * 200, StopRules(hopeless_after=130))[0] == 130


def test_failures_in_a_row_stop_it():
    number, stop = first("--+---+-----", StopRules(max_consecutive_failures=4))
    assert (number, stop.failed) == (11, True)
    assert stop.message.startswith("4 attempts in a row failed; ")


def test_the_failure_rate_counts_once_64_attempts_have_ended():
    number, stop = first("-" * 33 + "+" * 31, StopRules(max_failure_rate=0.5))
    assert (number, stop.failed) == (64, True)
    assert stop.message.startswith("52% of 64 attempts failed; ")
    assert not any(seen("-" * 32 + "+" * 32, StopRules(max_failure_rate=0.5)))
    assert first("+" * 64 + "-", StopRules(max_failure_rate=0.0))[0] == 65


def test_tokens_and_money_are_counted_over_failed_attempts_too_and_spent_ones_are_no_failure():
    number, stop = first("+-+-+", StopRules(token_budget=100), tokens=(20, 10))
    assert (number, stop.failed) == (4, False)
    assert stop.message == "the token budget of 100 is spent (120 tokens)"
    rules = StopRules(cost_budget=0.0004, input_price=2.0, output_price=10.0)  # 20 in and 10 out cost 140 / 1e6
    number, stop = first("+++++", rules, tokens=(20, 10))
    assert (number, stop.failed) == (3, False)
    assert stop.message == "the cost budget of 0.0004 is spent (0.00042)"


def test_a_failure_is_told_before_a_spent_budget():
    assert first("--", StopRules(max_consecutive_failures=2, token_budget=4), tokens=(1, 1))[1].failed


def test_members_that_were_called_off_count_by_their_tokens_alone():
    watch = StopWatch(StopRules(max_consecutive_failures=2, hopeless_after=2, token_budget=100))
    row = {"gym_bridge": {"num_input_tokens": 10, "num_output_tokens": 10}}

    def see(failure: Failure) -> Stop | None:
        return watch.see(Rollout(key=RolloutKey(0, 0), attempt=0, row=row, failure=failure))

    assert see(Failure(type=FailureType.VERIFY, message="HTTP 500")) is None
    assert [see(CALLED_OFF) for _ in range(3)] == [None] * 3
    stop = see(CALLED_OFF)
    assert stop is not None
    assert (stop.message, stop.failed, watch.num_failed) == ("the token budget of 100 is spent (100 tokens)", False, 1)
    stop = see(Failure(type=FailureType.VERIFY, message="HTTP 501"))
    assert stop is not None
    assert stop.message == "all 2 attempts so far failed; the last one: verify_error: HTTP 501"


def collected(
    script: Callable[[TurnRequest], Turn | Awaitable[Turn]],
    tmp_path: Path,
    *,
    num_tasks: int,
    concurrency: int,
    rules: StopRules = BY_DEFAULT,
    time_budget_s: float | None = None,
    retries: Retries = ONCE,
) -> tuple[Stop | None, Ledger, ScriptedEndpoint]:
    """What `collect_into` says of `num_tasks` tasks, tried once each, and what the log holds then. A second call resumes."""

    async def run() -> tuple[Stop | None, Ledger, ScriptedEndpoint]:
        endpoint, http = ScriptedEndpoint(script), HttpClient()
        async with serving_counter() as (url, _):
            loop = TurnLoop(endpoint=endpoint, limits=Limits(), seed=0)
            environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20.0)
            player = LocalPlayer(Attempts(environment=environment, timeout_s=20.0), retries=retries, closers=[http.close])
            collector = RolloutCollector(player, concurrency=FixedConcurrency(concurrency))
            with RolloutLog(tmp_path / "r.jsonl", identity={}) as log, Progress("x", total=None, quiet=True) as progress:
                planned = [
                    replace(one, first_attempt=log.num_failed_attempts(one.key))
                    for one in plan([counter_task(expected=3)] * num_tasks, num_repeats=1)
                    if not log.is_done(one.key)
                ]
                stop = await collect_into(log, collector, planned, rules=rules, progress=progress, time_budget_s=time_budget_s)
                await collector.close()
                return stop, log.ledger(RolloutKey(task, 0) for task in range(num_tasks)), endpoint

    return asyncio.run(run())


def test_a_spent_token_budget_starts_nothing_new_and_what_is_in_flight_ends(tmp_path: Path):
    first_answer = asyncio.Event()

    async def script(request: TurnRequest) -> Turn:
        if request.key.task_index:
            await first_answer.wait()  # in flight when the budget is spent
        first_answer.set()
        return turn(said("3"), tokens_in=90, tokens_out=10)

    stop, ledger, endpoint = collected(script, tmp_path, num_tasks=20, concurrency=4, rules=StopRules(token_budget=100))
    assert stop is not None
    assert (stop.message, stop.failed) == ("the token budget of 100 is spent (400 tokens)", False)
    assert len(endpoint.requests) == 4
    assert ledger.describe() == "20 requested = 4 completed + 0 truncated + 16 not attempted"


def test_a_time_budget_calls_off_what_is_in_flight(tmp_path: Path):
    async def script(request: TurnRequest) -> Turn:
        if request.key.task_index > 1:
            await asyncio.Event().wait()
        return turn(said("3"))

    stop, ledger, endpoint = collected(script, tmp_path, num_tasks=20, concurrency=4, time_budget_s=0.4)
    assert stop == Stop(message="the time budget of 0.4 s is spent", failed=False)
    assert endpoint.in_flight == 0
    assert ledger.describe() == "20 requested = 2 completed + 0 truncated + 18 not attempted"


def test_a_failed_attempt_of_a_rollout_that_was_called_off_is_logged_and_counts_when_it_is_resumed(tmp_path: Path):
    async def script(request: TurnRequest) -> Turn:
        if request.key.task_index:
            return turn(said("3"))
        raise ServerError("HTTP 500", url="http://model", status=500)

    def failures() -> list[tuple[int, int]]:
        rows = [json.loads(line) for line in (tmp_path / "r_failures.jsonl").read_text().splitlines()]
        return [(row["_ng_task_index"], row["_ng_attempt_index"]) for row in rows]

    patient = Retries(max_attempts=3, backoff_s=3600.0, max_backoff_s=3600.0)
    stop, ledger, endpoint = collected(script, tmp_path, num_tasks=2, concurrency=2, time_budget_s=0.4, retries=patient)
    assert stop == Stop(message="the time budget of 0.4 s is spent", failed=False)
    assert len(endpoint.requests) == 2
    assert failures() == [(0, 0)]
    assert ledger.describe() == "2 requested = 1 completed + 0 truncated + 1 model_error"

    quick = Retries(max_attempts=3, backoff_s=0.01)
    stop, ledger, endpoint = collected(script, tmp_path, num_tasks=2, concurrency=2, retries=quick)
    assert stop is None
    assert [request.key.task_index for request in endpoint.requests] == [0, 0]
    assert failures() == [(0, 0), (0, 1), (0, 2)]
    assert ledger.describe() == "2 requested = 1 completed + 0 truncated + 1 model_error"


def test_failures_in_a_row_stop_at_once_and_call_off_what_is_in_flight(tmp_path: Path):
    async def script(request: TurnRequest) -> Turn:
        if request.key.task_index > 2:
            await asyncio.Event().wait()
        raise ServerError("HTTP 500", url="http://model", status=500)

    rules = StopRules(max_consecutive_failures=3)
    stop, ledger, endpoint = collected(script, tmp_path, num_tasks=20, concurrency=6, rules=rules)
    assert stop is not None
    assert stop.failed
    assert stop.message.startswith("3 attempts in a row failed; the last one: model_error: ")
    assert endpoint.in_flight == 0
    assert ledger.describe() == "20 requested = 0 completed + 0 truncated + 3 model_error + 17 not attempted"


@pytest.mark.parametrize("concurrency", [1, 100])
def test_a_collection_without_one_success_stops_after_twice_what_may_be_in_flight_or_64(tmp_path: Path, concurrency: int):
    def script(request: TurnRequest) -> Turn:
        raise ServerError("HTTP 500", url="http://model", status=500)

    hopeless_after = max(64, 2 * concurrency)
    stop, ledger, _ = collected(
        script, tmp_path, num_tasks=300, concurrency=concurrency, rules=StopRules(hopeless_after=hopeless_after)
    )
    assert stop is not None
    assert stop.message.startswith(f"all {hopeless_after} attempts so far failed; ")
    assert (ledger.failed, ledger.not_attempted) == ({"model_error": hopeless_after}, 300 - hopeless_after)
