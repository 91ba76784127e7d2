"""Train and validation never share a task; repetitions are dropped and counted, the first of them kept."""

import pytest

from gym_bridge.errors import ConfigError
from tests.transforms.stage import FORMATS, line, rollouts, rows_of, transformed

NUM_TASKS = 60


def tasks(numbers, rewards=(1.0, 0.0)):
    return [
        line(reward, f"answer {reward} to {number}", task=index, prompt=f"{number}?")
        for index, number in enumerate(numbers)
        for reward in rewards
    ]


def split(path, to="response", **settings):
    """The prompts of the train and of the validation file, and the report."""
    output = path.with_name("out.jsonl")
    _, report = transformed(path, to, output=output, **{"split": 0.3, **settings})
    assert not output.exists()
    names = {"sft": lambda row: row["messages"][0]["content"], "dpo": lambda row: row["prompt"]}
    names |= {"preference": lambda row: row["context"][0]["content"]}
    names |= {"tasks": lambda row: row["responses_create_params"]["input"]}
    prompt = names.get(to, lambda row: row["input"])
    train, validation = (list(map(prompt, rows_of(path.with_name(f"out.{part}.jsonl")))) for part in ("train", "validation"))
    return train, validation, report


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_is_split_by_task_in_the_same_way(to, tmp_path):
    path = rollouts(tmp_path, *tasks(range(NUM_TASKS)))
    train, validation, report = split(path, to)
    assert set(train).isdisjoint(validation)
    assert set(train) | set(validation) == {f"{number}?" for number in range(NUM_TASKS)}
    assert (report.rows_out, report.num_validation_rows) == (len(train) + len(validation), len(validation))
    assert set(validation) == set(split(path, "response")[1])
    assert 8 <= len(set(validation)) <= 28
    assert f"{len(validation):,} for validation" in report.describe()


def test_a_split_stays_when_rows_are_added_and_changes_with_the_seed(tmp_path):
    before = set(split(rollouts(tmp_path, *tasks(range(NUM_TASKS))))[1])
    more = rollouts(tmp_path, *tasks([*range(NUM_TASKS + 40, NUM_TASKS, -1), *range(NUM_TASKS)], rewards=(1.0, 0.5, 0.0)))
    assert before == set(split(more)[1]) & {f"{number}?" for number in range(NUM_TASKS)}
    assert before < set(split(more, split=0.6)[1])
    assert before != set(split(rollouts(tmp_path, *tasks(range(NUM_TASKS))), seed=1)[1])


def test_a_task_in_two_files_stands_on_one_side(tmp_path):
    paths = [rollouts(tmp_path, *tasks(numbers), name=f"{len(numbers)}.jsonl") for numbers in (range(40), range(39, 9, -1))]
    output = tmp_path / "both.jsonl"
    transformed(paths, "response", output=output, split=0.3)
    train, validation = ({row["input"] for row in rows_of(tmp_path / f"both.{part}.jsonl")} for part in ("train", "validation"))
    assert train.isdisjoint(validation)
    assert len(train | validation) == 40


def test_a_side_without_a_task_is_refused_and_nothing_is_written(tmp_path):
    path = rollouts(tmp_path, line())
    with pytest.raises(ConfigError, match=r"no task falls to .*out\.(train|validation)\.jsonl; change --split or --seed"):
        transformed(path, "sft", split=0.5)
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]


@pytest.mark.parametrize("settings", [{}, {"where_group": "num_rollouts > 0"}], ids=["one pass", "two passes"])
def test_exact_repetitions_are_dropped_wherever_they_stand(settings, tmp_path):
    first = rollouts(tmp_path, line(text="a"), line(text="b"), line(text="a"), line(text="a", prompt="3+3?"), name="a.jsonl")
    second = rollouts(tmp_path, line(text="b"), line(0.5, text="c"), line(0.5, text="c"), name="b.jsonl")
    rows, report = transformed([first, second], "response", dedupe="exact", **settings)
    assert [row["output"] for row in rows] == ["a", "b", "a", "c"]
    assert (report.rows_used, report.dropped) == (4, {"duplicate": 3})
    rows, report = transformed([first, second], "response", dedupe="exact", min_reward="0.9", **settings)
    assert (len(rows), report.dropped) == (3, {"duplicate": 2, "low_reward": 2})


def test_a_split_of_unrepeated_rows_puts_each_on_its_side(tmp_path):
    path = rollouts(tmp_path, *tasks(range(30)), *tasks(range(30)))
    train, validation, report = split(path, dedupe="exact")
    assert (len(train) + len(validation), report.dropped) == (60, {"duplicate": 60})
    assert set(train).isdisjoint(validation)


def test_repeated_answers_make_no_further_pairs(tmp_path):
    path = rollouts(tmp_path, line(1.0, "a"), line(0.0, "b"), line(1.0, "a"), line(0.0, "b"))
    rows, report = transformed(path, "dpo", pairs="all", dedupe="exact")
    assert [row["gym_bridge"]["source"] for row in rows] == [[f"{path}:1", f"{path}:2"]]
    assert report.dropped == {"duplicate": 2}


def test_near_repetitions_are_dropped_and_what_is_dropped_anyway_hides_none(tmp_path):
    words = [f"word{number}" for number in range(200)]
    text, near, other = " ".join(words), " ".join([*words[:-2], "two", "changed"]), " ".join(reversed(words))
    path = rollouts(tmp_path, line(0.0, text), line(1.0, text), line(1.0, near), line(1.0, other), line(1.0, near))
    rows, report = transformed(path, "response", dedupe="near", min_reward="0.5")
    assert [row["gym_bridge"]["source"] for row in rows] == [f"{path}:2", f"{path}:4"]
    assert report.dropped == {"low_reward": 1, "near_duplicate": 2}
    rows, report = transformed(path, "dpo", dedupe="near")
    assert (len(rows), report.dropped) == (1, {"near_duplicate": 3})


@pytest.mark.parametrize("to", ["response", "sft", "dpo", "grpo"])
def test_the_report_counts_prompts_that_stand_on_both_sides_with_other_tools(to, tmp_path):
    tools = [[{"type": "function", "name": f"tool_{number}"}] for number in range(20)]
    lines = [line(reward, f"{reward}", tools=one) for one in tools for reward in (1.0, 0.0)]
    _, report = transformed(rollouts(tmp_path, *lines), to, split=0.5, report=tmp_path / "report.json")
    told = report.statistics.split
    assert told.num_train_tasks + told.num_validation_tasks == 20
    assert (told.num_shared_tasks, told.num_shared_prompts) == (0, 1)
