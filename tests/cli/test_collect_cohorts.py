"""Collections whose verifier compares the rollouts of a task: groups are played, tried again and resumed whole."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rollouts.cohort_stage import Comparing

SIZE, NUM_TASKS = 3, 4
ALL_KEYS = [(task, index) for task in range(NUM_TASKS) for index in range(SIZE)]


@pytest.fixture
def comparing() -> Iterator[Callable[..., Comparing]]:
    """Starts verifiers and stops them at the end of the test."""
    running: list[Comparing] = []

    def start(**options: Any) -> Comparing:
        running.append(Comparing(SIZE, **options).__enter__())
        return running[-1]

    yield start
    for one in running:
        one.__exit__()


@pytest.fixture
def cohort_tasks(tmp_path: Path) -> Path:
    """Tasks without any other field."""
    path = tmp_path / "tasks.jsonl"
    rows = ({"responses_create_params": {"input": f"task {number}"}} for number in range(NUM_TASKS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(tasks: Path, output: Path, stage: Comparing, *options: object) -> list[object]:
    """A collection in cohorts; who waits for ever fails after some seconds."""
    return [
        *("collect", "--quiet", "--input", tasks, "--output", output, "--server", stage.url, "--dialect", "seed_verify"),
        *("--cohort", "--num-repeats", SIZE, "--request-timeout-s", 8, "--model", "counter", "--model-url", f"{stage.url}/v1"),
        *("--model-api", "chat", *options),
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keys_of(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return sorted((row["_ng_task_index"], row["_ng_rollout_index"]) for row in rows)


def answer_of(row: dict[str, Any]) -> int:
    return int(row["response"]["output"][-1]["content"][0]["text"])


def assert_compared_whole(rows: list[dict[str, Any]]) -> None:
    """Every row was compared with the very answers that stand in the rows of its siblings, and no other."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["_ng_task_index"]].append(row)
    for members in groups.values():
        assert [row["compared"] for row in members] == [sorted(map(answer_of, members))] * SIZE
        assert sorted(row["reward"] for row in members) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("concurrency", "workers"), [(1, 1), (2, 1), (5, 1), (12, 1), (2, 2), (6, 2)])
