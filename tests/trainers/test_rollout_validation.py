"""Held-out tasks played: their numbers by hand, the files, and the same random numbers at every validation."""

import asyncio
import json
import logging
import math
import random
from types import SimpleNamespace

import pytest

from gym_bridge.api.evaluating import summarize_file
from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import FixedConcurrency
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.models.sampled import SampledEndpoint
from gym_bridge.rollouts.players import LocalPlayer
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Failure, FailureType, Group, Rollout, RolloutKey
from gym_bridge.schemas.tokens import Completion
from gym_bridge.trainers.rollout_validation import RolloutValidation
from tests.rollouts.model_stage import client
from tests.rollouts.stage import serving


class Scripted:
    """Plays as `outcomes[task_index]` say: the greedy one, then the sampled ones; a reward, or a type of failure."""

    def __init__(self, outcomes):
        self.outcomes = outcomes
        self.asked = []

    def __call__(self, tasks, group_size):
        self.asked.append((list(tasks), group_size))
        groups = []
        for task in reversed(tasks):  # completion has an order of its own
            first = task["_ng_rollout_index"]
            members = [self._member(task, index) for index in range(first, first + group_size)]
            groups.append(Group(task_index=task["_ng_task_index"], rollouts=tuple(members)))
        return groups

    def _member(self, task, index):
        key = RolloutKey(task["_ng_task_index"], index)
        outcome = self.outcomes[key.task_index][index]
        row = {**task, "_ng_rollout_index": index, "gym_bridge": {"truncated": outcome == 0.0, "num_output_tokens": 10 * index}}
        if isinstance(outcome, FailureType):
            failure = Failure(type=outcome, message="the server broke")
            return Rollout(key=key, attempt=0, row={**row, "reward": None}, failure=failure)
        return Rollout(key=key, attempt=0, row={**row, "reward": outcome})


def tasks(count):
    return [{"_ng_task_index": index, "responses_create_params": {"input": "?", "temperature": 0.7}} for index in range(count)]


