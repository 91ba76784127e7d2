"""From experience to sequences with advantages: each estimator, what is done to a batch, and what trains of it."""

from dataclasses import replace

import numpy as np
import pytest

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.trainers.estimators import advantaged, estimator, has_signal, value_metrics
from gym_bridge.trainers.experience import experiences_of
from tests.trainers.experience_stage import grpo, played, rollout, turn

SEGMENTS = (turn([1, 2], [5, 6]), turn([1, 9], [7], starts_segment=True))
CHAIN = (turn([1], [5, 6]), turn([1, 5, 6, 8], [7]))


def batch(settings, *groups):
    """Experience of groups that are lists of rewards or of rollouts."""
    made = [
        [one if not isinstance(one, float) else rollout(one, index=index, task=task) for index, one in enumerate(group)]
        for task, group in enumerate(groups)
    ]
    return experiences_of([played(*members) for members in made], settings)


def placed(sequence, values):
    column = np.full(len(sequence.token_ids), np.nan, dtype=np.float32)
    column[sequence.train_mask] = values
    return column


def given(groups, **columns):
    """The groups with columns that have the same values for every rollout: [N] over its sequences."""

    def fill(experience):
        filled, start = [], 0
        for sequence in experience.sequences:
            part = slice(start, start := start + sequence.num_trained)
            own = {name: placed(sequence, values[part]) for name, values in columns.items()}
            filled.append(own)
        teacher = tuple(own.pop("teacher") for own in filled if "teacher" in own)
        sequences = tuple(replace(one, **own) for one, own in zip(experience.sequences, filled, strict=True))
        return replace(experience, sequences=sequences, teacher_logprobs=teacher)

    return [tuple(map(fill, group)) for group in groups]


def tokens_of(rollouts, name="advantages"):
    """For each rollout a column's values at the trained tokens."""
    return [[v for one in sequences for v in getattr(one, name)[one.train_mask].tolist()] for sequences in rollouts]


def advantages_of(rollouts):
    return [[one.advantage for one in sequences] for sequences in rollouts]


def test_a_group_is_compared_within_itself_and_its_rollouts_stay_together():
    settings = grpo(scale="none")
    (group,) = advantaged(batch(settings, [rollout(1.0, SEGMENTS), rollout(0.0, index=1)]), settings)
    assert advantages_of(group) == [[0.5, 0.5], [-0.5]]


def test_the_baseline_and_the_scale_are_those_of_the_settings():
    rewards = [3.0, 0.0, 0.0]
    for options, expected in (
        ({"baseline": "leave_one_out", "scale": "none"}, [3.0, -1.5, -1.5]),
        ({"baseline": "none", "scale": "none"}, [3.0, 0.0, 0.0]),
        ({}, [2 / 1.7320518, -1 / 1.7320518, -1 / 1.7320518]),
    ):
        settings = grpo(**options)
        (group,) = advantaged(batch(settings, rewards), settings)
        assert [one for (one,) in advantages_of(group)] == pytest.approx(expected, abs=1e-6)


def test_a_group_without_spread_has_no_signal_and_keeps_its_place():
    settings = grpo()
    found = advantaged(batch(settings, [0.1, 0.1, 0.1], [0.0, 1.0], [1.0]), settings)
    assert [len(group) for group in found] == [0, 2, 0]
    assert [has_signal(group, settings.algorithm) for group in batch(settings, [0.3, 0.1 + 0.2], [0.0, 1.0])] == [False, True]


def test_a_group_that_nobody_survived_has_none_either():
    settings = grpo()
    assert advantaged([(), *batch(settings, [0.0, 1.0])], settings)[0] == []
    assert not has_signal((), settings.algorithm)


def test_without_a_baseline_a_reward_needs_no_siblings():
    settings = grpo(baseline="none", scale="none", group_size=1)
    (first, second) = advantaged(batch(settings, [2.0], [0.0]), settings)
    assert (advantages_of(first), second) == ([[2.0]], [])


