"""From played groups to experience: who is in, what trains of a rollout, and what its reward becomes."""

import logging
import math

import pytest

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.trainers.experience import experiences_of
from tests.trainers.experience_stage import failed, grpo, played, rollout, turn


def one(rollout, settings=None):
    """The experience of a single rollout."""
    (group,) = experiences_of([played(rollout)], settings or grpo())
    (found,) = group
    return found


def reward_of(settings, **fields):
    return one(rollout(**fields), settings).reward


def test_failed_and_masked_rollouts_leave_their_group():
    members = [
        rollout(1.0, index=0),
        failed(index=1),
        rollout(0.0, index=2, mask_sample=True),
        rollout(0.0, index=3, instance_config={"mask_sample": True}),
        rollout(0.5, index=4, mask_sample=False),
    ]
    (group,) = experiences_of([played(*members)], grpo())
    assert [one.key for one in group] == [RolloutKey(3, 0), RolloutKey(3, 4)]


def test_a_group_of_failures_is_empty_and_keeps_its_place():
    assert [len(one) for one in experiences_of([played(failed()), played(rollout())], grpo())] == [0, 1]


def test_an_experience_tells_what_was_played_and_trains_what_was_sampled():
    first = turn([1, 2], [5, 6], logprobs=[-0.25, -1.0], version=7)
    second = turn([1, 2, 5, 6, 9], [4], logprobs=[-2.0], version=8)
    found = one(rollout(0.5, [first, second], truncated=True))
    assert (found.reward, found.truncated, found.turn_lengths, found.trains) == (0.5, True, (2, 1), True)
    (sequence,) = found.sequences
    assert sequence.token_ids.tolist() == [1, 2, 5, 6, 9, 4]
    assert sequence.train_mask.tolist() == [False, False, True, True, False, True]
    assert sequence.rollout_logprobs[sequence.train_mask].tolist() == [-0.25, -1.0, -2.0]
    assert sequence.origin == "rollout 3-0"


def test_a_rewritten_history_makes_a_sequence_for_each_segment():
    found = one(rollout(turns=[turn([1, 2], [5]), turn([1, 9], [6, 7], starts_segment=True)]))
    assert [sequence.token_ids.tolist() for sequence in found.sequences] == [[1, 2, 5], [1, 9, 6, 7]]
    assert found.turn_lengths == (1, 2)


def test_an_empty_completion_counts_in_the_baseline_and_has_no_sequence():
    found = one(rollout(0.0, [turn([1, 2], [])]))
    assert (found.sequences, found.turn_lengths, found.reward) == ((), (0,), 0.0)


def test_a_run_whose_sampler_tells_no_tokens_is_refused():
    silent = [rollout(1.0, [], ours={"num_turns": 2}, index=index) for index in range(2)]
    with pytest.raises(PolicyError, match=r"rollout 3-0: .*sampler must report token ids and log-probs.*sampler\.kind=local"):
        experiences_of([played(*silent)], grpo())


def test_a_rollout_that_is_alone_without_tokens_is_told_of_and_does_not_train(caplog):
    members = [rollout(1.0, index=0), rollout(0.0, [], ours={"num_turns": 1}, index=1)]
    with caplog.at_level(logging.WARNING):
        ((_, silent),) = experiences_of([played(*members)], grpo())
    assert (silent.sequences, silent.turn_lengths) == ((), ())
    assert "rollout 3-1" in caplog.text


@pytest.mark.parametrize("logprob", [None, math.nan, 0.5, -math.inf, math.inf])
def test_a_log_prob_that_is_none_is_refused(logprob):
    with pytest.raises(PolicyError, match=r"rollout 3-0: turn 1 has the log-prob .* finite number of at most 0"):
        one(rollout(turns=[turn([1], [2]), turn([1, 2], [5, 6], logprobs=[-0.5, logprob])]))


def test_missing_log_probs_are_refused():
    with pytest.raises(PolicyError, match="turn 0 has 1 log-probs for 2 sampled tokens"):
        one(rollout(turns=[turn([1], [5, 6], logprobs=[-0.5])]))


def test_a_certain_token_may_have_a_log_prob_that_rounding_made_positive():
    assert one(rollout(turns=[turn([1], [5], logprobs=[1e-5])])).sequences[0].num_trained == 1


