import math

import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.evaluation.summary import Comparison, EvalSummary, compare, summarize
from gym_bridge.schemas.rollouts import Row


def rollout(task, reward, *, prompt="say hi", truncated=False, **keys):
    """A row as `rollouts.jsonl` holds it, without what the summary does not read."""
    row = {"_ng_task_index": task, "reward": reward, "gym_bridge": {"truncated": truncated}}
    return row | {"responses_create_params": {"input": [{"role": "user", "content": prompt}]}} | keys


def rollouts(*rewards_by_task):
    return [rollout(task, reward) for task, rewards in enumerate(rewards_by_task) for reward in rewards]


def means(by_k):
    return {k: one.mean for k, one in by_k.items()}


def test_a_summary_counts_and_averages_by_hand():
    # Task means 1/2 and 1/4; of 2 and 4 attempts 1 is solved each: pass@1 = (1/2 + 1/4) / 2, pass@2 = (1 + 1/2) / 2.
    summary = summarize(rollouts([1.0, 0.0], [1.0, 0.0, 0.0, 0.0]), num_failed=0)
    assert summary.reward.mean == 0.375
    assert summary.reward.high - 0.375 == pytest.approx(12.7062047362 * 0.125, abs=1e-9)
    assert means(summary.pass_at_k) == {1: 0.375, 2: 0.75}
    assert means(summary.pass_hat_k) == {1: 0.375, 2: 0.0}
    assert means(summary.best_at_k) == {1: 0.375, 2: 0.75}
    assert summary.pass_at_k[1] == summary.reward
    assert (summary.num_tasks, summary.num_rollouts, summary.num_failed, summary.num_truncated) == (2, 6, 0, 0)


def test_pass_at_k_doubles_k_up_to_the_fewest_attempts():
    assert list(summarize(rollouts([1.0] * 9, [0.0] * 7), num_failed=0).pass_at_k) == [1, 2, 4]
    assert list(summarize(rollouts([1.0] * 8), num_failed=0).pass_at_k) == [1, 2, 4, 8]


def test_solved_means_a_reward_of_one_or_more():
    summary = summarize(rollouts([0.99], [1.0], [2.5], [-1.0]), num_failed=0)
    assert means(summary.pass_at_k) == means(summary.pass_hat_k) == {1: 0.5}


def test_k_is_chosen_and_no_k_is_above_the_attempts_of_any_task():
    rows = rollouts([1.0] * 9, [0.0] * 7)
    summary = summarize(rows, num_failed=0, ks=[7, 3, 3])
    assert [*summary.pass_at_k] == [*summary.pass_hat_k] == [*summary.best_at_k] == [3, 7]
    with pytest.raises(ConfigError, match=r"k=8: task 1 has 7 attempts with a reward; play more of each, or lower k"):
        summarize(rows, num_failed=0, ks=[1, 8])


def test_identical_attempts_at_ten_tasks_give_the_interval_of_ten():
    few, many = (summarize(rollouts(*([float(task % 3 > 0)] * n for task in range(10))), num_failed=0, ks=[1]) for n in (1, 100))
    assert few.pass_at_k[1] == many.pass_at_k[1] == many.reward
    assert few.pass_at_k[1].num_tasks == 10


def test_failed_rollouts_are_counted_and_left_out_of_every_mean():
    rows = [
        *rollouts([1.0, 1.0]),
        rollout(0, None),
        rollout(0, 0.0, _ng_failure_class="judge_failed"),
        rollout(1, 0.0) | {"gym_bridge": {"failure": {"type": "tool_error"}}},
        {"_ng_task_index": 2},
    ]
    summary = summarize(rows, num_failed=3)
    assert summary.reward.mean == 1.0
    assert (summary.num_rollouts, summary.num_failed) == (2, 7)
    assert (summary.num_tasks, summary.num_tasks_without_reward) == (1, 2)
    assert means(summary.pass_at_k) == {1: 1.0, 2: 1.0}


def test_truncated_rollouts_count_with_the_reward_they_got():
    summary = summarize([rollout(0, 1.0, truncated=True), rollout(0, 0.0, truncated=True), rollout(0, 0.0)], num_failed=0)
    assert summary.num_truncated == 2
    assert summary.reward.mean == pytest.approx(1 / 3)