def test_no_concurrency_keeps_siblings_waiting_for_each_other(
    concurrency: int, workers: int, gym_bridge, comparing, cohort_tasks: Path, tmp_path: Path
):
    stage, output = comparing(), tmp_path / "r.jsonl"
    ended = gym_bridge(*command(cohort_tasks, output, stage, "--concurrency", concurrency, "--workers", workers))
    assert (ended.code, ended.out) == (0, f"{output}: 12 requested = 12 completed + 0 truncated; mean reward 0.5000\n")
    rows = rows_of(output)
    assert keys_of(rows) == ALL_KEYS
    assert_compared_whole(rows)
    assert stage.num_calls == len(ALL_KEYS)
    assert stage.most_groups_at_once <= max(1, concurrency // SIZE)


def test_what_tells_groups_apart_on_the_wire_stays_out_of_the_rows(gym_bridge, comparing, tmp_path: Path):
    tasks, output = tmp_path / "tasks.jsonl", tmp_path / "r.jsonl"
    tasks.write_text('{"responses_create_params": {"input": "x"}, "_ng_group_id": "mine"}\n' * 2)
    tasks.write_text(tasks.read_text().replace("}\n", ', "_ng_task_index": 7}\n'))  # twice the same task: rollouts 0 to 5
    assert gym_bridge(*command(tasks, output, comparing(), "--concurrency", 6)).code == 0
    rows = rows_of(output)
    assert keys_of(rows) == [(7, index) for index in range(2 * SIZE)]
    assert sorted(row["reward"] for row in rows) == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    private = {name for row in rows for name in row if name.startswith("_ng_")}
    assert private == {"_ng_task_index", "_ng_rollout_index", "_ng_group_id"}
    assert {row["_ng_group_id"] for row in rows} == {"mine"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_member_that_fails_once_has_its_whole_group_played_again(
    workers: int, gym_bridge, comparing, cohort_tasks: Path, tmp_path: Path
):
    stage, output = comparing(failing=[(2, 1)]), tmp_path / "r.jsonl"
    ended = gym_bridge(*command(cohort_tasks, output, stage, "--concurrency", 4, "--workers", workers))
    assert "12 requested = 12 completed + 0 truncated;" in ended.out
    rows, failures = rows_of(output), rows_of(tmp_path / "r_failures.jsonl")
    assert keys_of(rows) == ALL_KEYS
    assert_compared_whole(rows)
    assert {row["_ng_task_index"]: row["gym_bridge"]["attempt"] for row in rows} == {0: 0, 1: 0, 2: 1, 3: 0}
    assert sorted((row["_ng_task_index"], row["_ng_rollout_index"], row["_ng_failure_class"]) for row in failures) == [
        (2, 0, "cancelled"),
        (2, 1, "verify_error"),
        (2, 2, "cancelled"),
    ]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_kill_while_half_a_group_waits_costs_that_group_alone(
    workers: int, child, gym_bridge, comparing, cohort_tasks: Path, tmp_path: Path
):
    stage, output = comparing(free_calls=2 * SIZE + 2), tmp_path / "r.jsonl"
    argv = command(cohort_tasks, output, stage, "--concurrency", SIZE, "--workers", workers)
    collect = child(*argv)
    stage.wait_for_waiting(2)
    while not output.exists() or output.read_bytes().count(b"\n") < 2 * SIZE:  # synced within a second; a line may be half written
        assert collect.process.poll() is None
    collect.kill()
    before = rows_of(output)
    assert_compared_whole(before)
    stage.release()
    ended = gym_bridge(*argv)
    assert (ended.code, ended.err) == (0, "")
    assert "12 requested = 12 completed + 0 truncated;" in ended.out
    rows = rows_of(output)
    assert rows[: len(before)] == before
    assert keys_of(rows) == ALL_KEYS
    assert_compared_whole(rows)
    assert not rows_of(tmp_path / "r_failures.jsonl")


def test_a_group_of_which_a_row_is_lost_is_played_whole_and_no_pair_comes_twice(
    gym_bridge, comparing, cohort_tasks: Path, tmp_path: Path
):
    stage, output = comparing(), tmp_path / "r.jsonl"
    argv = command(cohort_tasks, output, stage, "--concurrency", 1)
    assert gym_bridge(*argv).code == 0
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:-1]) + lines[-1][:20])  # as a kill in the middle of a write leaves it
    ended = gym_bridge(*argv)
    assert "12 requested = 12 completed + 0 truncated;" in ended.out
    again = output.read_text().splitlines(keepends=True)
    assert again[:-1] == lines[:-1]
    assert keys_of(rows_of(output)) == ALL_KEYS
    assert stage.num_calls == len(ALL_KEYS) + SIZE


@pytest.mark.parametrize(("budget", "concurrency", "num_completed"), [(28, 1, SIZE), (43, 2 * SIZE, 3 * SIZE)])
def test_a_spent_token_budget_ends_the_groups_in_flight_whole(
    budget: int, concurrency: int, num_completed: int, gym_bridge, comparing, cohort_tasks: Path, tmp_path: Path
):
    stage, output = comparing(), tmp_path / "r.jsonl"  # a rollout takes 14 tokens, the first group comes alone
    argv = command(cohort_tasks, output, stage, "--concurrency", concurrency, "--token-budget", budget)
    ended = gym_bridge(*argv)
    assert ended.code == 0
    left = len(ALL_KEYS) - num_completed
    assert f"12 requested = {num_completed} completed + 0 truncated + {left} not attempted" in ended.out
    assert f"the token budget of {budget} is spent ({14 * num_completed} tokens)" in ended.out
    assert stage.num_waiting == 0
    assert_compared_whole(rows_of(output))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_spent_time_budget_calls_a_waiting_group_off_and_the_same_command_goes_on(
    workers: int, gym_bridge, comparing, cohort_tasks: Path, tmp_path: Path
):
    stage, output = comparing(free_calls=SIZE + 2), tmp_path / "r.jsonl"
    argv = command(cohort_tasks, output, stage, "--concurrency", 2, "--workers", workers)
    ended = gym_bridge(*argv, "--time-budget-s", 2)
    assert (ended.code, ended.err) == (0, "")
    assert "12 requested = 3 completed + 0 truncated + 9 not attempted" in ended.out
    assert_compared_whole(rows_of(output))
    stage.release()
    assert "12 requested = 12 completed + 0 truncated;" in gym_bridge(*argv).out
    assert keys_of(rows_of(output)) == ALL_KEYS
    assert_compared_whole(rows_of(output))