def test_rewards_are_scaled_between_their_borders():
    settings = grpo(reward_scale={"source": [0, 10], "target": [-1, 1]})
    assert [reward_of(settings, reward=reward) for reward in (0.0, 7.5, 40.0)] == [-1.0, 0.5, 1.0]


def shorter_is_better(row, reward):
    """A user's own shaping."""
    return reward - 0.1 * row["steps"]


def says_nothing(row, reward):
    """A user's own mistake."""


def says_yes(row, reward):
    """Another."""
    return True


SHAPINGS = "tests.trainers.test_experience:"


def test_a_function_of_ones_own_shapes_the_scaled_reward():
    settings = grpo(reward_scale={"source": [0, 10]}, reward_shaping=SHAPINGS + "shorter_is_better")
    assert reward_of(settings, reward=5.0, steps=2) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("says_nothing", "gave None for rollout 3-0; expected a finite number"),
        ("says_yes", "gave True for rollout 3-0"),
        ("SHAPINGS", "is str, no function"),
        ("absent", "cannot load"),
    ],
)
def test_a_shaping_that_gives_no_number_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        reward_of(grpo(reward_shaping=SHAPINGS + name))


def test_a_truncated_rollouts_reward_is_multiplied():
    settings = grpo(truncated_factor=0.25)
    assert [reward_of(settings, reward=2.0, truncated=cut) for cut in (False, True)] == [2.0, 0.5]


def completions(*lengths):
    """Turns with these many sampled tokens."""
    ids, turns = [1], []
    for length in lengths:
        turns.append(turn(ids, [5] * length))
        ids = [*ids, *[5] * length, 7]
    return turns


@pytest.mark.parametrize(("lengths", "expected"), [((6,), 1.0), ((8,), 0.0), ((10,), -1.0), ((6, 6, 6), 1.0), ((2, 9, 1), -0.5)])
def test_the_overlong_penalty_is_that_of_the_longest_completion(lengths, expected):
    settings = grpo(sampler={"max_tokens": 10}, overlong_buffer=4, overlong_penalty=2.0)
    assert reward_of(settings, turns=completions(*lengths)) == pytest.approx(expected)


def test_a_tasks_own_limit_counts_where_it_is_lower():
    settings = grpo(sampler={"max_tokens": 100}, overlong_buffer=4)
    limited = {"responses_create_params": {"input": "hi", "max_output_tokens": 10}}
    assert reward_of(settings, turns=completions(8), **limited) == 0.5


def test_a_truncated_rollout_is_lessened_first_and_penalised_then():
    settings = grpo(sampler={"max_tokens": 10}, overlong_buffer=5, truncated_factor=0.5)
    assert reward_of(settings, reward=1.0, truncated=True, turns=completions(10)) == -0.5


def test_filtered_rollouts_stay_in_the_group_and_do_not_train():
    settings = grpo(overlong_filter=True)
    (group,) = experiences_of([played(rollout(index=0, truncated=True), rollout(index=1))], settings)
    assert [one.trains for one in group] == [False, True]


def test_components_stand_in_an_object_or_under_keys_of_their_own():
    fields = {
        "reward_components": {"right": 1, "form": 0.5, "note": "none"},
        "reward/short": 0.25,
        "reward/told": "x",
        "other": 3.0,
    }
    assert one(rollout(**fields)).components == {"right": 1.0, "form": 0.5, "short": 0.25}
    assert one(rollout()).components == {}


def test_turn_rewards_are_read_where_the_environment_tells_them():
    told = rollout(1.5, completions(1, 2), ours={"turn_rewards": [1, 0.5]})
    assert one(told).turn_rewards == (1.0, 0.5)
    assert one(rollout(), grpo(credit="turn")).turn_rewards == ()


@pytest.mark.parametrize(("told", "message"), [([1.0], "has 1 entries"), (3.0, "has the value 3.0")])
def test_turn_rewards_that_are_not_one_a_turn_are_refused_where_turns_are_credited(told, message):
    with pytest.raises(
        PolicyError, match=rf"rollout 3-0: gym_bridge.turn_rewards {message}; expected a number for each of 2 turns"
    ):
        one(rollout(1.5, completions(1, 2), ours={"turn_rewards": told}), grpo(credit="turn"))
