"""The verdict on a reward: what known answers and a batch must come to."""

from typing import Any

import pytest

from gym_bridge.evaluation.reward_check import Bounds, RewardCheck, Scored, check_reward

BOUNDS = Bounds(min_ranked=0.75, max_fooled=0.1, min_signal=0.5, max_failed=0.25)


def scored(task: int, kind: str, reward: float | None, about: str = "") -> Scored:
    return Scored(task=task, kind=kind, about=about or kind, reward=reward)


def row(task: int, reward: float, **ours: Any) -> dict[str, Any]:
    return {"_ng_task_index": task, "reward": reward, "response": {"usage": {"output_tokens": 10}}, "gym_bridge": ours}


SIGNAL = [row(0, 0.0), row(0, 1.0), row(1, 1.0), row(1, 1.0)]
RIGHT = [scored(0, "good", 1.0), scored(0, "bad", 0.0), scored(1, "good", 1.0), scored(1, "bad", 0.0)]


def finding(found: RewardCheck, name: str) -> tuple[bool, str]:
    return next((one.ok, one.told) for one in found.findings if one.name == name)


def test_a_reward_that_ranks_right_is_not_fooled_and_has_a_signal_is_fit():
    found = check_reward(
        [*RIGHT, scored(0, "adversarial", 0.0), scored(1, "adversarial", 0.5)], SIGNAL, num_failed=0, bounds=BOUNDS
    )
    assert not found.broken
    assert found.ranked == 1.0
    assert found.to_text().endswith("Nothing speaks against training this policy on this reward.")


def test_a_tie_is_no_order_and_only_answers_to_one_task_are_compared():
    answers = [scored(0, "good", 1.0), scored(0, "bad", 1.0), scored(0, "bad", 0.0), scored(1, "good", 0.1), scored(2, "bad", 9.0)]
    assert check_reward(answers, SIGNAL, num_failed=0, bounds=BOUNDS).ranked == 0.5


def test_a_reward_that_does_not_rank_is_broken():
    answers = [scored(0, "good", 0.0), scored(0, "bad", 1.0), scored(1, "good", 1.0), scored(1, "bad", 0.0)]
    found = check_reward(answers, SIGNAL, num_failed=0, bounds=BOUNDS)
    assert found.broken
    assert finding(found, "good above bad") == (
        False,
        "in 50% of the pairs of 2 tasks, in 50% of those with bad (at least 75% with each)",
    )
    assert found.to_text().endswith("is not fit to train on.")


def test_a_reward_that_ranks_gross_errors_alone_is_broken():
    gross = [scored(task, "bad", -1.0, f"gross {number}") for task in range(4) for number in range(3)]
    near = [scored(task, "bad", 1.0 + 0.1 * (task % 2), "off by one") for task in range(4)]
    found = check_reward([*(scored(task, "good", 1.05) for task in range(4)), *gross, *near], SIGNAL, num_failed=0, bounds=BOUNDS)
    assert found.ranked == 0.875
    told = "in 88% of the pairs of 4 tasks, in 50% of those with off by one (at least 75% with each)"
    assert finding(found, "good above bad") == (False, told)
    assert found.broken


def test_a_reward_that_is_fooled_is_broken_and_says_by_what():
    tried = [
        scored(task, "adversarial", reward, about)
        for task, about, reward in ((0, "nothing", 1.0), (1, "nothing", 0.0), (0, "words", 0.9))
    ]
    found = check_reward([*RIGHT, *tried], SIGNAL, num_failed=0, bounds=BOUNDS)
    assert found.broken
    assert finding(found, "not to be fooled") == (False, "as much as a good answer got nothing (50%)")


def test_an_answer_that_could_not_be_verified_is_in_no_mean():
    found = check_reward([*RIGHT, scored(0, "bad", None)], SIGNAL, num_failed=0, bounds=BOUNDS)
    assert found.ranked == 1.0
    assert [(one.num_answers, one.num_failed, one.mean_reward) for one in found.known] == [(2, 0, 1.0), (3, 1, 0.0)]


