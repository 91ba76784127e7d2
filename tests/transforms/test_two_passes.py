"""What siblings decide about each other: groups, the best of them, pairs, and tasks across files and with their own rows."""

from typing import Any

import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.transforms import grouping
from gym_bridge.transforms.reasons import REASONS
from tests.transforms.stage import CALL, OUTPUT, line, rollouts, said, transformed


def answers(*rewards, task=0, **more):
    """Rollouts of one task; each answers its number."""
    return [line(reward, f"answer {number}", task=task, **more) for number, reward in enumerate(rewards)]


def pairs_of(path, to="dpo", **settings):
    """(chosen, rejected) by the numbers of their answers, and the report."""
    rows, report = transformed(path, to, **settings)
    return [(row["chosen"][-1], row["rejected"][-1]) for row in rows], report


def test_a_group_is_kept_when_the_expression_holds_for_it(tmp_path):
    path = rollouts(tmp_path, *answers(1, 0), *answers(1, 1, task=1), *answers(0, 0, task=2), *answers(0.5, 1, task=3))
    rows, report = transformed(path, "sft", where_group="0 < pass_rate < 1")
    assert [row["gym_bridge"]["task"] for row in rows] == ["0", "0", "3", "3"]
    assert report.dropped == {"where_group": 4}
    rows, report = transformed(path, "tasks", where_group="mean_reward >= 0.75 and num_rollouts == 2")
    assert [row["gym_bridge"]["task_index"] for row in rows] == [1, 3]
    assert (report.rows_used, report.dropped) == (4, {"where_group": 4})


def test_a_group_counts_what_a_filter_or_a_format_leaves_out(tmp_path):
    bad = [CALL | {"arguments": "{"}, OUTPUT, said("x")]
    path = rollouts(
        tmp_path,
        line(1.0, task=0),
        line(0.0, task=0, output=bad),
        line(0.0, task=0, output=[]),
        line(0.0, task=0, truncated=True),
        line(None, task=0),
        line(0.0, task=0, _ng_failure_class="timeout"),
    )
    settings = {"min_reward": "0.9", "on_bad_row": "skip"}
    rows, report = transformed(path, "sft", where_group="pass_rate == 0.25 and num_failed == 1 and num_truncated == 1", **settings)
    assert len(rows) == 1
    assert report.dropped == {"failure": 1, "low_reward": 2, "no_reward": 1, "truncated": 1}
    rows, report = transformed(path, "sft", where_group="pass_rate == 0.25", on_bad_row="skip")
    assert report.dropped == {"bad_row": 1, "failure": 1, "no_answer": 1, "no_reward": 1, "truncated": 1}


def test_a_group_without_a_value_is_counted_as_unknown(tmp_path):
    path = rollouts(tmp_path, *answers(1, 0, agent_ref={"name": "math"}), *answers(1, task=1))
    _, report = transformed(path, "sft", where_group="agent == 'math'")
    assert report.dropped == {"where_group_unknown": 1}
    with pytest.raises(DataError, match="these types do not go together"):
        transformed(path, "sft", where_group="agent > 1")


def test_rows_are_kept_where_an_expression_holds(tmp_path):
    path = rollouts(tmp_path, line(1.0, score=3), line(1.0, score=5), line(1.0), line(0.0, score=9))
    rows, report = transformed(path, "sft", where="score > 4 and reward == 1")
    assert [row["gym_bridge"]["source"] for row in rows] == [f"{path}:2"]
    assert report.dropped == {"where": 2, "where_unknown": 1}
    with pytest.raises(ConfigError, match="4 where; loosen --where"):
        transformed(path, "sft", where="num_turns > 1")
    with pytest.raises(DataError, match=r"rollouts\.jsonl:1: .score \+ reward > 'a'.: these types do not go together"):
        transformed(path, "sft", where="score + reward > 'a'")


def test_a_reward_of_ones_own_takes_the_place_of_the_rows(tmp_path):
    parts = [{"reward_components": {"right": right, "form": form}} for right, form in ((1, 0), (0, 1), (1, 1))]
    path = rollouts(tmp_path, *(line(None, f"answer {number}", **one) for number, one in enumerate(parts)), line(1.0))
    rows, report = transformed(path, "sft", reward="0.75*right + 0.25*form", min_reward="0.5")
    assert [row["gym_bridge"]["reward"] for row in rows] == [0.75, 1.0]
    assert report.dropped == {"low_reward": 1, "no_reward": 1}
    assert pairs_of(path, reward="0.75*right + 0.25*form")[0] == [("2", "1")]


