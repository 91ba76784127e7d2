"""Collections that end early, by the command line: exit 0 for a spent budget, exit 1 for failures that do not stop."""

import json
from pathlib import Path

import pytest

BAD = {"responses_create_params": {}}  # a task that nobody can play


def collected(gym_bridge, tasks: Path, output: Path, *, server: str, model_url: str, options: list[object]):
    """How a collection with one rollout in flight ends."""
    return gym_bridge(
        *("collect", "--quiet", "--input", tasks, "--output", output, "--server", server, "--concurrency", 1),
        *("--model", "adder", "--model-url", model_url, "--model-api", "chat"),
        *options,
    )


@pytest.fixture
def server(child) -> str:
    """The address of the arithmetic server."""
    return child("serve", "arithmetic").address()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--token-budget", 28], "the token budget of 28 is spent (28 tokens)"),
        (["--cost-budget", 1e-4, "--input-price", 5, "--output-price", 1], "the cost budget of 0.0001 is spent (0.0001)"),
    ],
)
def test_a_spent_budget_is_exit_0_and_the_same_command_goes_on(
    options: list[object], told: str, gym_bridge, chat_model, server: str, tasks: Path, tmp_path: Path, rollout_keys
):
    output, model = tmp_path / "r.jsonl", chat_model()  # a rollout takes 9 tokens and gives 5
    run = {"server": server, "model_url": model.url, "options": options}
    ended = collected(gym_bridge, tasks, output, **run)
    assert (ended.code, model.num_calls) == (0, 2)
    assert "6 requested = 2 completed + 0 truncated + 4 not attempted" in ended.out
    assert told in ended.out
    assert rollout_keys(output) == [(0, 0), (1, 0)]
    assert collected(gym_bridge, tasks, output, **run).code == 0
    ended = collected(gym_bridge, tasks, output, **run)
    assert (ended.code, model.num_calls) == (0, 6)
    assert "6 requested = 6 completed + 0 truncated;" in ended.out


def test_a_spent_time_budget_is_exit_0_with_what_was_done(gym_bridge, chat_model, server: str, tasks: Path, tmp_path: Path):
    model = chat_model(free_calls=2)
    options: list[object] = ["--time-budget-s", 1]
    ended = collected(gym_bridge, tasks, tmp_path / "r.jsonl", server=server, model_url=model.url, options=options)
    assert (ended.code, ended.err) == (0, "")
    assert "6 requested = 2 completed + 0 truncated + 4 not attempted" in ended.out
    assert "the time budget of 1 s is spent" in ended.out
    manifest = json.loads((tmp_path / "r_manifest.json").read_text())
    assert manifest["ledger"] == {"requested": 6, "completed": 2, "truncated": 0, "failed": {}, "not_attempted": 4}


@pytest.mark.parametrize(
    ("num_good", "num_bad", "options", "told", "failed"),
    [
        (2, 10, ["--max-consecutive-failures", 3], "stopped: 3 attempts in a row failed; the last one: invalid_row: ", 3),
        (40, 60, ["--max-failure-rate", 0.4], "stopped: 40% of 67 attempts failed; the last one: invalid_row: ", 27),
        (0, 70, [], "stopped: all 64 attempts so far failed; the last one: invalid_row: ", 64),
    ],
)
def test_failures_that_do_not_stop_are_exit_1_with_the_ledger(
    num_good: int,
    num_bad: int,
    options: list[object],
    told: str,
    failed: int,
    gym_bridge,
    chat_model,
    server: str,
    tasks: Path,
    tmp_path: Path,
):
    good = json.loads(tasks.read_text().splitlines()[0])
    path, output = tmp_path / "mixed.jsonl", tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [good] * num_good + [{**good, **BAD}] * num_bad))
    ended = collected(gym_bridge, path, output, server=server, model_url=chat_model().url, options=options)
    assert (ended.code, ended.out) == (1, "")
    assert told in ended.err
    ledger = f"{num_good + num_bad} requested = {num_good} completed + 0 truncated + {failed} invalid_row"
    assert f"{ledger} + {num_bad - failed} not attempted; run the same command to go on" in ended.err
    rows = [json.loads(line) for line in (tmp_path / "r_failures.jsonl").read_text().splitlines()]
    assert [(row["reward"], row["gym_bridge"]["failure"]["terminal"]) for row in rows] == [(None, True)] * failed
