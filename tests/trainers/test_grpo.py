import asyncio
import json
import threading

import pytest
import torch

from gym_bridge.errors import PolicyError
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.rollouts import Failure, FailureType, Group, Rollout, RolloutKey
from gym_bridge.schemas.settings import GRPOAlgorithm, GRPOSettings
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.trainers.grpo import MAX_EMPTY_STEPS, GRPOSource, group_metrics, grpo_loss
from tests.trainers.columns_stage import trained_tokens


def rollout(key, reward, *, length=1, truncated=False, num_turns=1, failure=None):
    """A rollout of one turn: prompt 5 and the task's number, completion the rollout's number over and over."""
    row = {"_ng_task_index": key.task_index, "_ng_rollout_index": key.rollout_index}
    if failure is not None:
        row["_ng_failure_class"] = str(failure)
        return Rollout(key=key, attempt=0, row=row, failure=Failure(type=failure, message="it failed"))
    turn = TurnTokens(
        prompt_ids=(5, 10 + key.task_index),
        completion_ids=(50 + key.rollout_index % 100,) * length,
        logprobs=(-1.0,) * length,
        policy_version=0,
        starts_segment=True,
    )
    row |= {"reward": reward, "gym_bridge": {"num_turns": num_turns, "truncated": truncated}}
    return Rollout(key=key, attempt=0, row=row, turns=(turn,))