@pytest.mark.parametrize("reward", ["score * 1e308 * 10", "score / 0", "score * 1e999 - 1e999", "10**300 * 10**300 * score"])
def test_a_reward_that_is_no_finite_number_is_none(reward, tmp_path):
    path = rollouts(tmp_path, line(1.0, score=5))
    for to in ("sft", "tasks"):
        with pytest.raises(ConfigError, match="of 1 rows, 1 no_reward"):
            transformed(path, to, reward=reward)


def test_the_best_of_a_task_are_kept_in_the_order_of_the_file(tmp_path):
    path = rollouts(tmp_path, *answers(0, 1, 0.5, 1), *answers(0.1, task=1))
    rows, report = transformed(path, "sft", best_of=2)
    assert [row["messages"][-1]["content"] for row in rows] == ["answer 1", "answer 3", "answer 0"]
    assert report.dropped == {"not_among_best": 2}
    rows, _ = transformed(path, "response", best_of=1, min_reward="0.5")
    assert [row["output"] for row in rows] == ["answer 1"]


def test_the_first_of_the_best_meets_the_first_of_the_worst(tmp_path):
    pairs, report = pairs_of(rollouts(tmp_path, *answers(0.5, 1.0, 0.0, 1.0, 0.0)))
    assert pairs == [("1", "2")]
    assert (report.rows_used, report.dropped) == (2, {"spare": 3})


@pytest.mark.parametrize(
    ("settings", "pairs", "used", "dropped"),
    [
        ({"pairs": "all"}, [("0", "2"), ("0", "1"), ("1", "2")], 3, {}),
        ({"pairs": "all", "max_pairs_per_task": 1}, [("0", "2")], 2, {"spare": 1}),
        ({"pairs": "all", "min_margin": 0.25}, [("0", "2"), ("0", "1")], 3, {}),
        ({"pairs": "all", "min_margin": 0.75}, [("0", "2")], 2, {"small_margin": 1}),
        ({"pairs": "adjacent"}, [("0", "1"), ("1", "2")], 3, {}),
        ({"pairs": "adjacent", "min_reward": "0.5"}, [("0", "1")], 2, {"low_reward": 1}),
        ({"pairs": "best_worst", "min_reward": "0.9"}, [("0", "2")], 2, {"spare": 1}),
        ({"min_margin": 0.5, "where": "reward != 0.25"}, [("0", "2")], 2, {"where": 1}),
    ],
)
def test_pairs_are_drawn_as_asked(settings, pairs, used, dropped, tmp_path):
    found, report = pairs_of(rollouts(tmp_path, *answers(1.0, 0.25, 0.0)), **settings)
    assert (found, report.rows_used, report.dropped, report.rows_out) == (pairs, used, dropped, len(pairs))


