import numpy as np
import pytest

from gym_bridge.errors import DataError
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.tokens.trajectory import build_trajectory, training_sequences

KEY = RolloutKey(4, 1)


def turn(prompt, completion, *, starts=False, logprobs=None):
    return TurnTokens(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(logprobs or [-0.5] * len(completion)),
        policy_version=0,
        starts_segment=starts,
    )


def test_two_turns_make_one_segment_of_prompt_answer_output_answer():
    # P0 = 1 2, A0 = 3 4, E0 = 5, A1 = 6
    trajectory = build_trajectory(
        KEY, [turn([1, 2], [3, 4], starts=True, logprobs=[-1, -2]), turn([1, 2, 3, 4, 5], [6], logprobs=[-3])]
    )
    (segment,) = trajectory.segments
    assert (trajectory.task_index, trajectory.rollout_index) == (4, 1)
    assert segment.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert segment.completion_mask.tolist() == [False, False, True, True, False, True]
    np.testing.assert_array_equal(segment.rollout_logprobs, np.float32([np.nan, np.nan, -1, -2, np.nan, -3]))
    assert (segment.token_ids.dtype, segment.rollout_logprobs.dtype) == (np.int32, np.float32)


def test_a_rewritten_history_starts_a_segment():
    turns = [turn([1, 2], [3], starts=True), turn([1, 9], [4], starts=True), turn([1, 9, 4, 5], [6])]
    first, second = build_trajectory(KEY, turns).segments
    assert first.token_ids.tolist() == [1, 2, 3]
    assert second.token_ids.tolist() == [1, 9, 4, 5, 6]
    assert second.completion_mask.tolist() == [False, False, True, False, True]


@pytest.mark.parametrize("prompt", [[1, 2, 3], [1, 2, 9, 5], [1, 2], []])
def test_a_prompt_that_does_not_begin_with_what_came_before_is_refused(prompt):
    with pytest.raises(DataError, match="rollout 4-1: the prompt of turn 1 does not begin with the tokens of turn 0"):
        build_trajectory(KEY, [turn([1, 2], [3, 4], starts=True), turn(prompt, [6])])


def test_a_rollout_without_turns_has_no_segments():
    assert build_trajectory(KEY, []).segments == ()


def test_each_segment_that_sampled_anything_trains_with_the_rollouts_advantage():
    turns = [turn([1, 2], [3], starts=True), turn([7], [], starts=True), turn([8], [9], starts=True)]
    sequences = training_sequences(build_trajectory(KEY, turns), advantage=-0.25)
    assert [one.token_ids.tolist() for one in sequences] == [[1, 2, 3], [8, 9]]
    assert [one.train_mask.tolist() for one in sequences] == [[False, False, True], [False, True]]
    assert [one.advantage for one in sequences] == [-0.25, -0.25]
    np.testing.assert_array_equal(sequences[1].rollout_logprobs, np.float32([np.nan, -0.5]))
