"""The numbers of a batch, computed by hand."""

import math

import pytest

from gym_bridge.schemas.rollouts import Failure, FailureType, Group, Rollout, RolloutKey
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.trainers.group_stream import PlayedGroup
from gym_bridge.trainers.rollout_metrics import batch_metrics


def turn(length, *, version=0, starts_segment=False):
    return TurnTokens(
        prompt_ids=(5,),
        completion_ids=(7,) * length,
        logprobs=(-1.0,) * length,
        policy_version=version,
        starts_segment=starts_segment,
    )


def rollout(reward, *turns, failure=None, gym_bridge=None, **fields):
    """A rollout of the turns; with a type of failure it has no reward."""
    row = {"reward": None if failure else reward, "gym_bridge": {"num_turns": len(turns), "truncated": False, **(gym_bridge or {})}}
    failed = Failure(type=failure, message="it failed") if failure else None
    return Rollout(key=RolloutKey(0, 0), attempt=0, row={**row, **fields}, turns=turns, failure=failed)


def played(*rollouts, environment="a", version=0, retried=()):
    return PlayedGroup(group=Group(task_index=0, rollouts=rollouts, retried=retried), environment=environment, version=version)


def numbers(groups, *, num_groups_without_signal=0, **options):
    return batch_metrics(groups, num_groups_without_signal=num_groups_without_signal, **options)


def one(**options):
    return numbers([played(rollout(1.0, turn(2)))], **options)


def chosen(metrics, *names):
    return {name: metrics[name] for name in names}


def test_rewards_lengths_turns_and_failures():
    groups = [
        played(
            rollout(1.0, turn(2, starts_segment=True), gym_bridge={"num_tool_calls": 2, "num_tool_errors": 1}),
            rollout(0.0, turn(1), turn(2), turn(1), gym_bridge={"truncated": True, "num_tool_calls": 0, "num_tool_errors": 0}),
            rollout(None, failure=FailureType.TIMEOUT),
        ),
        played(rollout(1.5, turn(3)), rollout(0.5, turn(3))),
        played(rollout(None, failure=FailureType.MODEL)),
    ]
    assert numbers(groups, num_groups_without_signal=1) == {
        "reward": 0.75,
        "reward_std": pytest.approx(math.sqrt((0.25**2 + 0.75**2 + 0.75**2 + 0.25**2) / 4)),
        "solved": 0.5,
        "completion_tokens": 3.0,
        "completion_tokens_min": 2,
        "completion_tokens_max": 4,
        "truncated": 0.25,
        "num_turns": 1.5,
        "num_tool_calls": 1.0,
        "num_tool_errors": 0.5,
        "several_segments": 0.0,
        "num_rollouts": 6,
        "num_groups": 3,
        "num_groups_without_signal": 1,
        "num_masked": 0,
        "num_failed": 2,
        "num_failed/model_error": 1,
        "num_failed/timeout_exceeded": 1,
        "num_sampled_tokens": 12,
    }


def test_a_batch_in_which_all_failed_has_counts_and_no_mean():
    failed = [played(rollout(None, failure=FailureType.SEED))]
    assert numbers(failed, num_groups_without_signal=1, version=3, seconds=2.0) == {
        "reward_std": 0.0,
        "num_rollouts": 1,
        "num_groups": 1,
        "num_groups_without_signal": 1,
        "num_masked": 0,
        "num_failed": 1,
        "num_failed/seed_error": 1,
        "num_sampled_tokens": 0,
        "sampled_tokens_per_s": 0.0,
    }


def test_an_empty_batch_has_numbers_too():
    counts = ("num_rollouts", "num_groups", "num_groups_without_signal", "num_masked", "num_failed", "num_sampled_tokens")
    assert numbers([], version=1) == {"reward_std": 0.0, **dict.fromkeys(counts, 0)}


def test_the_rewards_of_several_environments_are_told_apart():
    groups = [
        played(rollout(1.0), rollout(0.0), environment="maths"),
        played(rollout(0.25), rollout(None, failure=FailureType.TOOL), environment="code"),
        played(rollout(1.0), environment="maths"),
    ]
    metrics = numbers(groups)
    found = {name: value for name, value in metrics.items() if "/maths" in name or "/code" in name}
    assert found == {
        "reward/code": 0.25,
        "num_rollouts/code": 2,
        "reward/maths": pytest.approx(2 / 3),
        "num_rollouts/maths": 3,
    }
    assert metrics["reward"] == pytest.approx(2.25 / 4)


def test_one_environment_of_several_is_named_and_a_single_one_is_not():
    assert chosen(one(environments=["a", "b"]), "reward/a", "num_rollouts/a") == {"reward/a": 1.0, "num_rollouts/a": 1}
    assert not any(name.startswith("reward/") for name in one(environments=["a"]))
    failed = numbers([played(rollout(None, failure=FailureType.TOOL))], environments=["a", "b"])
    assert (failed["num_rollouts/a"], "reward/a" in failed) == (1, False)