class Scripted:
    """A collector whose rollouts end as `outcome(task_index, member)` says: a reward, or a type of failure."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.keys = []
        self.asked = []

    async def groups(self, tasks, *, group_size):
        tasks = list(tasks)
        self.asked.append([task["_ng_task_index"] for task in tasks])
        for task in reversed(tasks):  # completion has an order of its own
            await asyncio.sleep(0)
            members = []
            for member in range(group_size):
                key = RolloutKey(task["_ng_task_index"], task["_ng_rollout_index"] + member)
                found = self.outcome(key.task_index, member)
                failure = found if isinstance(found, FailureType) else None
                members.append(rollout(key, found, failure=failure))
                self.keys.append(key)
            yield Group(task_index=task["_ng_task_index"], rollouts=tuple(members))

    async def close(self):
        pass


def settings(*, tasks_per_step=2, group_size=3, seed=0, scale="none"):
    return GRPOSettings.model_validate(
        {
            "data": {"train": "tasks.jsonl"},
            "env": {"server": "arithmetic"},
            "algorithm": {"tasks_per_step": tasks_per_step, "group_size": group_size, "scale": scale},
            "trainer": {"seed": seed, "max_steps": 10},
        }
    )


@pytest.fixture
def open_source(tmp_path):
    """Sources over numbered tasks, all with the log of one run; they are closed at the end."""
    opened = []

    def build(outcome, *, num_tasks=4, **options):
        collector = Scripted(outcome)
        log = RolloutLog(tmp_path / "rollouts.jsonl", identity={})
        source = GRPOSource([{"_ng_task_index": index} for index in range(num_tasks)], collector, log, settings(**options))
        opened.append(source)
        return source, collector

    yield build
    for source in opened:
        source.close()


def spread(task, member):
    return float(member == 0)


def trained(step):
    """Task, rollout and advantage of every sequence of a step."""
    return [
        (int(one.token_ids[1]) - 10, int(one.token_ids[2]) - 50, round(one.advantage, 6))
        for batch in step.microbatches
        for one in batch
    ]


def test_each_rollout_trains_with_its_advantage_in_its_group(open_source):
    source, collector = open_source(lambda task, member: [0.0, 3.0, 6.0][member])
    found = trained(source.next())
    expected = [(task, member, [-3.0, 0.0, 3.0][member]) for task in sorted(collector.asked[0]) for member in range(3)]
    assert found == expected  # the middle one has no gradient, but its tokens count in the step's mean


def test_advantages_are_scaled_by_the_standard_deviation_when_asked(open_source):
    source, _ = open_source(lambda task, member: [0.0, 3.0, 6.0][member], scale="std", tasks_per_step=1)
    assert [advantage for _, _, advantage in trained(source.next())] == [-1.0, 0.0, 1.0]


def test_what_trains_is_what_was_sampled(open_source):
    source, _ = open_source(spread, tasks_per_step=1)
    sequence = source.next().microbatches[0][0]
    assert sequence.train_mask.tolist() == [False, False, True]
    assert sequence.rollout_logprobs.tolist()[2] == -1.0


def test_failed_members_leave_their_group_and_are_no_reward_of_zero(open_source):
    outcomes = [FailureType.TIMEOUT, 1.0, 0.5]
    source, _ = open_source(lambda task, member: outcomes[member], tasks_per_step=1)
    step = source.next()
    assert [(member, advantage) for _, member, advantage in trained(step)] == [(1, 0.25), (2, -0.25)]
    assert step.metrics["num_failed"] == step.metrics["num_failed/timeout_exceeded"] == 1
    assert step.metrics["reward"] == 0.75


def test_a_group_with_one_reward_left_is_not_trained_on(open_source):
    def outcome(task, member):
        return spread(task, member) if task == 0 else [1.0, FailureType.MODEL, FailureType.MODEL][member]

    source, _ = open_source(outcome, num_tasks=2)
    step = source.next()
    assert {task for task, _, _ in trained(step)} == {0}
    assert step.metrics["num_groups_without_signal"] == 1


def test_groups_without_spread_give_no_sequences(open_source):
    source, collector = open_source(lambda task, member: spread(task, member) if task == 3 else 0.1, num_tasks=4)
    assert {task for task, _, _ in trained(source.next())} == {3}
    assert 1 <= len(collector.asked) <= 2


def test_many_steps_without_a_signal_are_a_policy_error(open_source):
    source, collector = open_source(lambda task, member: 1.0)
    with pytest.raises(PolicyError, match="20 steps of 2 groups had no spread in their rewards"):
        source.next()
    assert len(collector.asked) == MAX_EMPTY_STEPS == 20


def test_a_pass_takes_every_task_once_in_an_order_of_its_own(open_source):
    source, collector = open_source(spread, num_tasks=6, tasks_per_step=6)
    for _ in range(4):
        source.next()
    assert all(sorted(asked) == list(range(6)) for asked in collector.asked)
    assert len({tuple(asked) for asked in collector.asked}) > 1


def test_rollout_indices_never_repeat(open_source):
    source, collector = open_source(spread, num_tasks=3, tasks_per_step=2)
    for version in range(5):
        source.next()
        source.stepped(version)
    assert len(set(collector.keys)) == len(collector.keys) == 5 * 2 * 3
    source.close()
    again, later = open_source(spread, num_tasks=3, tasks_per_step=2)
    again.load_state_dict({"position": 4})
    again.next()
    assert not set(later.keys) & set(collector.keys)


def test_a_step_larger_than_the_task_set_plays_a_task_twice_under_new_indices(open_source):
    source, collector = open_source(spread, num_tasks=2, tasks_per_step=5)
    step = source.next()
    assert len(set(collector.keys)) == 15
    per_task = {task: sorted(key.rollout_index for key in collector.keys if key.task_index == task) for task in (0, 1)}
    assert all(indices == list(range(len(indices))) for indices in per_task.values())
    assert trained(step) == sorted(trained(step))


def test_tasks_of_a_step_that_was_never_taken_are_played_again(open_source):
    source, collector = open_source(spread)
    source.next()
    source.stepped(1)
    state = json.loads(json.dumps(source.state_dict()))
    source.next()
    assert source.state_dict() == state == {"position": 2}
    source.close()
    resumed, later = open_source(spread)
    resumed.load_state_dict(state)
    resumed.next()
    assert later.asked[0] == collector.asked[1]


def test_every_rollout_is_on_disk_after_closing(open_source, tmp_path):
    source, _ = open_source(lambda task, member: [FailureType.TOOL, 1.0, 0.0][member])
    source.next()
    source.close()
    assert len((tmp_path / "rollouts.jsonl").read_bytes().splitlines()) == 4
    assert len((tmp_path / "rollouts_failures.jsonl").read_bytes().splitlines()) == 2


def test_closing_ends_the_collectors_thread(open_source):
    before = sum(one.name == "collector" for one in threading.enumerate())
    source, _ = open_source(spread)
    assert sum(one.name == "collector" for one in threading.enumerate()) == before + 1
    source.close()
    assert sum(one.name == "collector" for one in threading.enumerate()) == before


def test_what_the_collector_raises_reaches_the_trainer(open_source):
    def outcome(task, member):
        raise PolicyError("sampling failed")

    source, _ = open_source(outcome)
    with pytest.raises(PolicyError, match="sampling failed"):
        source.next()


def test_the_numbers_of_a_step():
    groups = [
        Group(
            task_index=0,
            rollouts=(
                rollout(RolloutKey(0, 0), 1.0, length=2, num_turns=1),
                rollout(RolloutKey(0, 1), 0.0, length=4, num_turns=3, truncated=True),
                rollout(RolloutKey(0, 2), None, failure=FailureType.TIMEOUT),
            ),
        ),
        Group(task_index=1, rollouts=(rollout(RolloutKey(1, 0), 1.0, length=3), rollout(RolloutKey(1, 1), 0.0, length=3))),
        Group(task_index=2, rollouts=(rollout(RolloutKey(2, 0), None, failure=FailureType.MODEL),)),
    ]
    assert group_metrics(groups) == {
        "reward": 0.5,
        "reward_std": 0.5,
        "completion_tokens": 3.0,
        "num_turns": 1.5,
        "truncated": 0.25,
        "num_rollouts": 6,
        "num_groups_without_signal": 1,
        "num_failed": 2,
        "num_failed/timeout_exceeded": 1,
        "num_failed/model_error": 1,
    }


def test_a_step_in_which_all_failed_has_numbers_too():
    groups = [Group(task_index=0, rollouts=(rollout(RolloutKey(0, 0), None, failure=FailureType.SEED),))]
    metrics = group_metrics(groups)
    assert (metrics["num_failed"], metrics["num_groups_without_signal"], metrics["reward_std"]) == (1, 1, 0.0)
    assert "reward" not in metrics


def columns(old, advantages):
    return trained_tokens(len(old), old_logprobs=old, rollout_logprobs=old, advantages=advantages, num_tokens=4)


def test_the_loss_reports_ratio_gap_and_clipping():
    loss = grpo_loss(GRPOAlgorithm(clip_low=0.5, clip_high=0.5))
    logprobs = torch.log(torch.tensor([0.5, 0.2, 0.1]))
    old = torch.log(torch.tensor([0.25, 0.2, 0.2])).tolist()
    found = loss(logprobs, columns(old, [1.0, 1.0, 1.0]))
    # ratios 2, 1, 0.5: the first is clipped to 1.5
    assert found.value.item() == pytest.approx(-(1.5 + 1.0 + 0.5) / 4)
    assert found.metrics == {
        "ratio": pytest.approx((2 + 1 + 0.5) / 4),
        "gap": pytest.approx((2 + 1 + 2) / 4),
        "clip_fraction": pytest.approx(1 / 4),
    }


def test_a_sampled_token_without_a_logprob_is_a_policy_error():
    with pytest.raises(PolicyError, match="a sampled token has no log-prob"):
        grpo_loss(GRPOAlgorithm())(torch.tensor([-1.0, -1.0]), columns([-1.0, float("nan")], [1.0, 1.0]))


def test_a_step_raises_the_likelihood_of_good_rollouts_over_that_of_bad_ones(open_source, tiny_llama):
    source, _ = open_source(spread, tasks_per_step=1)
    microbatches = source.next().microbatches
    chosen = settings().policy.model_copy(update={"compute_dtype": "float32", "lr": 1e-3})
    policy = TorchPolicy(tiny_llama, chosen)
    sequences = sorted((one for batch in microbatches for one in batch), key=lambda one: -one.advantage)
    before = [float(one.sum()) for one in policy.logprobs(sequences)]
    # stale log-probs far from the model's would be clipped: the ratio is taken against what the model says now
    fresh = [
        type(one)(
            token_ids=one.token_ids,
            train_mask=one.train_mask,
            advantage=one.advantage,
            rollout_logprobs=torch.where(torch.from_numpy(one.train_mask), logprob, torch.nan).float().numpy(),
        )
        for one, logprob in zip(sequences, before, strict=True)
    ]
    result = policy.step([fresh], grpo_loss(GRPOAlgorithm()))
    assert (result.metrics["ratio"], result.metrics["gap"]) == (pytest.approx(1.0), pytest.approx(1.0))
    after = [float(one.sum()) for one in policy.logprobs(sequences)]
    gains = [new - old for new, old in zip(after, before, strict=True)]
    assert gains[0] > 0 > max(gains[1:])
