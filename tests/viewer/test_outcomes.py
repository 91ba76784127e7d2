"""How rollouts ended, their groups, and the ledger that adds up."""

import json
from pathlib import Path

import pytest

from tests.viewer.stage import failure, row, rows_of, write


def test_an_attempt_that_was_tried_again_is_no_outcome_of_its_own(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(0, 0), row(0, 1, truncated=True), row(0, 2, None))
    write(
        tmp_path / "R_failures.jsonl",
        failure(0, 0, attempt=0),
        failure(0, 3, attempt=0),
        failure(0, 3, "timeout_exceeded", attempt=1),
    )
    rows = rows_of(path)
    assert rows.frame["outcome"].to_list() == ["completed", "truncated", "no reward", "retried", "retried", "failed"]
    assert rows.ledger.describe() == "4 requested = 1 completed + 1 truncated + 1 no reward + 1 timeout_exceeded"
    told = [(one["failure"], one["count"], one["retried"]) for one in rows.failures.iter_rows(named=True)]
    assert told == [("model_error", 2, 2), ("timeout_exceeded", 1, 0)]


@pytest.mark.parametrize("source", ["manifest", "inputs"])
def test_rollouts_that_were_never_played_are_in_the_ledger(tmp_path: Path, source: str):
    path = write(tmp_path / "R.jsonl", row(0, 0), row(0, 1))
    if source == "manifest":
        (tmp_path / "R_manifest.json").write_text(json.dumps({"identity": {}, "ledger": {"requested": 5}}))
    else:
        write(tmp_path / "R_materialized_inputs.jsonl", *[{"_ng_task_index": 0}] * 5)
    ledger = rows_of(path).ledger
    assert (ledger.requested, ledger.completed, ledger.not_attempted) == (5, 2, 3)


def test_a_group_is_the_rollouts_of_one_task_under_one_policy_version(tmp_path: Path):
    path = write(
        tmp_path / "R.jsonl",
        row(3, 0, 1.0, policy_versions=[4, 5]),
        row(3, 1, 0.0, policy_versions=[4]),
        row(3, 2, 0.0, policy_versions=[6]),
        row(3, 4, 0.0, policy_versions=[6]),
        row(8, 0, 0.5, policy_versions=[6]),
    )
    write(tmp_path / "R_failures.jsonl", failure(3, 3))
    groups = rows_of(path).groups
    told = [(one["task_index"], one["version"], one["numbers"], one["rewards"]) for one in groups.iter_rows(named=True)]
    assert told == [(3, 4, [0, 1], [1.0, 0.0]), (3, 6, [2, 5, 3], [0.0, None, 0.0]), (8, 6, [4], [0.5])]
    assert groups["signal"].to_list() == [True, False, False]
    assert groups["num_failed"].to_list() == [0, 1, 0]
    assert groups["pass_rate"].to_list() == [0.5, 0.0, 0.0]
    assert groups["std_reward"].to_list() == [0.5, 0.0, 0.0]


def test_rows_without_indices_are_each_counted(tmp_path: Path):
    bare = {name: value for name, value in row().items() if not name.startswith("_ng")}
    rows = rows_of(write(tmp_path / "R.jsonl", bare, bare, bare | {"_ng_failure_class": "x", "reward": None}))
    assert rows.ledger.describe() == "3 requested = 2 completed + 0 truncated + 1 x"
    assert rows.groups["num_rollouts"].to_list() == [2]
