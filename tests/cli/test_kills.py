"""`kill -9` at random moments: the same command goes on, and what is on disk at the end is what an uninterrupted run leaves."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.counted_stage import NUM_REPEATS, NUM_TASKS, PATIENCE_S, Counted, command, failures_of, lasting, write_counting_tasks

pytestmark = pytest.mark.slow

KILLS_A_CHAIN = 5
GONE_WITHIN_S = 3.0


@pytest.fixture(scope="module")
def counted() -> Iterator[Counted]:
    """Both servers."""
    with Counted() as servers:
        yield servers


@pytest.fixture(scope="module")
def counting_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of the counter."""
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    write_counting_tasks(path)
    return path


def children_of(pid: int) -> list[int]:
    """Processes that `pid` has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process runs still; one that nobody has buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Whether `condition` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def kill_at(moment: random.Random, collect: Any, servers: Counted) -> bool:
    """Kill a command while it starts or after some calls of the model; False when it had ended before."""
    wanted = servers.num_calls + (0 if moment.random() < 0.2 else moment.randrange(1, 220))
    wait_until(lambda: servers.num_calls >= wanted or collect.process.poll() is not None, seconds=PATIENCE_S)
    time.sleep(moment.uniform(0.0, 0.3 if wanted == servers.num_calls else 0.03))
    ended = collect.process.poll() is not None
    children = [] if ended else children_of(collect.process.pid)
    collect.kill()
    assert wait_until(lambda: not any(map(is_running, children)), seconds=GONE_WITHIN_S), "processes are left behind"
    return not ended


def killed_and_finished(child: Any, argv: list[object], servers: Counted, *, seed: int, num_kills: int) -> tuple[str, int]:
    """What the command says at its end, after `num_kills` kills at most, and how many hit it."""
    moment = random.Random(seed)
    num_hit = 0
    for _ in range(num_kills):
        num_hit += kill_at(moment, child(*argv), servers)
    ended = child(*argv).ended()
    assert (ended.code, [line for line in ended.err.splitlines() if "cut a torn last line" not in line]) == (0, [])
    return ended.out, num_hit


@pytest.fixture(scope="module")
def uninterrupted(counted: Counted, counting_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rollouts of a run that nothing disturbs."""
    from tests.cli.conftest import Child

    output = tmp_path_factory.mktemp("uninterrupted") / "rollouts.jsonl"
    ended = Child(*command(counting_tasks, output, server=counted.url, model_url=counted.url, workers=1)).ended()
    assert ended.code == 0, ended.err
    return output


def test_the_run_that_kills_are_compared_with_has_every_kind_of_outcome(uninterrupted: Path):
    rows, failures = lasting(uninterrupted), failures_of(uninterrupted)
    assert rows.keys() | failures.keys() == {(task, index) for task in range(NUM_TASKS) for index in range(NUM_REPEATS)}
    assert not rows.keys() & failures.keys()
    assert {row["reward"] for row in rows.values()} == {0.0, 1.0}
    assert {row["gym_bridge"]["stop_reason"] for row in rows.values()} == {"answered", "max_output_tokens"}
    assert {row["_ng_failure_class"] for row in failures.values()} == {"context_overflow"}
    pairs = [(rows[task, 0], rows[task, 1]) for task in range(NUM_TASKS) if {(task, 0), (task, 1)} <= rows.keys()]
    assert any(one["reward"] != other["reward"] for one, other in pairs)  # the seed of a repeat counts


@pytest.mark.parametrize("workers", [1, 2])
def test_however_often_it_is_killed_the_same_command_ends_with_the_same_rows(
    workers: int, child, counted: Counted, counting_tasks: Path, uninterrupted: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    num_chains = (20 if request.config.getoption("--soak") else 2) if workers == 1 else 1
    num_kills = KILLS_A_CHAIN if workers == 1 else 2
    num_hit = 0
    for chain in range(num_chains):
        output = tmp_path / str(chain) / "rollouts.jsonl"
        argv = command(counting_tasks, output, server=counted.url, model_url=counted.url, workers=workers)
        said, hits = killed_and_finished(child, argv, counted, seed=chain, num_kills=num_kills)
        num_hit += hits
        assert lasting(output) == lasting(uninterrupted)
        assert failures_of(output) == failures_of(uninterrupted)
        ledger = f"{NUM_TASKS * NUM_REPEATS} requested = "
        assert said.startswith(f"{output}: {ledger}")
    assert num_hit > num_chains * num_kills / 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_was_started_for_the_run_ends_when_the_run_is_killed(
    workers: int, child, chat_model, tasks: Path, tmp_path: Path
):
    model = chat_model(free_calls=0)
    collect = child(
        *("collect", "--quiet", "--input", tasks, "--output", tmp_path / "r.jsonl", "--server", "arithmetic"),
        *("--model", "adder", "--model-url", model.url, "--model-api", "chat", "--workers", workers),
    )
    model.wait_for_calls(1)
    children = children_of(collect.process.pid)
    assert len(children) == (1 if workers == 1 else 3)
    collect.kill()
    ended = wait_until(lambda: not any(map(is_running, children)), seconds=GONE_WITHIN_S)
    for pid in filter(is_running, children):
        os.kill(pid, signal.SIGKILL)
    assert ended, "processes are left behind"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_between_two_attempts_forgets_none(workers: int, child, counting_tasks: Path, tmp_path: Path):
    tasks, output = tmp_path / "task.jsonl", tmp_path / "r.jsonl"
    tasks.write_text(counting_tasks.read_text().splitlines()[0] + "\n")
    failures = tmp_path / "r_failures.jsonl"
    with Counted(verifies=False) as servers:
        argv = [*command(tasks, output, server=servers.url, model_url=servers.url, workers=workers), "--max-attempts", 2]
        argv[argv.index("--num-repeats") + 1] = 1
        collect = child(*argv)
        assert wait_until(lambda: failures.exists() and failures.stat().st_size > 0, seconds=PATIENCE_S)
        assert collect.process.poll() is None
        collect.kill()
        assert [row["_ng_attempt_index"] for row in map(json.loads, failures.read_text().splitlines())] == [0]
        ended = child(*argv).ended()
        assert servers.num_refused == 2
    assert "1 requested = 0 completed + 0 truncated + 1 verify_error" in ended.err
    assert [row["_ng_attempt_index"] for row in map(json.loads, failures.read_text().splitlines())] == [0, 1]