def test_what_does_not_train_counts_in_the_baseline():
    settings = grpo(scale="none", overlong_filter=True)
    members = [rollout(0.0, index=0, truncated=True), rollout(3.0, index=1), rollout(0.0, [turn([1], [])], index=2)]
    (group,) = advantaged(batch(settings, members), settings)
    assert advantages_of(group) == [[2.0]]


def test_whitening_takes_one_baseline_over_all_tokens_of_the_batch():
    settings = grpo(baseline="none", scale="none", whiten=True)
    long = rollout(4.0, [turn([1], [5, 6, 7])])
    found = advantaged(batch(settings, [long, rollout(0.0, [turn([1], [5])], index=1)], [0.0]), settings)
    # 4 4 4 | 0 | 0 0: mean 2, deviation 2
    assert [one for group in found for one in advantages_of(group)] == [
        pytest.approx([1.0], abs=1e-6),
        pytest.approx([-1.0], abs=1e-6),
        pytest.approx([-1.0], abs=1e-6),
    ]


def test_groups_without_a_signal_have_no_part_in_the_whitening():
    settings = grpo(scale="none", whiten=True)
    alone = advantaged(batch(settings, [0.0, 3.0]), settings)
    beside = advantaged(batch(settings, [0.0, 3.0], [1.0, 1.0]), settings)
    assert (advantages_of(beside[0]), beside[1]) == (advantages_of(alone[0]), [])


def test_a_kl_in_the_reward_falls_on_all_tokens_before_it():
    settings = grpo(scale="none", beta=0.5, kl_in="reward", kl="k1")
    groups = batch(settings, [rollout(1.0, SEGMENTS), rollout(0.0, SEGMENTS, index=1)])
    # rollout log-probs are -1/2: the KL of the tokens is 1, 0 and 2
    filled = given(groups, ref_logprobs=np.array([-1.5, -0.5, -2.5]))
    (group,) = advantaged(filled, settings)
    assert tokens_of(group) == [[0.5 - 1.5, 0.5 - 1.0, 0.5 - 1.0], [-0.5 - 1.5, -0.5 - 1.0, -0.5 - 1.0]]
    assert [len(sequences) for sequences in group] == [2, 2]


def test_a_kl_in_the_reward_is_of_the_trainers_old_policy_where_it_was_asked():
    settings = grpo(scale="none", beta=1.0, kl_in="reward", kl="k1", old_logprobs="trainer")
    filled = given(batch(settings, [1.0, 0.0]), ref_logprobs=np.array([-2.0, -2.0]), old_logprobs=np.array([-2.0, -1.0]))
    (group,) = advantaged(filled, settings)
    assert tokens_of(group) == [[-0.5, -0.5], [-1.5, -1.5]]


def test_a_missing_reference_is_told_by_the_rollouts_name():
    settings = grpo(beta=1.0, kl_in="reward")
    with pytest.raises(PolicyError, match="rollout 0-0: a trained token has no ref_logprobs"):
        advantaged(batch(settings, [1.0, 0.0]), settings)


def components(reward, index, **parts):
    return rollout(reward, index=index, reward_components=parts)


def test_components_are_normalised_apart_and_whitened_over_rollouts():
    settings = grpo(estimator="components", component_weights={"form": 0.5}, scale="none")
    groups = [
        [components(1.0, 0, right=1.0, form=0.0), components(1.0, 1, right=0.0, form=1.0)],
        [components(1.0, 0, right=4.0, form=1.0), components(1.0, 1, right=0.0, form=1.0)],
        [components(1.0, 0, right=1.0, form=1.0), components(1.0, 1, right=1.0, form=1.0)],
    ]
    found = advantaged(batch(settings, *groups), settings)
    # 0.5 - 0.25, -0.5 + 0.25, 2, -2: mean 0, variance (2 * 0.0625 + 2 * 4) / 4
    scale = np.sqrt(8.125 / 4) + 1e-6
    assert [one for group in found for (one,) in advantages_of(group)] == pytest.approx(
        [0.25 / scale, -0.25 / scale, 2 / scale, -2 / scale], abs=1e-9
    )
    assert found[2] == []


