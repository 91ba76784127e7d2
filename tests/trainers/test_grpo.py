"""Batches of groups and the updates on them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from gym_bridge.errors import DataError, PolicyError
from gym_bridge.io.step_records import recorded_steps
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.rollouts import FailureType, Group, RolloutKey
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.trainers.alarms import Alarms
from gym_bridge.trainers.columns import Columns
from gym_bridge.trainers.group_stream import PlayedGroup
from gym_bridge.trainers.grpo import MAX_EMPTY_BATCHES, GRPOSource
from gym_bridge.trainers.policy_loss import policy_loss
from tests.trainers.loop_stage import raising
from tests.trainers.played_stage import rollout


class Given:
    """A stream over tasks 0, 1, 2, ... whose groups have `rewards(task)`: a reward or a type of failure for each member."""

    def __init__(self, rewards, *, num_tasks=1000, build=rollout):
        self.rewards, self.num_tasks, self.build = rewards, num_tasks, build
        self.taken, self.trained, self.told = 0, 0, []

    def take(self, count):
        numbers = range(self.taken, min(self.taken + count, self.num_tasks))
        self.taken += len(numbers)
        return [PlayedGroup(group=self.group(task), environment="game", version=0) for task in numbers]

    def group(self, task):
        members = []
        for member, found in enumerate(self.rewards(task)):
            failure = found if isinstance(found, FailureType) else None
            members.append(self.build(RolloutKey(task, member), found, failure=failure))
        return Group(task_index=task, rollouts=tuple(members))

    def stepped(self, version):
        self.trained = self.taken
        self.told.append(version)

    def metrics(self):
        return {}

    def state_dict(self):
        return {"taken": self.trained}

    def load_state_dict(self, state):
        self.taken = self.trained = state["taken"]

    def close(self):
        self.told.append("closed")


def settings(*, tasks_per_step=2, group_size=3, record=False, max_failure_rate=1.0, **algorithm):
    chosen = {"tasks_per_step": tasks_per_step, "group_size": group_size, "scale": "none", **algorithm}
    return GRPOSettings.model_validate(
        {
            "data": {"train": "tasks.jsonl"},
            "env": {"server": "arithmetic", "max_failure_rate": max_failure_rate},
            "algorithm": chosen,
            "trainer": {"record": record},
        }
    )


def source_over(stream, directory, *, version=0, weights=None, ensure=None, **options):
    chosen = settings(**options)
    columns = Columns(None, chosen)  # nothing is asked of the policy
    alarms = Alarms(chosen.trainer.alarms)
    return GRPOSource(
        stream, columns, chosen, records=directory / "steps", alarms=alarms, version=version, weights=weights, ensure=ensure
    )


def first_step(stream, directory, **options):
    return source_over(stream, directory, **options).next()


def spread(task):
    return [1.0, 0.0, 0.0]


def trained(step):
    """Task, rollout and advantage of every sequence of a step."""
    return sorted(
        (int(one.token_ids[1]) - 10, int(one.token_ids[2]) - 50, round(one.advantage, 6))
        for batch in step.microbatches
        for one in batch
    )


def steps_of(source, *, after=0):
    """All updates until the stream ends, taken one after the other."""
    found = []
    while (step := source.next()) is not None:
        found.append(step)
        source.stepped(after + len(found))
    return found


def test_each_rollout_trains_with_its_advantage_in_its_group(tmp_path):
    step = first_step(Given(lambda task: [0.0, 3.0, 6.0]), tmp_path)
    # the middle ones have no gradient, but their tokens count in the step's mean
    assert trained(step) == [(task, member, [-3.0, 0.0, 3.0][member]) for task in (0, 1) for member in range(3)]


def test_what_trains_is_what_was_sampled(tmp_path):
    sequence = first_step(Given(spread), tmp_path, tasks_per_step=1).microbatches[0][0]
    assert sequence.train_mask.tolist() == [False, False, True]
    assert sequence.rollout_logprobs.tolist()[2] == -1.0


def test_groups_of_one_prompt_stay_apart(tmp_path):
    def same_prompt(key, reward, **more):
        return rollout(key, reward, prompt=(5, 10), **more)

    stream = Given(lambda task: [0.0, 1.0] if task == 0 else [4.0, 6.0], build=same_prompt)
    advantages = [round(advantage, 6) for _, _, advantage in trained(first_step(stream, tmp_path, group_size=2))]
    assert sorted(advantages) == [-1.0, -0.5, 0.5, 1.0]


def test_segments_of_a_rewritten_history_share_the_advantage(tmp_path):
    def rewritten(key, reward, **more):
        one = rollout(key, reward, **more)
        second = TurnTokens(
            prompt_ids=(6, 10 + key.task_index), completion_ids=(99,), logprobs=(-2.0,), policy_version=0, starts_segment=True
        )
        return replace(one, turns=(*one.turns, second))

    step = first_step(Given(lambda task: [1.0, 0.0], build=rewritten), tmp_path, tasks_per_step=1, group_size=2)
    assert trained(step) == [(0, 0, 0.5), (0, 1, -0.5), (0, 49, -0.5), (0, 49, 0.5)]


def test_failed_members_leave_their_group_and_are_no_reward_of_zero(tmp_path):
    step = first_step(Given(lambda task: [FailureType.TIMEOUT, 1.0, 0.5]), tmp_path, tasks_per_step=1)
    assert trained(step) == [(0, 1, 0.25), (0, 2, -0.25)]
    assert step.metrics["num_failed"] == step.metrics["num_failed/timeout_exceeded"] == 1
    assert step.metrics["reward"] == 0.75


def test_more_failures_than_may_be_end_the_training(tmp_path):
    stream = Given(lambda task: [1.0, FailureType.MODEL, FailureType.TOOL])
    assert first_step(stream, tmp_path, max_failure_rate=0.7, baseline="none") is not None
    with pytest.raises(PolicyError, match=r"4 of 6 rollouts of a batch failed \(2 model_error, 2 tool_error\).*: it failed"):
        first_step(stream, tmp_path, max_failure_rate=0.6)


def test_where_any_number_may_fail_training_ends_only_after_many_batches_of_failures(tmp_path):
    stream = Given(lambda task: [FailureType.SEED] * 3)
    with pytest.raises(PolicyError, match="all rollouts of 40 groups in a row failed, the first one with: it failed"):
        first_step(stream, tmp_path, max_failure_rate=1.0)
    assert stream.taken == 40


def test_the_failures_of_a_refill_count_in_the_whole_batch(tmp_path):
    # the third group, which replaces one without a signal, fails whole: 3 of 9
    stream = Given(lambda task: [spread(task), [1.0] * 3, [FailureType.TOOL] * 3, spread(task)][task])
    step = first_step(stream, tmp_path, dynamic_sampling=True, max_failure_rate=0.5)
    assert {task for task, _, _ in trained(step)} == {0, 3}


def test_groups_without_spread_do_not_train(tmp_path):
    stream = Given(lambda task: spread(task) if task == 1 else [1.0] * 3)
    step = first_step(stream, tmp_path)
    assert {task for task, _, _ in trained(step)} == {1}
    assert step.metrics["num_groups_without_signal"] == 1
    assert stream.taken == 2


def test_a_batch_without_any_signal_is_followed_by_another(tmp_path):
    stream = Given(lambda task: spread(task) if task == 5 else [0.1] * 3)
    step = first_step(stream, tmp_path)
    assert {task for task, _, _ in trained(step)} == {5}
    assert (step.metrics["num_rollouts"], stream.taken) == (18, 6)


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (0.0, "all between 0 and 0; the policy never succeeds, so that there is nothing to reinforce: warm it up by supervised"),
        (1.0, "all between 1 and 1; the tasks are too hard or too easy for this policy"),
    ],
)
def test_many_batches_without_a_signal_are_a_policy_error_that_says_what_to_try(tmp_path, reward, told, caplog):
    stream = Given(lambda task: [reward] * 3)
    with pytest.raises(PolicyError, match=f"40 groups in a row had no spread in their rewards: {told}"):
        first_step(stream, tmp_path)
    assert stream.taken == 2 * MAX_EMPTY_BATCHES == 40
    (warning,) = caplog.messages  # after the first of them, not only when the run has been lost
    assert warning.startswith("2 groups in a row had no spread in their rewards")


def test_dynamic_sampling_replaces_groups_without_a_signal(tmp_path):
    stream = Given(lambda task: spread(task) if task in (1, 4, 9) else [1.0] * 3)
    step = first_step(stream, tmp_path, dynamic_sampling=True)
    assert {task for task, _, _ in trained(step)} == {1, 4}
    assert stream.taken == 5  # 0 and 1, then 2, 3 and 4 one by one


def test_dynamic_sampling_is_bounded(tmp_path):
    stream = Given(lambda task: spread(task) if task == 0 else [1.0] * 3)
    step = first_step(stream, tmp_path, dynamic_sampling=True, max_refills=3)
    assert {task for task, _, _ in trained(step)} == {0}
    assert stream.taken == 5


def test_the_end_of_the_stream_ends_the_steps(tmp_path):
    steps = steps_of(source_over(Given(spread, num_tasks=3), tmp_path))
    assert [{task for task, _, _ in trained(one)} for one in steps] == [{0, 1}, {2}]


def test_each_pass_trains_on_each_group_once_in_minibatches(tmp_path):
    source = source_over(Given(spread, num_tasks=4), tmp_path, tasks_per_step=4, epochs_per_batch=2, minibatches=2)
    steps = steps_of(source)
    passes = [[task for step in steps[first : first + 2] for task in {task for task, _, _ in trained(step)}] for first in (0, 2)]
    assert [sorted(one) for one in passes] == [[0, 1, 2, 3]] * 2
    assert [len(trained(one)) for one in steps] == [6] * 4


def test_only_the_first_update_on_a_batch_tells_of_it(tmp_path):
    stream = Given(spread, num_tasks=4)
    steps = steps_of(source_over(stream, tmp_path, tasks_per_step=4, minibatches=4))
    assert ["reward" in one.metrics for one in steps] == [True, False, False, False]
    assert stream.told == [1, 2, 3, 4]


def test_the_sampler_gets_new_weights_before_each_batch_and_is_looked_after_before_each_update(tmp_path):
    told = []
    weights = SimpleNamespace(renew=lambda: told.append("renew"), metrics=lambda: {"push_s": 0.5})
    source = source_over(
        Given(spread, num_tasks=4), tmp_path, minibatches=2, weights=weights, ensure=lambda version: told.append(version)
    )
    steps = steps_of(source)
    assert told == ["renew", 0, 1, "renew", 2, 3, "renew"]
    assert [one.metrics.get("push_s") for one in steps] == [0.5, None, 0.5, None]


def test_ctrl_c_while_a_batch_is_planned_leaves_no_updates_to_wait_for(tmp_path, monkeypatch):
    source = source_over(Given(spread), tmp_path)
    source.next()
    source.stepped(1)
    monkeypatch.setattr("gym_bridge.trainers.grpo.plan_microbatches", lambda *_, **__: raising(KeyboardInterrupt)())
    with pytest.raises(KeyboardInterrupt):
        source.next()
    assert source.state_dict()["updates"] == 0


def test_a_kill_between_two_updates_on_a_batch_loses_none_and_takes_none_twice(tmp_path):
    options = {"tasks_per_step": 4, "minibatches": 4}
    whole = steps_of(source_over(Given(spread, num_tasks=8), tmp_path / "whole", **options))
    source = source_over(Given(spread, num_tasks=8), tmp_path, **options)
    source.next()
    state = source.state_dict()
    assert state["updates"] == 0  # nothing trained yet: the groups stand in the stream
    for version in (1, 2):
        source.next()
        source.stepped(version)
    source.next()
    state = json.loads(json.dumps(source.state_dict()))
    again = source_over(Given(spread, num_tasks=8), tmp_path, version=2, **options)
    again.load_state_dict(state)
    assert [trained(one) for one in steps_of(again, after=2)] == [trained(one) for one in whole[2:]]


def test_records_stay_as_long_as_the_checkpoint_before_may_need_them(tmp_path):
    source = source_over(Given(spread), tmp_path, tasks_per_step=4, minibatches=4)
    found = []
    for version in range(1, 7):
        source.next()
        source.stepped(version)
        if version % 3 == 0:  # a checkpoint
            source.state_dict()
            found.append(recorded_steps(tmp_path / "steps"))
    assert found == [[1, 2, 3, 4], [4, 5, 6, 7, 8]]
    source.next()
    source.stepped(7)
    source.next()
    source.stepped(8)
    # of the checkpoints of 3 and 6; the others are used up, though no checkpoint came since
    assert recorded_steps(tmp_path / "steps") == [4, 7, 8]


def test_updates_that_are_gone_are_told(tmp_path):
    source = source_over(Given(spread), tmp_path, version=7)
    with pytest.raises(DataError, match="step_00000008"):
        source.load_state_dict({"stream": {"taken": 2}, "updates": 1, "alarms": source.alarms.state_dict()})


def test_recorded_steps_stay(tmp_path):
    steps_of(source_over(Given(spread, num_tasks=4), tmp_path, record=True, minibatches=2))
    assert len(list((tmp_path / "steps").glob("step_*.npz"))) == 4


def test_closing_closes_the_stream(tmp_path):
    stream = Given(spread)
    source_over(stream, tmp_path).close()
    assert stream.told == ["closed"]


def test_a_step_raises_the_likelihood_of_good_rollouts_over_that_of_bad_ones(tmp_path, tiny_llama):
    chosen = settings(tasks_per_step=1)
    step = first_step(Given(spread), tmp_path, tasks_per_step=1)
    policy = TorchPolicy(tiny_llama, chosen.policy.model_copy(update={"compute_dtype": "float32", "lr": 1e-3}))
    sequences = sorted((one for batch in step.microbatches for one in batch), key=lambda one: -one.advantage)
    before = [float(one.sum()) for one in policy.logprobs(sequences)]
    # stale log-probs far from the model's would be clipped: the ratio is taken against what the model says now
    fresh = [
        replace(one, rollout_logprobs=(one.rollout_logprobs + 1.0 + logprob).astype("float32"))
        for one, logprob in zip(sequences, before, strict=True)
    ]
    result = policy.step([fresh], policy_loss(chosen))
    assert (result.metrics["ratio"], result.metrics["gap"]) == (pytest.approx(1.0), pytest.approx(1.0))
    after = [float(one.sum()) for one in policy.logprobs(sequences)]
    gains = [new - old for new, old in zip(after, before, strict=True)]
    assert gains[0] > 0 > max(gains[1:])