def validated(outcomes, tmp_path, *, repeats=2, version=10):
    play = Scripted(outcomes)
    validation = RolloutValidation({"held_out": tasks(len(outcomes))}, play, repeats=repeats, output=tmp_path)
    return validation.run(SimpleNamespace(version=version)), play


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_numbers_of_a_validation(tmp_path):
    metrics, _ = validated([[1.0, 1.0, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], tmp_path)
    # task means 3/4, 0, 1: mean 7/12, standard deviation 0.5204, t(0.975, 2) = 4.3027
    half = 4.302653 * math.sqrt(((1 / 6) ** 2 + (7 / 12) ** 2 + (5 / 12) ** 2) / 2) / math.sqrt(3)
    assert next(iter(metrics)) == "validation/held_out/reward"
    assert {name.removeprefix("validation/held_out/"): value for name, value in metrics.items()} == {
        "reward": pytest.approx(7 / 12),
        "reward_low": pytest.approx(7 / 12 - half, abs=1e-5),
        "reward_high": pytest.approx(7 / 12 + half, abs=1e-5),
        "reward_greedy": pytest.approx(2 / 3),
        "solved": pytest.approx(0.5),
        "truncated": pytest.approx(1 / 3),
        "completion_tokens": 15.0,
        "num_failed": 0,
    }


def test_failures_are_told_apart_and_are_no_reward_of_zero(tmp_path):
    timeout, broken = FailureType.TIMEOUT, FailureType.VERIFY
    metrics, _ = validated([[broken, 1.0, timeout], [0.5, timeout, timeout], [1.0, 0.5, 1.0]], tmp_path)
    found = {name.removeprefix("validation/held_out/"): value for name, value in metrics.items()}
    assert found["reward"] == pytest.approx((1.0 + 0.75) / 2)  # the second task has none
    assert found["reward_greedy"] == 0.75
    assert (found["num_failed"], found["num_failed/timeout_exceeded"], found["num_failed/verify_error"]) == (4, 3, 1)


def test_one_task_alone_has_no_interval_and_a_set_that_failed_no_reward(tmp_path, caplog):
    metrics, _ = validated([[1.0, 1.0]], tmp_path, repeats=1)
    assert metrics["validation/held_out/reward"] == 1.0
    assert not any(name.endswith(("_low", "_high")) for name in metrics)
    with caplog.at_level(logging.WARNING):
        metrics, _ = validated([[FailureType.TOOL, FailureType.TOOL]] * 2, tmp_path, repeats=1)
    assert metrics == {"validation/held_out/num_failed": 4, "validation/held_out/num_failed/tool_error": 4}
    assert "validation on held_out: all 2 sampled rollouts failed, the first with: the server broke" in caplog.text


def test_each_task_is_played_greedily_once_and_sampled_so_many_times_under_the_same_indices_each_time(tmp_path):
    play = Scripted([[0.0, 1.0, 0.5, 1.0]] * 2)
    validation = RolloutValidation({"a": tasks(2)}, play, repeats=3, output=tmp_path)
    validation.run(SimpleNamespace(version=0))
    greedy, sampled = play.asked
    assert [(row["_ng_rollout_index"], row["responses_create_params"]["temperature"]) for row in greedy[0]] == [(0, 0.0)] * 2
    assert [(row["_ng_rollout_index"], row["responses_create_params"]["temperature"]) for row in sampled[0]] == [(1, 1.0)] * 2
    assert (greedy[1], sampled[1]) == (1, 3)
    assert sampled[0][0]["responses_create_params"]["input"] == "?"
    validation.run(SimpleNamespace(version=7))
    assert play.asked[2:] == play.asked[:2]


def test_sets_are_named_in_their_order_and_a_task_without_parameters_is_played_as_it_is(tmp_path):
    play = Scripted([[1.0, 0.0]])
    sets = {"b": tasks(1), "a": [{"_ng_task_index": 0}]}
    metrics = RolloutValidation(sets, play, repeats=1, output=tmp_path).run(SimpleNamespace(version=1))
    assert [name for name in metrics if name.endswith("/reward")] == ["validation/b/reward", "validation/a/reward"]
    assert play.asked[-1][0] == [{"_ng_task_index": 0, "_ng_rollout_index": 1}]


def test_what_was_played_stands_in_files_of_its_own_that_eval_reads(tmp_path):
    output = tmp_path / "validation"
    metrics, _ = validated([[1.0, 1.0, FailureType.TOOL], [0.0, 0.5, 0.0]], output)
    assert sorted(one.name for one in output.iterdir()) == [
        "held_out_step_00000010.jsonl",
        "held_out_step_00000010_failures.jsonl",
        "held_out_step_00000010_greedy.jsonl",
    ]
    keys = [(row["_ng_task_index"], row["_ng_rollout_index"]) for row in lines(output / "held_out_step_00000010.jsonl")]
    assert keys == [(0, 1), (1, 1), (1, 2)]
    assert [row["reward"] for row in lines(output / "held_out_step_00000010_greedy.jsonl")] == [1.0, 0.0]
    summary = summarize_file(output / "held_out_step_00000010.jsonl")
    assert summary.reward.mean == metrics["validation/held_out/reward"]
    assert (summary.num_rollouts, summary.num_failed) == (3, 1)


def test_a_validation_that_is_repeated_after_a_kill_replaces_its_files(tmp_path):
    validated([[1.0, FailureType.TOOL]], tmp_path, repeats=1)
    validated([[1.0, 0.5]], tmp_path, repeats=1)
    assert [row["reward"] for row in lines(tmp_path / "held_out_step_00000010.jsonl")] == [0.5]
    assert lines(tmp_path / "held_out_step_00000010_failures.jsonl") == []


class Guessing:
    """A sampler that answers with a number which its key draws, and with 0 at temperature 0."""

    def __init__(self, renderer):
        self.renderer = renderer

    async def sample(self, prompt_ids, params, *, key):
        guess = random.Random(str(tuple(key))).randrange(1, 200) if params.temperature else 0
        ids = (*self.renderer.tokenizer.encode(f"= {guess}"), self.renderer.get_stop_token_ids()[0])
        return Completion(ids=tuple(ids), logprobs=(-1.0,) * len(ids), finish_reason="stop", policy_version=0)


def test_the_same_weights_give_the_same_rollouts_at_every_validation_against_a_real_server(renderer, tmp_path):
    held_out = [
        {**task, "_ng_task_index": index}
        for index, task in enumerate(ArithmeticServer.tasks(num_tasks=3, seed=1, split="heldout", kind="sum"))
    ]

    async def play(rows, group_size):
        endpoint = SampledEndpoint(Guessing(renderer), renderer, max_tokens=20, model="guessing")
        loop = TurnLoop(endpoint=endpoint, limits=Limits(max_turns=2), seed=5)
        async with serving(application(ArithmeticServer())) as url, client() as http:
            environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20)
            player = LocalPlayer(Attempts(environment=environment, timeout_s=20))
            collector = RolloutCollector(player, concurrency=FixedConcurrency(4))
            return [group async for group in collector.groups(rows, group_size=group_size)]

    validation = RolloutValidation(
        {"sums": held_out}, lambda rows, group_size: asyncio.run(play(rows, group_size)), repeats=2, output=tmp_path
    )
    found = [validation.run(SimpleNamespace(version=version)) for version in (0, 1)]

    def answers(name):
        return [row["response"]["output"][0]["content"][0]["text"] for row in lines(tmp_path / name)]

    assert answers("sums_step_00000000.jsonl") == answers("sums_step_00000001.jsonl")
    assert len(set(answers("sums_step_00000000.jsonl"))) == 6
    assert answers("sums_step_00000000_greedy.jsonl") == ["= 0"] * 3
    assert found[0] == found[1]
    assert found[0]["validation/sums/num_failed"] == 0