def test_a_rollout_without_its_siblings_components_is_refused():
    settings = grpo(estimator="components")
    with pytest.raises(PolicyError, match="rollout 3-1: its row has no form"):
        advantaged(batch(settings, [components(1.0, 0, form=1.0, right=1.0), components(1.0, 1, right=1.0)]), settings)
    with pytest.raises(PolicyError, match="rollout 0-0: its row has no reward_components"):
        advantaged(batch(settings, [1.0, 0.0]), settings)


def test_a_weight_of_no_component_is_refused_with_the_nearest_name():
    settings = grpo(estimator="components", component_weights={"fromat": 2.0})
    members = [components(1.0, 0, format=1.0), components(0.0, 1, format=0.0)]
    with pytest.raises(ConfigError, match=r"component_weights\.fromat: no rollout has such a component; did you mean 'format'"):
        advantaged(batch(settings, members), settings)
    several = {"train": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]}
    mixed = grpo(data=several, estimator="components", component_weights={"fromat": 2.0})
    assert len(advantaged(batch(mixed, members), mixed)[0]) == 2


def turns_of(reward, index, *turn_rewards, turns=CHAIN):
    return rollout(reward, turns, index=index, ours={"turn_rewards": list(turn_rewards)})


def test_turns_are_credited_over_their_tokens():
    settings = grpo(credit="turn", baseline="leave_one_out", scale="none")
    (group,) = advantaged(batch(settings, [turns_of(3.0, 0, 1.0, 2.0), turns_of(1.0, 1, 1.0, 0.0)]), settings)
    assert tokens_of(group) == [[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]]
    settings = grpo(credit="turn", baseline="none", scale="none")
    (group,) = advantaged(batch(settings, [turns_of(3.0, 0, 1.0, 2.0, turns=SEGMENTS)]), settings)
    assert [one.advantages[one.train_mask].tolist() for one in group[0]] == [[3.0, 3.0], [2.0]]


def test_what_shaping_adds_falls_to_the_last_turn_and_what_it_scales_to_all():
    settings = grpo(
        credit="turn", baseline="none", scale="none", reward_scale={"source": [0, 10], "target": [0, 1]}, truncated_factor=0.5
    )
    cut = rollout(8.0, CHAIN, truncated=True, ours={"turn_rewards": [6.0, 2.0]})
    (group,) = advantaged(batch(settings, [cut]), settings)
    # 0.6 and 0.2, halved as a whole: 0.4 from the first turn on, -0.2 from the second
    assert tokens_of(group)[0] == pytest.approx([0.4, 0.4, -0.2], abs=1e-6)


def test_where_no_turn_rewards_are_told_the_last_turn_earned_all():
    settings = grpo(credit="turn", baseline="leave_one_out", scale="none")
    (group,) = advantaged(batch(settings, [rollout(1.0, CHAIN), rollout(0.0, CHAIN, index=1)]), settings)
    assert tokens_of(group) == [[1.0] * 3, [-1.0] * 3]


def test_generalised_advantages_run_through_all_segments_and_give_returns():
    settings = grpo(estimator="gae", critic={"gamma": 1.0, "lam": 0.5})
    filled = given(batch(settings, [rollout(2.0, SEGMENTS)]), old_values=np.array([0.5, 1.0, 1.5]))
    (group,) = advantaged(filled, settings)
    # deltas 0.5, 0.5, 0.5
    assert tokens_of(group) == [[0.875, 0.75, 0.5]]
    assert tokens_of(group, "returns") == [[1.375, 1.75, 2.0]]
    assert np.isnan(group[0][0].returns[:2]).all()
    assert value_metrics(group)["value"] == 1.0


