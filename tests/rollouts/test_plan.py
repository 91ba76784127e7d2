"""Which rollouts are planned: repeats, seeds, parameters, prompt templates, and keys that never come twice."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.rollouts.plan import PlannedRollout, PromptTemplate, TaskSettings, plan
from gym_bridge.schemas.rollouts import Row


def task(**fields: Any) -> Row:
    """A task that can be played."""
    return {"responses_create_params": {"input": "hi"}, **fields}


def of_agent(name: Any) -> Row:
    """A task of an agent."""
    return task(agent_ref={"type": "responses_api_agents", "name": name})


def keys(tasks: Sequence[Row], **options: Any) -> list[tuple[int, int]]:
    """Keys of what is planned."""
    return [one.key for one in plan(tasks, **options)]


def only(row: Row, **settings: Any) -> PlannedRollout:
    """The one rollout of `row`."""
    (planned,) = plan([row], num_repeats=1, settings=TaskSettings(**settings))
    return planned


def params(row: Row, **settings: Any) -> dict[str, Any]:
    """The parameters with which `row` is played."""
    planned = only(row, **settings)
    assert planned.problem is None
    return planned.row["responses_create_params"]


def test_every_task_is_repeated_as_often_as_asked_and_rows_carry_their_indices():
    planned = list(plan([task(id="a"), task(id="b")], num_repeats=2))
    assert [(*one.key, one.row["id"], one.group) for one in planned] == [
        (0, 0, "a", 0),
        (0, 1, "a", 0),
        (1, 0, "b", 1),
        (1, 1, "b", 1),
    ]
    assert [(one.row["_ng_task_index"], one.row["_ng_rollout_index"]) for one in planned] == [one.key for one in planned]


def test_repeats_by_agent_and_for_those_that_are_not_named():
    tasks = [of_agent("a"), of_agent("b"), task(), task(agent_ref=None)]
    repeats = {"a": 3, "_default": 1}
    assert keys(tasks, num_repeats=repeats) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("row", [of_agent("b"), task(), of_agent(None), task(agent_ref="a"), of_agent(["a"])])
def test_an_agent_without_repeats_is_a_config_error(row: Row):
    with pytest.raises(ConfigError, match=r"no number of repeats for agent '(b|_default)'; name it, or _default"):
        keys([row], num_repeats={"a": 3})


def test_the_seed_of_a_repeat_is_its_index_and_stands_in_the_extra_body_beside_what_is_there():
    row = task()
    row["responses_create_params"]["metadata"] = {"extra_body": '{"min_p": 0.1, "seed": 9}', "kept": "yes"}
    planned = plan([row], num_repeats=3, settings=TaskSettings(seed_per_repeat=True))
    metadata = [one.row["responses_create_params"]["metadata"] for one in planned]
    assert [json.loads(one["extra_body"]) for one in metadata] == [{"min_p": 0.1, "seed": index} for index in range(3)]
    assert all(one["kept"] == "yes" for one in metadata)
    assert json.loads(params(task(), seed_per_repeat=True)["metadata"]["extra_body"]) == {"seed": 0}
    assert "metadata" not in params(task())


@pytest.mark.parametrize("metadata", ["x", {"extra_body": "[1]"}, {"extra_body": "3"}, {"extra_body": "{"}, {"extra_body": {}}])
def test_metadata_that_takes_no_seed_fails_its_task_alone(metadata: Any):
    row = {"responses_create_params": {"input": "hi", "metadata": metadata}}
    bad, good = plan([row, task()], num_repeats=1, settings=TaskSettings(seed_per_repeat=True))
    assert "metadata" in (bad.problem or "")
    assert good.problem is None


def test_parameters_of_the_run_lie_over_the_tasks_and_the_task_is_left_as_it_was():
    row = {"responses_create_params": {"input": "hi", "temperature": 0.2, "top_p": 0.5}}
    assert params(row, params={"temperature": 0.9}) == {"input": "hi", "temperature": 0.9, "top_p": 0.5}
    assert row == {"responses_create_params": {"input": "hi", "temperature": 0.2, "top_p": 0.5}}


def test_an_agent_of_the_run_stands_in_rows_that_name_none():
    assert only(task(), agent="mine").row["agent_ref"] == {"type": "responses_api_agents", "name": "mine"}
    assert only(of_agent("theirs"), agent="mine").row["agent_ref"]["name"] == "theirs"


def test_a_template_is_filled_with_the_tasks_own_fields():
    template = PromptTemplate(user="{question}? {{as json}} {meta[unit]}", system="You are {role}.")
    row = {"question": "2+2", "role": "terse", "meta": {"unit": "m"}, "responses_create_params": {"temperature": 1}}
    assert params(row, prompt=template) == {
        "temperature": 1,
        "input": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "2+2? {as json} m"}],
    }
    assert params({"question": "x"}, prompt=PromptTemplate(user="{question}"))["input"] == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("text", ["{missing}", "{}", "{0}", "{", "{number[x]}", "{number.x}", "{nothing:5d}", "{text:d}"])
def test_a_template_that_a_task_cannot_fill_is_told_with_the_tasks_fields(text: str):
    row = {"number": 5, "nothing": None, "text": "a"}
    planned = only(row, prompt=PromptTemplate(user=text))
    assert planned.problem is not None
    assert planned.problem.startswith("the prompt template asks for ")
    assert planned.problem.endswith("; the task has number, nothing, text")
    assert planned.row == {**row, "_ng_task_index": 0, "_ng_rollout_index": 0}


def test_a_template_is_not_laid_over_an_input():
    problem = only(task(), prompt=PromptTemplate(user="x")).problem
    assert problem == "the task has an input of its own; a prompt template cannot be laid over it"


@pytest.mark.parametrize("given", [None, "x", [], {}, {"temperature": 1}])
def test_a_task_without_an_input_is_planned_with_its_problem(given: Any):
    planned = only({"responses_create_params": given})
    assert planned.problem == "the task has no responses_create_params.input"
    assert planned.key == (0, 0)


def test_what_told_of_an_earlier_failure_is_dropped():
    row = only(task(_ng_failure_class="model_error", _ng_attempt_index=2, id="x")).row
    assert not {"_ng_failure_class", "_ng_attempt_index"} & set(row)
    assert row["id"] == "x"


def test_a_task_index_that_comes_twice_goes_on_counting():
    tasks = [task(_ng_task_index=5), task(), task(_ng_task_index=5), task(_ng_task_index=5, _ng_rollout_index=9)]
    assert keys(tasks, num_repeats=2) == [(5, 0), (5, 1), (1, 0), (1, 1), (5, 2), (5, 3), (5, 9), (5, 10)]


index = st.none() | st.integers(-2, 4)
rows = st.lists(st.fixed_dictionaries({"_ng_task_index": index, "_ng_rollout_index": index, "agent": st.sampled_from("ab")}))


@given(rows, st.integers(1, 4), st.integers(1, 4))
def test_no_key_is_planned_twice_and_every_repeat_is_planned(tasks: list[Row], of_a: int, others: int):
    tasks = [{**row, **of_agent(row["agent"])} for row in tasks]
    planned = keys(tasks, num_repeats={"a": of_a, "_default": others})
    assert len(set(planned)) == len(planned) == sum(of_a if row["agent"] == "a" else others for row in tasks)
    assert planned == keys(tasks, num_repeats={"a": of_a, "_default": others}, settings=None)
