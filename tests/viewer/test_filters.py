"""Filters: each column, text anywhere, and the expressions of transform."""

from pathlib import Path
from typing import Any

import pytest

from gym_bridge.config import validate
from gym_bridge.errors import ConfigError
from gym_bridge.viewer.filters import Filter, chosen_groups, chosen_rows, picked_rows
from tests.transforms.stage import transformed
from tests.viewer.stage import answered, called, failure, rollout_file, row, write


def stage(directory: Path) -> Path:
    """Two tasks: one solved sometimes, through tools; one never."""
    tools = (called("c", "search", q="Zürich"), answered("c", '{"error": "no such city"}'))
    path = write(
        directory / "R.jsonl",
        row(0, 0, 1.0, *tools, "it is 4", num_turns=2, num_tool_errors=1, timings_s={"total": 3.0}),
        row(0, 1, 0.0, "five", num_turns=1, timings_s={"total": 1.0}),
        row(1, 0, 0.25, "cut", num_turns=4, stop_reason="max_turns", truncated=True) | {"difficulty": 5},
        row(1, 1, 0.25, "SHOUTED", policy_versions=[2]) | {"difficulty": 2},
    )
    write(directory / "R_failures.jsonl", failure(1, 2, "timeout_exceeded", "no reply from Ärger"))
    return path


def found(path: Path, **asked: Any) -> list[str]:
    """Places of the rows that a filter leaves."""
    with rollout_file(path) as file:
        rows = file.look()
        chosen = chosen_rows(file, rows, validate(Filter, asked))
        return [rows.place(number) for number in chosen["number"]]


@pytest.mark.parametrize(
    ("asked", "places"),
    [
        ({}, ["1", "2", "3", "4", "f1"]),
        ({"outcome": "truncated"}, ["3"]),
        ({"stop": "max_turns"}, ["3"]),
        ({"failure": "timeout_exceeded"}, ["f1"]),
        ({"reward_min": "0.25"}, ["1", "3", "4"]),
        ({"reward_max": "0.25", "reward_min": "0.1"}, ["3", "4"]),
        ({"turns_min": "2"}, ["1", "3"]),
        ({"turns_max": "1"}, ["2", "4", "f1"]),
        ({"tool": "search"}, ["1"]),
        ({"version": "2"}, ["4", "f1"]),
        ({"where": "num_tool_errors > 0"}, ["1"]),
        ({"where": "reward < 1 and not truncated"}, ["2", "4"]),
        ({"where": "difficulty > 3"}, ["3"]),
        ({"where_group": "0 < pass_rate < 1"}, ["1", "2"]),
        ({"where_group": "num_failed > 0", "where": "not failed"}, ["4"]),
        ({"sort": "worst"}, ["2", "3", "4", "1", "f1"]),
        ({"sort": "newest", "reward_min": "0.2"}, ["4", "3", "1"]),
    ],
)
def test_a_filter_leaves_these_rows(tmp_path: Path, asked: dict[str, Any], places: list[str]):
    assert found(stage(tmp_path), **asked) == places


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("five", ["2"]),
        ("shouted", ["4"]),
        ("ZÜRICH", ["1"]),
        ("ü", ["1"]),
        ("no such city", ["1"]),
        ("ärger", ["f1"]),
        ("Ä", ["f1"]),
        ('"q"', ["1"]),
        ("What is 1+1?", ["3", "4", "f1"]),
        ('"q": "zürich"', ["1"]),
        ("gym_bridge", []),
        ("_ng_task_index", []),
    ],
)
def test_text_is_found_in_values_whatever_its_case_and_however_it_is_escaped(tmp_path: Path, text: str, places: list[str]):
    path = stage(tmp_path)
    assert found(path, text=text) == places
    for file in (path, tmp_path / "R_failures.jsonl"):  # once more with characters as they are
        file.write_text(file.read_bytes().decode("raw_unicode_escape"), encoding="utf-8")
    assert found(path, text=text) == places


def test_text_of_a_line_that_cannot_be_read_is_found_too(tmp_path: Path):
    assert found(write(tmp_path / "R.jsonl", row(), b"{half a lin\n"), text="half a") == ["2"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"where": "rewrd > 0"}, "did you mean 'reward'"),
        ({"where": "reward >"}, "invalid syntax"),
        ({"where": "stop_reason > 3"}, "do not go together"),
        ({"where_group": "reward > 0"}, "names no known column 'reward'"),
        ({"wher": "1"}, "did you mean"),
        ({"page": "0"}, "greater than or equal to 1"),
        ({"sort": "size"}, "sort"),
    ],
)
def test_what_cannot_be_asked_is_told(tmp_path: Path, asked: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        found(stage(tmp_path), **asked)


def test_an_expression_over_fields_of_the_task_sees_the_tasks_as_played_as_transform_does(tmp_path: Path):
    rows = [row(task, 0, 1.0) for task in range(3)]
    path = write(tmp_path / "R.jsonl", *rows)
    write(
        tmp_path / "R_materialized_inputs.jsonl",
        *({"_ng_task_index": task, "level": task, "responses_create_params": {"input": "x"}} for task in range(3)),
    )
    assert found(path, where="level >= 1") == ["2", "3"]
    made, _ = transformed(path, "sft", where="level >= 1")
    assert len(made) == 2


def test_groups_come_whole_where_one_of_their_rows_is_found(tmp_path: Path):
    path = stage(tmp_path)
    with rollout_file(path) as file:
        rows = file.look()
        asked = validate(Filter, {"text": "five"})
        groups = chosen_groups(rows, chosen_rows(file, rows, asked), asked)
        assert groups["task_index"].to_list() == [0]
        asked = validate(Filter, {"group_sort": "hardest"})
        assert chosen_groups(rows, rows.frame, asked)["mean_reward"].to_list() == [0.25, 0.25, 0.5]


def test_ticked_rows_come_in_the_order_of_the_file(tmp_path: Path):
    with rollout_file(stage(tmp_path)) as file:
        rows = file.look()
        assert picked_rows(rows, ["f1", "2", "2"])["number"].to_list() == [1, 4]