def test_with_a_value_model_the_kl_is_part_of_the_rewards_and_whitening_leaves_the_returns():
    settings = grpo(estimator="gae", critic={"lam": 1.0}, beta=1.0, kl_in="reward", kl="k1", whiten=True)
    filled = given(batch(settings, [2.0]), old_values=np.array([1.0, 1.0]), ref_logprobs=np.array([-1.5, -0.5]))
    (group,) = advantaged(filled, settings)
    # rewards -1, 2: advantages 0, 1
    assert tokens_of(group, "returns") == [[1.0, 2.0]]
    assert tokens_of(group)[0] == pytest.approx([-1.0, 1.0], abs=1e-5)


def test_values_that_nobody_said_are_missed():
    settings = grpo(estimator="gae")
    with pytest.raises(PolicyError, match="rollout 0-0: a trained token has no old_values"):
        advantaged(batch(settings, [2.0]), settings)


def test_explained_variance_is_over_the_whole_batch():
    settings = grpo(estimator="gae", critic={"lam": 1.0})
    rollouts = [
        one
        for group in advantaged(given(batch(settings, [2.0], [0.0]), old_values=np.array([0.0, 1.0])), settings)
        for one in group
    ]
    # values 0 1 0 1, returns 2 2 0 0: variance of the returns 1, of the errors 2 1 0 -1 is 1.25
    assert value_metrics(rollouts) == {"explained_variance": -0.25, "value": 0.5, "return": 1.0}
    plain = grpo()
    assert value_metrics(advantaged(batch(plain, [1.0, 0.0]), plain)[0]) == {}


def test_a_teacher_says_how_much_likelier_each_token_should_have_been():
    settings = grpo(estimator="teacher", teacher="big", teacher_weight=2.0)
    filled = given(batch(settings, [rollout(0.0, SEGMENTS)]), teacher=np.array([-0.5, -1.5, 0.0]))
    (group,) = advantaged(filled, settings)
    assert tokens_of(group) == [[0.0, -2.0, 1.0]]


def test_beside_rewards_a_teachers_part_is_added_after_the_whitening():
    settings = grpo(teacher="big", scale="none", whiten=True)
    filled = given(batch(settings, [4.0, 0.0], [1.0, 1.0]), teacher=np.array([-0.5, -1.0]))
    first, second = advantaged(filled, settings)
    assert tokens_of(first)[0] == pytest.approx([1.0 / np.sqrt(0.5), 1.0 / np.sqrt(0.5) - 0.5], abs=1e-5)
    assert tokens_of(second) == [[0.0, -0.5], [0.0, -0.5]]


def test_a_teacher_who_said_nothing_is_missed():
    settings = grpo(estimator="teacher", teacher="big")
    with pytest.raises(PolicyError, match="rollout 0-0: a trained token has no log-prob of the teacher"):
        advantaged(batch(settings, [2.0]), settings)


def by_rank(settings):
    """An estimator of a user's own."""

    def estimate(groups):
        return [[float(place) for place, _ in enumerate(group)] for group in groups]

    return estimate


def too_few(settings):
    """Another, with a mistake."""
    return lambda groups: [[0.0] for _ in groups]


def no_numbers(settings):
    """Another one."""
    return lambda groups: [[float("nan") for _ in group] for group in groups]


def no_estimator(settings):
    """Nor this."""
    return 3


OWN = "tests.trainers.test_estimators:"


def test_an_estimator_of_ones_own_is_made_of_the_settings():
    settings = grpo(estimator=OWN + "by_rank")
    (group,) = advantaged(batch(settings, [5.0, 5.0, 5.0]), settings)
    assert advantages_of(group) == [[0.0], [1.0], [2.0]]


@pytest.mark.parametrize(
    ("name", "message"), [("too_few", "wrong shape"), ("no_numbers", "no finite"), ("no_estimator", "gave int")]
)
def test_an_estimator_that_gives_something_else_is_refused(name, message):
    settings = grpo(estimator=OWN + name)
    with pytest.raises(ConfigError, match=message):
        advantaged(batch(settings, [5.0, 5.0, 5.0]), settings)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ConfigError, match="cannot load"):
        estimator(grpo(estimator="absent:here").algorithm)