def test_rows_of_nemo_gym_need_nothing_of_ours():
    summary = summarize([{"_ng_task_index": 0, "reward": 1}, {"_ng_task_index": 1, "reward": 0, "gym_bridge": None}], num_failed=0)
    assert (summary.reward.mean, summary.num_truncated) == (0.5, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rollout has a reward and 2 failed"),
        ([rollout(0, None)], "no rollout has a reward and 3 failed"),
        ([rollout(0, 1.0), {"reward": 1.0}], "row 2: _ng_task_index is None"),
        ([rollout(0, "high")], "row 1: reward is 'high'"),
        ([rollout(0, math.nan)], "row 1: reward is nan"),
        ([rollout(0, 1.0), rollout(0, 1.0, prompt="another")], "row 2: task 0 has another prompt"),
    ],
)
def test_rows_that_say_nothing_usable_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        summarize(rows, num_failed=2)


def test_a_comparison_pairs_tasks_by_hand():
    # Differences after - before: 1, 1/2, 0, -1/2.
    before, after = rollouts([0.0], [0.5], [1.0], [1.0]), rollouts([1.0, 1.0], [1.0], [1.0], [1.0, 0.0])
    comparison = compare(before, reversed(after))
    assert comparison.difference.mean == 0.25
    assert comparison.difference.num_tasks == 4
    # Variance (9 + 1 + 1 + 9) / 16 / 3 = 5/12, standard error sqrt(5/48).
    assert comparison.difference.low == pytest.approx(0.25 - 3.1824463053 * math.sqrt(5 / 48), abs=1e-9)
    assert (comparison.tasks_won, comparison.tasks_tied, comparison.tasks_lost) == (2, 1, 1)
    assert comparison.before == summarize(before, num_failed=0)
    assert comparison.after == summarize(after, num_failed=0)


def test_a_file_compared_with_itself_ties_everywhere():
    rows = rollouts([0.1] * 3, [0.7, 0.2], [1.0])
    comparison = compare(rows, rows)
    assert (comparison.difference.mean, comparison.difference.p_value, comparison.tasks_tied) == (0.0, 1.0, 3)


def test_tasks_rewarded_on_one_side_only_are_counted_not_paired():
    comparison = compare([*rollouts([0.0], [1.0]), rollout(2, None)], rollouts([1.0], [1.0], [1.0]), num_failed_before=4)
    assert (comparison.num_tasks_unpaired, comparison.difference.num_tasks) == (1, 2)
    assert (comparison.before.num_failed, comparison.after.num_failed) == (5, 0)
    assert "1 left out, with a reward in one file only" in comparison.to_text()


def test_another_prompt_under_the_same_index_is_refused():
    with pytest.raises(DataError, match="task 1 has another prompt before than after"):
        compare([rollout(0, 1.0), rollout(1, 1.0)], [rollout(0, 1.0), rollout(1, 1.0, prompt="another")])


def test_the_order_of_keys_does_not_make_another_prompt():
    items = {"role": "user", "content": "hi"}, {"content": "hi", "role": "user"}
    sides = [[{"_ng_task_index": 0, "reward": 1.0, "responses_create_params": {"input": [item]}}] for item in items]
    assert compare(*sides).tasks_tied == 1


def test_files_without_a_task_in_common_are_refused():
    with pytest.raises(DataError, match="no task has a reward both before and after"):
        compare([rollout(0, 1.0)], [rollout(1, 1.0)])


def test_summaries_and_comparisons_survive_json_infinite_bounds_included():
    one_task = summarize(rollouts([1.0, 0.0]), num_failed=0)
    assert one_task.reward.low == -math.inf
    assert EvalSummary.model_validate_json(one_task.model_dump_json()) == one_task
    comparison = compare(rollouts([0.0]), rollouts([1.0]))
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


def test_a_summary_reads_plainly():
    summary = summarize([*rollouts([1.0, 0.0], [1.0, 1.0], [0.0, 0.0]), rollout(9, None)], num_failed=1)
    # Task means 1/2, 1, 0: standard error 1/sqrt(12), t(0.975, 2) = 4.3026527297.
    assert summary.to_text() == (
        "mean reward  0.500 (95 % -0.742 to 1.742)\n"
        "tasks        3 with a reward, 1 without\n"
        "rollouts     6 with a reward, of which 0 truncated\n"
        "failed       2, in no mean\n"
        "spread       0.167 within a task, in the mean\n"
        "pass@1       0.500 (95 % -0.742 to 1.742)\n"
        "pass@2       0.667 (95 % -0.768 to 2.101)\n"
        "pass^2       0.333 (95 % -1.101 to 1.768)"
    )
    assert summary.to_markdown().splitlines()[:3] == [
        "|  | value |",
        "| --- | --- |",
        "| mean reward | 0.500 (95 % -0.742 to 1.742) |",
    ]


