from collections import Counter

import numpy as np
import pytest
import torch

from gym_bridge.policy.actor_critic import open_actor_critic
from gym_bridge.policy.frozen_model import open_teacher
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import CriticSettings, GRPOSettings, PolicySettings
from gym_bridge.trainers.columns import Columns
from gym_bridge.trainers.experience import Experience

NAN = np.nan
POLICY = PolicySettings(compute_dtype="float32", lr=1e-2)


def settings_of(**algorithm):
    return GRPOSettings(env={"server": "calculator"}, algorithm=algorithm)


def experience(index, *sequences):
    return Experience(
        key=RolloutKey(0, index),
        reward=1.0,
        sequences=sequences,
        turn_lengths=tuple(one.num_trained for one in sequences),
    )


@pytest.fixture
def groups(training_sequence):
    """Two groups; a rollout of two segments, one that sampled nothing, one of a single token."""
    first = experience(0, training_sequence("ppTT", [5, 6, 7, 8], old=-1.0), training_sequence("pTpT", [5, 9, 6, 8], old=-2.0))
    return [(first, experience(1)), (), (experience(2, training_sequence("ppT", [5, 6, 8], old=-0.5)),)]


class Told:
    """Says of a token its id times `factor`; counts how often it was asked, and of how many sequences."""

    version = 0

    def __init__(self):
        self.asked = Counter()

    def says(self, name, factor):
        def say(sequences):
            self.asked[name, len(sequences)] += 1
            return [torch.from_numpy(one.token_ids[one.train_mask]).float() * factor for one in sequences]

        return say

    @property
    def logprobs(self):
        return self.says("logprobs", -1)

    @property
    def reference_logprobs(self):
        return self.says("reference", -10)


class ToldWithValues(Told):
    """A policy with a value model that is none of ours."""

    def unasked(self, *_):
        raise AssertionError("columns ask for numbers alone")

    step = evaluate = save = load = weights = unasked

    def values(self, sequences):
        return self.says("values", 100)(sequences)


def test_whoever_has_values_is_asked_for_them(groups):
    policy = ToldWithValues()
    (first, _), _, (last,) = Columns(policy, settings_of()).fill(groups)
    np.testing.assert_array_equal(first.sequences[1].old_values, np.float32([NAN, 900, NAN, 800]))
    np.testing.assert_array_equal(last.sequences[0].old_values, np.float32([NAN, NAN, 800]))
    assert policy.asked == {("values", 3): 1}


def test_nothing_is_computed_that_nobody_asked_for(groups):
    policy = Told()
    columns = Columns(policy, settings_of())
    assert columns.fill(groups) == groups
    assert not policy.asked
    assert columns.metrics() == {}


def test_columns_stand_at_the_trained_tokens_of_their_sequence(groups):
    policy = Told()
    columns = Columns(policy, settings_of(old_logprobs="trainer", beta=0.1))
    (first, silent), empty, (last,) = columns.fill(groups)
    expected = [
        (first.sequences[0], [NAN, NAN, -7, -8]),
        (first.sequences[1], [NAN, -9, NAN, -8]),
        (last.sequences[0], [NAN, NAN, -8]),
    ]
    for sequence, values in expected:
        np.testing.assert_array_equal(sequence.old_logprobs, np.float32(values))
        np.testing.assert_array_equal(sequence.ref_logprobs, 10 * np.float32(values))
        assert sequence.old_logprobs.dtype == sequence.ref_logprobs.dtype == np.float32
        assert sequence.old_values is None
    assert (silent.sequences, empty, first.teacher_logprobs) == ((), (), ())
    np.testing.assert_array_equal(last.sequences[0].rollout_logprobs, np.float32([NAN, NAN, -0.5]))
    assert policy.asked == {("logprobs", 3): 1, ("reference", 3): 1}  # once for the whole batch


def test_seconds_are_told_once_and_add_up(groups):
    columns = Columns(Told(), settings_of(old_logprobs="trainer", beta=0.1))
    columns.fill(groups)
    one = columns.metrics()
    assert one.keys() == {"columns_s", "old_logprobs_s", "ref_logprobs_s"}
    assert one["columns_s"] == pytest.approx(one["old_logprobs_s"] + one["ref_logprobs_s"])
    assert columns.metrics() == {}
    assert columns.fill([(), ()]) == [(), ()]
    assert columns.metrics() == {}


def nearer(values, columns):
    return Loss((values - 1).square().sum() / columns.num_tokens)


def likelier(logprobs, columns):
    return Loss(-logprobs.sum() / columns.num_tokens)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8.0}])
def test_policy_reference_teacher_and_value_model_each_say_their_own(tiny_llama, tiny_qwen3, groups, lora):
    policy = POLICY.model_copy(update={"lora": lora and PolicySettings(lora=lora).lora})
    both = open_actor_critic(TorchPolicy, tiny_llama, policy, CriticSettings(lr=1e-2), value_loss=nearer)
    sequences = [one for group in groups for member in group for one in member.sequences]
    both.step([sequences], likelier)
    teacher = open_teacher(tiny_qwen3, policy, learner=tiny_llama)
    settings = settings_of(preset="ppo", beta=0.1, teacher=str(tiny_qwen3))
    columns = Columns(both, settings, teacher=teacher)
    filled = [member for group in columns.fill(groups) for member in group]
    found = {
        "old_logprobs": [one.old_logprobs for member in filled for one in member.sequences],
        "ref_logprobs": [one.ref_logprobs for member in filled for one in member.sequences],
        "teacher": [one for member in filled for one in member.teacher_logprobs],
        "old_values": [one.old_values for member in filled for one in member.sequences],
    }
    expected = {
        "old_logprobs": both.policy.logprobs(sequences),
        "ref_logprobs": TorchPolicy(tiny_llama, POLICY).logprobs(sequences),
        "teacher": TorchPolicy(tiny_qwen3, POLICY).logprobs(sequences),
        "old_values": both.values(sequences),
    }
    for name, values in expected.items():
        for sequence, column, told in zip(sequences, found[name], values, strict=True):
            np.testing.assert_array_equal(column[sequence.train_mask], told.numpy())
            assert np.isnan(column[~sequence.train_mask]).all()
    apart = [torch.cat(values) for values in expected.values()]
    assert all(not torch.equal(one, other) for index, one in enumerate(apart) for other in apart[:index])
    assert columns.metrics().keys() == {"columns_s", *(f"{name}_s" for name in expected)}