def test_parts_of_the_reward_come_from_either_place_and_only_as_numbers():
    groups = [
        played(
            rollout(1.0, reward_components={"format": 1, "answer": 0.5, "told": "yes"}),
            rollout(1.0, **{"reward/format": 0.0, "reward/note": "none", "reward_time": 3.0}),
            rollout(1.0, reward_components={"format": 0.5, "broken": math.nan}),
            rollout(None, failure=FailureType.VERIFY, reward_components={"format": 1.0}),
        )
    ]
    found = {name: value for name, value in numbers(groups).items() if "component" in name}
    assert found == {"reward_component/answer": 0.5, "reward_component/format": 0.5}


def test_a_masked_rollout_is_counted_and_is_in_no_mean():
    groups = [
        played(rollout(1.0, turn(2)), rollout(0.0, turn(9), mask_sample=True)),
        played(rollout(0.5, turn(4)), rollout(0.0, turn(9), instance_config={"mask_sample": True}, mask_sample=False)),
    ]
    metrics = numbers(groups)
    assert chosen(metrics, "reward", "completion_tokens_max", "num_masked", "num_failed") == {
        "reward": 0.75,
        "completion_tokens_max": 4,
        "num_masked": 2,
        "num_failed": 0,
    }
    assert metrics["num_sampled_tokens"] == 24


def test_groups_without_a_signal_are_as_many_as_the_estimator_found_whatever_their_rewards():
    groups = [played(rollout(1.0), rollout(1.0)), played(rollout(1.0), rollout(0.0))]
    assert [numbers(groups, num_groups_without_signal=count)["num_groups_without_signal"] for count in (0, 2)] == [0, 2]


def test_staleness_is_by_the_oldest_version_that_sampled_a_rollout():
    groups = [
        played(rollout(1.0, turn(1, version=5), turn(1, version=6)), rollout(0.0, turn(1, version=7)), version=5),
        played(rollout(1.0, gym_bridge={"policy_versions": [6, 7]}), rollout(1.0), version=4),  # played by agents
    ]
    found = {name: value for name, value in numbers(groups, version=7).items() if "staleness" in name}
    assert found == {
        "staleness": pytest.approx((2 + 0 + 1 + 3) / 4),
        "staleness_max": 3,
        "staleness/0": 1,
        "staleness/1": 1,
        "staleness/2": 1,
        "staleness/3": 1,
    }
    assert not any("staleness" in name for name in numbers(groups))


def test_a_rollout_whose_history_was_rewritten_has_several_segments():
    rewritten = rollout(1.0, turn(1, starts_segment=True), turn(1, starts_segment=True))
    plain = rollout(1.0, turn(1, starts_segment=True), turn(1))
    assert numbers([played(rewritten, plain, plain, plain)])["several_segments"] == 0.25


def test_seconds_of_a_rollout_are_told_by_stage():
    groups = [
        played(
            rollout(1.0, gym_bridge={"timings_s": {"total": 3.0, "model": 2.0}}),
            rollout(1.0, gym_bridge={"timings_s": {"total": 1.0, "tools": 0.5}}),
            rollout(1.0),
        )
    ]
    found = {name: value for name, value in numbers(groups).items() if name.startswith("rollout_s/")}
    assert found == {"rollout_s/total": 2.0, "rollout_s/model": 2.0, "rollout_s/tools": 0.5}


def test_tokens_a_second_count_those_of_failed_and_repeated_attempts():
    failed = rollout(None, failure=FailureType.TOOL, gym_bridge={"num_output_tokens": 30})
    groups = [played(rollout(1.0, turn(10)), failed, retried=(failed,))]
    metrics = numbers(groups, seconds=2.0)
    assert (metrics["num_sampled_tokens"], metrics["sampled_tokens_per_s"]) == (70, 35.0)


def test_lengths_without_tokens_are_as_the_endpoint_counted_and_unknown_ones_are_no_zeros():
    counted = rollout(1.0, gym_bridge={"num_output_tokens": 12})
    unknown = rollout(1.0, gym_bridge={"num_output_tokens": 0})
    assert numbers([played(counted, unknown)])["completion_tokens"] == 12
    assert "completion_tokens" not in numbers([played(unknown)])


def test_rows_of_others_without_our_fields_have_numbers():
    foreign = Rollout(key=RolloutKey(0, 0), attempt=0, row={"reward": 1})
    metrics = numbers([played(foreign)], version=0)
    assert chosen(metrics, "reward", "solved", "staleness", "truncated") == {
        "reward": 1.0,
        "solved": 1.0,
        "staleness": 0.0,
        "truncated": 0.0,
    }
    assert "num_turns" not in metrics