def test_spread_and_length_are_told_where_rows_tell_them():
    def row(task: int, reward: float, tokens: int | None) -> Row:
        return rollout(task, reward, response={"usage": None if tokens is None else {"output_tokens": tokens}})

    summary = summarize([row(0, 1.0, 10), row(0, 0.0, 20), row(1, 1.0, None), row(1, 1.0, 33)], num_failed=0)
    assert (summary.spread_within, summary.output_tokens) == (0.25, 21.0)
    assert "\ntokens       21.0 a rollout, by the policy\n" in summary.to_text()
    assert summarize(rollouts([1.0], [0.0]), num_failed=0).spread_within is None


def test_the_majority_counts_where_every_row_tells_its_answer():
    answers = ["4", "4", "5", None]
    rows = [rollout(0, float(one == "4"), extracted_answer=one) for one in answers]
    summary = summarize(rows, num_failed=0, ks=[1, 3])
    assert means(summary.cons_at_k) == {
        1: 0.5,
        3: pytest.approx((1 + 1 + 0.5 + 0.5) / 4),
    }  # by which one is left out: None, 5, 4, 4
    assert "cons@3  " in summary.to_text()
    assert summarize([*rows, rollout(1, 1.0)], num_failed=0).cons_at_k == {}
    assert "cons" not in summarize([*rows, rollout(1, 1.0)], num_failed=0).to_text()


def test_environments_and_categories_are_told_apart_where_there_are_several():
    def row(task, reward, environment, **keys):
        return rollout(task, reward, agent_ref={"type": "responses_api_agents", "name": environment}, **keys)

    rows = [row(0, 1.0, "math", category="easy"), row(0, 0.0, "math", category="easy"), row(1, 1.0, "math", category="hard")]
    summary = summarize(
        [*rows, row(2, 0.0, "code"), row(3, 1.0, "agent", environment_name="code"), rollout(4, 1.0, agent_ref="x")], num_failed=0
    )
    assert means(summary.by_environment) == {"code": 0.5, "math": 0.75}
    assert means(summary.by_category) == {"easy": 0.5, "hard": 1.0}
    assert (summary.by_environment["math"].num_tasks, summary.num_tasks) == (2, 5)
    told = summary.to_text()
    assert "environment code  0.500 (95 % -5.853 to 6.853), 2 tasks\n" in told
    assert "category hard     1.000 (one task, no interval), 1 task\n" in told
    assert "environment" not in summarize(rows, num_failed=0).to_text()


def test_the_best_of_several_is_told_where_rewards_have_degrees():
    told = summarize(rollouts([0.5, 0.25], [1.0, 0.0]), num_failed=0).to_text()
    assert told.splitlines()[-1].startswith("best@2       0.750 (95 % ")


def test_a_comparison_reads_plainly():
    comparison = compare(rollouts([0.0, 0.0]), rollouts([1.0]))
    assert comparison.to_text() == (
        "             before                                 after\n"
        "mean reward  0.000 (one task, no interval)          1.000 (one task, no interval)\n"
        "tasks        1 with a reward, 0 without             1 with a reward, 0 without\n"
        "rollouts     2 with a reward, of which 0 truncated  1 with a reward, of which 0 truncated\n"
        "failed       0, in no mean                          0, in no mean\n"
        "spread       0.000 within a task, in the mean       -\n"
        "pass@1       0.000 (one task, no interval)          1.000 (one task, no interval)\n"
        "pass@2       0.000 (one task, no interval)          -\n"
        "pass^2       0.000 (one task, no interval)          -\n"
        "\n"
        "difference: +1.000 (one task, no interval)\n"
        "tasks: 1 won, 0 lost, 0 tied"
    )


def test_a_comparison_in_markdown_says_how_sure_it_is():
    lines = compare(rollouts([0.0], [0.0]), rollouts([1.0], [1.0])).to_markdown().splitlines()
    assert lines[0] == "|  | before | after |"
    assert lines[-2:] == ["- difference: +1.000 (95 % +1.000 to +1.000), p < 0.001", "- tasks: 2 won, 0 lost, 0 tied"]
    assert compare(rollouts([0.0], [0.0]), rollouts([1.0], [0.0])).to_text().splitlines()[-2].endswith(", p = 0.500")


def test_parts_of_the_reward_are_means_over_the_tasks_that_have_them():
    parts = [(0, {"right": 1.0, "short": 0}), (0, {"right": 0.0}), (1, {"right": 1.0}), (2, {"note": "text", "odd": math.nan})]
    rows = [rollout(task, 1.0, reward_components=one) for task, one in parts]
    summary = summarize(rows, num_failed=0)
    assert means(summary.by_component) == {"right": 0.75, "short": 0.0}
    assert (summary.by_component["right"].num_tasks, summary.by_component["short"].num_tasks) == (2, 1)
    assert "component right" in summary.to_text()
    assert summarize(rollouts([1.0]), num_failed=0).by_component == {}