def test_without_known_answers_that_is_said_and_the_batch_decides():
    found = check_reward([scored(0, "adversarial", 5.0)], SIGNAL, num_failed=0, bounds=BOUNDS)
    assert not found.broken
    assert found.ranked is None
    assert "no right and wrong answer to one task is known" in finding(found, "good above bad")[1]


@pytest.mark.parametrize(("rows", "broken"), [(SIGNAL, False), ([row(0, 1.0), row(0, 1.0), row(1, 0.0), row(1, 0.0)], True)])
def test_groups_must_differ_within_not_between(rows: list[dict[str, Any]], broken: bool):
    assert check_reward(RIGHT, rows, num_failed=0, bounds=BOUNDS).broken == broken


def test_a_signal_that_cannot_be_seen_is_held_against_it():
    told = "no task has two rewards, so none can differ"
    found = check_reward(RIGHT, [row(0, 0.0), row(1, 1.0)], num_failed=0, bounds=BOUNDS)
    assert finding(found, "groups have a signal") == (False, f"{told}; let --num-repeats be 2 or more")
    assert found.broken
    unasked = BOUNDS.model_copy(update={"min_signal": 0.0})
    assert not check_reward(RIGHT, [row(0, 0.0), row(1, 1.0)], num_failed=0, bounds=unasked).broken
    failed = check_reward(RIGHT, [row(0, 0.0)], num_failed=3, bounds=BOUNDS)
    assert finding(failed, "groups have a signal") == (False, told)


def test_the_batch_is_told_in_numbers():
    rows = [
        row(0, 0.0, truncated=True, timings_s={"total": 2.0, "verify": 0.5}),
        row(0, 1.0, timings_s={"total": 4.0, "verify": 0.1}),
    ]
    batch = check_reward(RIGHT, [*rows, row(1, 1.0)], num_failed=1, bounds=BOUNDS).batch
    assert (batch.num_rollouts, batch.num_failed, batch.num_truncated, batch.num_groups, batch.num_with_signal) == (3, 1, 1, 1, 1)
    assert (batch.spread_within, batch.spread_between) == (0.5, 0.0)
    assert (batch.seconds, batch.verify_seconds, batch.output_tokens) == (3.0, pytest.approx(0.3), 10)


def test_rollouts_that_a_limit_ended_are_told_with_the_remedy():
    cut = [row(0, 0.0, truncated=True), row(0, 0.0, truncated=True)]
    found = check_reward(RIGHT, cut, num_failed=0, bounds=BOUNDS)
    assert finding(found, "rollouts succeed")[1] == "0 of 2 failed (at most 25%); 2 ended at a limit of tokens or turns"
    assert "where a limit ends them, raise it" in finding(found, "groups have a signal")[1]
    assert "limit" not in " ".join(one.told for one in check_reward(RIGHT, SIGNAL, num_failed=0, bounds=BOUNDS).findings)


def test_rollouts_that_fail_are_held_against_it():
    assert not check_reward(RIGHT, SIGNAL, num_failed=1, bounds=BOUNDS).broken
    assert check_reward(RIGHT, SIGNAL, num_failed=2, bounds=BOUNDS).broken


def test_the_report_is_read_back():
    found = check_reward(RIGHT, SIGNAL, num_failed=0, bounds=BOUNDS)
    assert RewardCheck.model_validate_json(found.model_dump_json()) == found


def test_known_answers_that_cannot_be_verified_are_held_against_it():
    answers = [scored(0, "good", None), scored(0, "bad", 0.0), scored(1, "good", None), scored(1, "bad", 0.0)]
    found = check_reward(answers, SIGNAL, num_failed=0, bounds=BOUNDS)
    assert found.broken
    told = (False, "2 of 4 known answers have no reward (at most 25%)")
    assert finding(found, "known answers can be verified") == told