def test_random_pairs_hang_on_the_seed_alone_and_use_nobody_twice(tmp_path):
    path = rollouts(tmp_path, *(one for task in range(8) for one in answers(0, 0.1, 0.8, 1, task=task)))
    drawn = [pairs_of(path, pairs="random", seed=seed)[0] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 16
    assert all((chosen, rejected) in {("2", "0"), ("2", "1"), ("3", "0"), ("3", "1")} for chosen, rejected in drawn[0])


def test_pairs_come_before_the_filter_on_the_chosen_reward(tmp_path):
    path = rollouts(tmp_path, *answers(0.5, 0.0), *answers(1.0, 0.5, task=1))
    pairs, report = pairs_of(path, min_reward="0.9")
    assert pairs == [("0", "1")]
    assert (report.rows_used, report.dropped) == (2, {"low_reward": 2})


def test_ties_failures_masked_and_truncated_siblings_make_no_pair(tmp_path):
    path = rollouts(
        tmp_path,
        line(1.0, "a"),
        line(0.0, "b", _ng_failure_class="judge_failed"),
        line(0.0, "c", mask_sample=True),
        line(0.0, "d", truncated=True),
        line(0.0, ""),
        line(0.5, "e"),
        *answers(1, 1, task=1),
        line(1.0, task=2),
        *(line(reward, "same", task=3) for reward in (1, 0)),
    )
    for to in ("dpo", "preference"):
        rows, report = transformed(path, to)
        assert report.dropped == {
            "failure": 1,
            "masked": 1,
            "no_answer": 1,
            "truncated": 1,
            "tie": 2,
            "no_partner": 1,
            "same_answer": 2,
        }
        assert [row["gym_bridge"]["margin"] for row in rows] == [0.5]


def test_rollouts_of_one_index_with_other_prompts_are_no_siblings(tmp_path):
    path = rollouts(tmp_path, line(1.0, "a", task=0), line(0.0, "b", task=0, prompt="3+3?"))
    with pytest.raises(ConfigError, match="2 no_partner; a pair needs several rollouts of one task"):
        transformed(path, "dpo")


def test_across_files_tasks_are_the_same_when_agent_and_content_are(tmp_path):
    math = {"agent_ref": {"name": "math"}}
    first = rollouts(tmp_path, line(1.0, "a", task=0, **math), line(0.5, "x", task=1, prompt="3+3?", **math), name="a.jsonl")
    # The same index is another task here, and another index the same task.
    second = rollouts(tmp_path, line(0.0, "y", task=0, prompt="4+4?", **math), line(0.0, "b", task=9, **math), name="b.jsonl")
    third = rollouts(tmp_path, line(-1.0, "c", task=0, agent_ref={"name": "other"}), name="c.jsonl")
    pairs, report = pairs_of([first, second, third])
    assert pairs == [("a", "b")]
    assert report.dropped == {"no_partner": 3}
    rows, _ = transformed([first, second, third], "tasks")
    assert [(row["gym_bridge"]["agent"], row["gym_bridge"]["num_rollouts"]) for row in rows] == [
        ("math", 2),
        ("math", 1),
        ("math", 1),
        ("other", 1),
    ]
    assert all("_ng_task_index" not in row for row in rows)


def test_fields_of_the_task_are_joined_from_the_materialized_inputs(tmp_path):
    path = rollouts(tmp_path, *answers(1, 0), *answers(1, 0, task=1, expected_answer=None), line(1.0, "seven", task=7))
    task = b'{"_ng_task_index":%d,"responses_create_params":{"input":"2+2?"},"expected_answer":%s,"level":%s}\n'
    inputs = [
        task.replace(b"%s,", b" %s,") % (0, b"4.0", b'"hard"'),
        task % (0, b'"not the first"', b'"easy"'),
        b"\xef\xbb\xbf" + task % (1, b'"from the inputs"', b'"easy"'),
        b'{"_ng_task_index":"7","expected_answer":"no index"}\n{torn\n{"_ng_task_index":7,"expected_answer":"\xff"}\n',
    ]
    rollouts(tmp_path, *inputs, name="rollouts_materialized_inputs.jsonl")
    rows, _ = transformed(path, "grpo")
    assert [row["output"] for row in rows] == ["4.0", "from the inputs", "seven"]
    rows, report = transformed(path, "sft", where="level == 'hard'")
    assert (len(rows), report.dropped) == (2, {"where": 2, "where_unknown": 1})
    transformed(path, "tasks", bare=True)
    written = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert written[0] == b'{"responses_create_params":{"input":"2+2?"},"expected_answer":4.0,"level":"hard"}'
    assert written[1] == b'{"responses_create_params":{"input":"2+2?"},"expected_answer":"from the inputs","level":"easy"}'
    assert written[2] == b'{"responses_create_params":{"input": "2+2?"}}'


def test_what_a_rollouts_own_row_tells_of_its_task_is_not_replaced(tmp_path):
    empty = line(1.0, "right", task=2, expected_answer="")
    path = rollouts(tmp_path, line(0.0, task=0, expected_answer="own"), line(1.0, "right", task=1), empty)
    theirs = (b'{"_ng_task_index":%d,"expected_answer":"other"}\n' % task for task in (0, 1, 2))
    rollouts(tmp_path, *theirs, name="rollouts_materialized_inputs.jsonl")
    assert [row["output"] for row in transformed(path, "grpo")[0]] == ["own", "other", "other"]


def test_each_file_has_inputs_of_its_own(tmp_path):
    paths = []
    for name in ("a", "b"):
        paths.append(rollouts(tmp_path, line(1.0, name, task=0, prompt=f"{name}?"), name=f"{name}.jsonl"))
        rollouts(
            tmp_path, b'{"_ng_task_index":0,"expected_answer":"%s!"}\n' % name.encode(), name=f"{name}_materialized_inputs.jsonl"
        )
    rows, _ = transformed(paths, "grpo", bare=True)
    assert rows == [{"input": "a?", "output": "a!"}, {"input": "b?", "output": "b!"}]


def test_tasks_of_nothing_but_failures_are_counted_drops(tmp_path):
    path = rollouts(tmp_path, line(None, task=0), line(0.0, task=1, _ng_failure_class="x"), line(0.0, task=2, truncated=True))
    rows, report = transformed(path, "tasks")
    assert [row["gym_bridge"]["num_truncated"] for row in rows] == [1]
    assert report.dropped == {"failure": 1, "no_reward": 1}


def test_built_in_columns_are_known_though_no_row_can_be_read(tmp_path):
    with pytest.raises(ConfigError, match="of 1 rows, 1 bad_row; --on-bad-row error names the first"):
        transformed(rollouts(tmp_path, b"{torn\n"), "sft", where="num_turns < 3", on_bad_row="skip")


IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}]
LONG = " ".join(f"word{number}" for number in range(200))
MATH: dict[str, Any] = {"agent_ref": {"name": "math"}, "score": 1}
DROPS: dict[str, tuple[str, dict[str, Any], list[tuple[str, bytes]]]] = {
    "rollouts": (
        "response",
        {"where": "score > 0", "where_group": "agent != 'code'", "best_of": 1, "dedupe": "exact", "min_reward": "0.5"},
        [
            ("", line(1.0, "kept", task=0, **MATH)),
            ("failure", line(1.0, "a", task=0, _ng_failure_class="timeout", **MATH)),
            ("masked", line(1.0, "b", task=0, mask_sample=True, **MATH)),
            ("not_a_rollout", b'{"responses_create_params":{"input":"2+2?"},"reward":1.0}\n'),
            ("not_verified", line(1.0, "c", task=0, verification_skipped=True, **MATH)),
            ("no_reward", line(None, "d", task=0, **MATH)),
            ("no_prompt", line(1.0, "e", task=0, prompt=[], **MATH)),
            ("truncated", line(1.0, "f", task=0, truncated=True, **MATH)),
            ("low_reward", line(0.25, "g", task=0, **MATH)),
            ("where", line(1.0, "h", task=0, **(MATH | {"score": 0}))),
            ("where_unknown", line(1.0, "i", task=0, agent_ref={"name": "math"})),
            ("where_group", line(1.0, "j", task=1, **(MATH | {"agent_ref": {"name": "code"}}))),
            ("where_group_unknown", line(1.0, "k", task=2, score=1)),
            ("media", line(1.0, "l", task=0, prompt=IMAGE, **MATH)),
            ("bad_row", line("1.0", "m", task=0, **MATH)),
            ("no_answer", line(1.0, output=[CALL, OUTPUT], task=0, **MATH)),
            ("duplicate", line(1.0, "kept", task=0, **MATH)),
            ("not_among_best", line(1.0, "o", task=0, **MATH)),
        ],
    ),
    "near": ("sft", {"dedupe": "near"}, [("", line(text=LONG)), ("near_duplicate", line(text=f"{LONG} again"))]),
    "pairs": (
        "dpo",
        {"min_margin": 0.2, "min_reward": "0.5"},
        [
            ("", line(1.0, "a", task=0)),
            ("spare", line(0.5, "b", task=0)),
            ("", line(0.0, "c", task=0)),
            ("no_partner", line(1.0, task=1)),
            *(("tie", line(1.0, text, task=2)) for text in "ab"),
            *(("small_margin", line(reward, str(reward), task=3)) for reward in (1.0, 0.875)),
            *(("same_answer", line(reward, "same", task=4)) for reward in (1.0, 0.0)),
            *(("low_reward", line(reward, str(reward), task=5)) for reward in (0.25, -1.0)),
        ],
    ),
    "tasks": ("grpo", {}, [("", line(1.0, task=0)), ("spare", line(0.0, "5", task=0)), ("no_truth", line(0.5, task=1))]),
}


@pytest.mark.parametrize("case", DROPS)
def test_each_dropped_rollout_has_its_one_reason(case, tmp_path):
    to, settings, told = DROPS[case]
    path = rollouts(tmp_path, *(one for _, one in told))
    _, report = transformed(path, to, on_bad_row="skip", **settings)
    reasons = [reason for reason, _ in told if reason]
    assert report.dropped == {reason: reasons.count(reason) for reason in sorted(reasons)}
    assert (report.rows_in, report.rows_used) == (len(told), len(told) - len(reasons))


def test_every_reason_is_met_above():
    assert {reason for _, _, told in DROPS.values() for reason, _ in told} - {""} == set(REASONS)


@pytest.mark.parametrize("strategy", ["best_worst", "all", "adjacent", "random"])
def test_pairs_are_the_same_however_many_are_sought_at_once(strategy, tmp_path, monkeypatch):
    path = rollouts(tmp_path, *(one for number in range(36) for one in answers(number % 5, number % 3, task=number * 7 % 12)))
    whole = transformed(path, "dpo", pairs=strategy)
    assert len(whole[0]) >= 4
    monkeypatch.setattr(grouping, "PAIRED_AT_ONCE", 5)
    assert transformed(path, "dpo", pairs=strategy) == whole
