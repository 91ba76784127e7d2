"""The durable log of a collection: resume, identity, torn tails, full disks and kills."""

import dataclasses
import itertools
import logging
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.io.rollout_log import RolloutLog, sibling
from gym_bridge.schemas.rollouts import Failure, FailureType, Rollout, RolloutKey
from gym_bridge.schemas.tokens import TurnTokens

IDENTITY = {"tasks_sha256": "abc", "temperature": 1.0}


def turns_of(key: RolloutKey, attempt: int = 0) -> tuple[TurnTokens, ...]:
    """Two turns whose ids tell the rollout."""
    head = (key.task_index, key.rollout_index, attempt)
    first = TurnTokens(prompt_ids=head, completion_ids=(7, 8), logprobs=(-0.5, -1.0), policy_version=1, starts_segment=True)
    second = TurnTokens(prompt_ids=(*head, 7, 8, 5), completion_ids=(9,), logprobs=(-0.25,), policy_version=2, starts_segment=False)
    return first, second


def finished(
    task: int, index: int = 0, *, truncated: bool = False, attempt: int = 0, reward: float = 1.0, padding: int = 0
) -> Rollout:
    """A rollout with a reward."""
    key = RolloutKey(task, index)
    row = {
        "_ng_task_index": task,
        "_ng_rollout_index": index,
        "reward": reward,
        "padding": "x" * padding,
        "gym_bridge": {"truncated": truncated, "attempt": attempt},
    }
    return Rollout(key=key, attempt=attempt, row=row, turns=turns_of(key, attempt))


def failed(task: int, index: int = 0, *, attempt: int = 0, kind: FailureType = FailureType.MODEL) -> Rollout:
    """An attempt without a reward."""
    row = {"_ng_task_index": task, "_ng_rollout_index": index, "_ng_attempt_index": attempt, "reward": None}
    return Rollout(
        key=RolloutKey(task, index),
        attempt=attempt,
        row={**row, "_ng_failure_class": str(kind)},
        failure=Failure(type=kind, message="no"),
    )


def log_at(path: Path, **identity: Any) -> RolloutLog:
    return RolloutLog(path, identity={**IDENTITY, **identity})


def whole(log: RolloutLog) -> list[RolloutKey]:
    """Keys of the rows on disk, after a look at every row's tokens: each row once, and its tokens its own."""
    keys = []
    for row in log.rows():
        key = RolloutKey(row["_ng_task_index"], row["_ng_rollout_index"])
        attempt = row["gym_bridge"]["attempt"]
        assert log.tokens.read((key.task_index, key.rollout_index, attempt)) == turns_of(key, attempt)
        keys.append(key)
    assert len(set(keys)) == len(keys)
    return keys


def test_rows_and_tokens_survive_and_a_second_run_knows_what_is_done(tmp_path: Path):
    path = tmp_path / "new" / "R.jsonl"
    first = log_at(path)
    for rollout in (finished(0), failed(1), finished(1, attempt=1), finished(2, truncated=True), failed(3), finished(0, 4)):
        first.append(rollout)
    first.close()
    again = log_at(path)
    assert sorted(whole(again)) == [(0, 0), (0, 4), (1, 0), (2, 0)]
    assert [again.is_done(RolloutKey(task, 0)) for task in range(5)] == [True, True, True, False, False]
    assert again.outcomes == first.outcomes
    assert [again.next_rollout_index(task) for task in (0, 3, 9)] == [5, 1, 0]
    assert sorted(one.name for one in path.parent.iterdir()) == ["R.jsonl", "R.tokens", "R_failures.jsonl", "R_manifest.json"]
    assert next(read_jsonl(path))[1] == finished(0).row


def test_rows_wait_for_a_sync_and_come_in_batches(tmp_path: Path):
    log = log_at(tmp_path / "R.jsonl")
    for task in range(63):
        log.append(finished(task))
    early = len(list(log.rows()))
    log.append(finished(63))
    log.append(finished(64))
    late = len(list(log.rows()))
    log.sync()
    # A slow machine may have synced by the clock before; whatever was synced, nothing is lost or doubled.
    assert early <= 63 <= late
    assert sorted(whole(log)) == [(task, 0) for task in range(65)]


def test_the_failures_file_has_every_attempt_and_counts_them(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    log = log_at(path)
    for attempt in range(2):
        log.append(failed(0, attempt=attempt))
    log.append(failed(1, kind=FailureType.TIMEOUT))
    log.append(finished(1, attempt=1))
    log.close()
    again = log_at(path)
    assert [again.num_failed_attempts(RolloutKey(task, 0)) for task in range(3)] == [2, 1, 0]
    rows = [row for _, row in read_jsonl(sibling(path, "_failures.jsonl"))]
    assert [(row["_ng_task_index"], row["_ng_attempt_index"], row["_ng_failure_class"]) for row in rows] == [
        (0, 0, "model_error"),
        (0, 1, "model_error"),
        (1, 0, "timeout_exceeded"),
    ]
    assert again.outcomes == {(0, 0): "model_error", (1, 0): "completed"}


@pytest.mark.parametrize("torn", [b'{"_ng_task_index": 9, "rew', b'{"_ng_task_index":9,"_ng_rollout_index":0}', b"\x00" * 200_000])
def test_a_torn_last_line_is_cut_with_a_warning(tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "R.jsonl"
    log = log_at(path)
    log.append(finished(0))
    log.append(failed(1))
    log.close()
    before = [one.read_bytes() for one in (path, log.failures)]
    for one in (path, log.failures):
        with one.open("ab") as file:
            file.write(torn)
    with caplog.at_level(logging.WARNING):
        again = log_at(path)
    assert [one.read_bytes() for one in (path, log.failures)] == before
    assert f"{path}: cut a torn last line of {len(torn)} bytes" in caplog.text
    assert len(caplog.records) == 2
    again.append(finished(9))
    again.close()
    assert sorted(whole(log_at(path))) == [(0, 0), (9, 0)]


def test_a_file_that_is_one_torn_line_is_empty_afterwards(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    log_at(path)
    path.write_bytes(b'{"x": ' + b"1" * 100_000)
    log_at(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"{", b"{}", b'{"_ng_task_index": "0", "_ng_rollout_index": 0}'])
def test_a_bad_line_within_the_log_is_named_and_left(tmp_path: Path, line: bytes):
    path = tmp_path / "R.jsonl"
    log = log_at(path)
    log.append(finished(0))
    log.close()
    content = path.read_bytes() + line + b"\n" + path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"R\.jsonl:2: "):
        log_at(path)
    assert path.read_bytes() == content


def test_another_command_is_refused_and_told_what_differs(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    log = log_at(path)
    log.append(finished(0))
    log.close()
    with path.open("ab") as file:
        file.write(b"torn")
    content = path.read_bytes()
    with pytest.raises(ConfigError, match=r"model: None then, 'm' now; temperature: 1\.0 then, 0\.5 now"):
        log_at(path, temperature=0.5, model="m")
    assert path.read_bytes() == content  # a command that is refused changes nothing
    assert whole(log_at(path)) == [(0, 0)]


def test_an_identity_of_tuples_and_paths_is_the_same_when_it_comes_again(tmp_path: Path):
    RolloutLog(tmp_path / "R.jsonl", identity={"betas": (0.9, 0.95)})
    RolloutLog(tmp_path / "R.jsonl", identity={"betas": (0.9, 0.95)})


def test_overwrite_discards_what_was_there(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    log = log_at(path)
    log.write_inputs([{"old": 1}])
    for rollout in (finished(0), failed(1)):
        log.append(rollout)
    log.close()
    (tmp_path / "other.jsonl").write_bytes(b"{}\n")
    again = RolloutLog(path, identity={"temperature": 0.5}, overwrite=True)
    assert (again.outcomes, list(again.rows())) == ({}, [])
    with pytest.raises(DataError):
        again.tokens.read((0, 0, 0))
    again.write_inputs([{"new": 1}])
    assert [row for _, row in read_jsonl(sibling(path, "_materialized_inputs.jsonl"))] == [{"new": 1}]
    again.append(finished(5))
    again.close()
    assert whole(RolloutLog(path, identity={"temperature": 0.5})) == [(5, 0)]
    assert (tmp_path / "other.jsonl").exists()


@pytest.mark.parametrize("name", ["R.jsonl", "R_failures.jsonl", "R_materialized_inputs.jsonl", "R.tokens/chunk-000000.npz"])
def test_a_file_that_somebody_else_made_is_refused_and_kept(tmp_path: Path, name: str):
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b'{"reward": 1.0}\n')
    with pytest.raises(ConfigError, match="was not begun here"):
        log_at(tmp_path / "R.jsonl")
    assert foreign.read_bytes() == b'{"reward": 1.0}\n'
    assert not (tmp_path / "R_manifest.json").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"identity": 3}', b'{"mine": {}}'])
def test_a_manifest_of_something_else_is_refused_and_kept(tmp_path: Path, content: bytes):
    (tmp_path / "R_manifest.json").write_bytes(content)
    with pytest.raises(ConfigError, match="no manifest of a collection"):
        log_at(tmp_path / "R.jsonl")
    assert (tmp_path / "R_manifest.json").read_bytes() == content


def test_inputs_are_written_once(tmp_path: Path):
    log = log_at(tmp_path / "R.jsonl")
    log.write_inputs([{"a": 1}])
    log.close()
    log_at(tmp_path / "R.jsonl").write_inputs([{"a": 2}])
    assert [row for _, row in read_jsonl(tmp_path / "R_materialized_inputs.jsonl")] == [{"a": 1}]


def test_a_place_that_cannot_be_written_is_a_config_error(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot write"):
        log_at(tmp_path / "file" / "R.jsonl")
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(ConfigError):
        log_at(tmp_path / "dir.jsonl")


outcomes = st.lists(st.sampled_from(["completed", "truncated", *FailureType]), max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 3)), outcomes, max_size=12), st.booleans())
def test_every_requested_rollout_ends_in_exactly_one_outcome(attempts: dict[tuple[int, int], list[str]], reopen: bool):
    with tempfile.TemporaryDirectory() as directory:
        log = log_at(Path(directory) / "R.jsonl")
        expected: dict[str, int] = {}
        for (task, index), ends in attempts.items():
            # Attempts fail until one does not; what stands behind a finished one was never played.
            last = "not attempted"
            for attempt, end in enumerate(ends):
                last = str(end)
                done = end in ("completed", "truncated")
                log.append(
                    finished(task, index, truncated=end == "truncated", attempt=attempt)
                    if done
                    else failed(task, index, attempt=attempt, kind=FailureType(end))
                )
                if done:
                    break
            expected[last] = expected.get(last, 0) + 1
        log.close()
        ledger = (log_at(log.output) if reopen else log).ledger([RolloutKey(*key) for key in attempts])
    assert ledger.requested == len(attempts)
    assert (ledger.completed, ledger.truncated) == (expected.pop("completed", 0), expected.pop("truncated", 0))
    assert ledger.not_attempted == expected.pop("not attempted", 0)
    assert ledger.failed == expected
    assert ledger.describe().startswith(f"{len(attempts)} requested = {ledger.completed} completed + ")


@pytest.mark.parametrize("padding", [10, 1500, 30_000])
def test_a_full_disk_is_told_and_what_was_synced_before_is_whole(tiny_disk: Path, padding: int):
    path = tiny_disk / "R.jsonl"
    log = log_at(path)
    synced = -1

    def fill() -> None:
        nonlocal synced
        for task in range(10_000):
            log.append(finished(task, padding=padding))
            if task % 3 == 2:
                log.sync()
                synced = task

    with pytest.raises(ConfigError, match="No space left on device"):
        fill()
    keys = whole(log)
    assert keys[: synced + 1] == [(task, 0) for task in range(synced + 1)]
    taken = list(log.outcomes)
    assert len(taken) > len(keys)
    subprocess.run(["mount", "-o", "remount,size=2m", str(tiny_disk)], check=True)
    log.append(finished(20_000))
    log.close()
    # Nothing that was taken before the disk was full is lost, and nothing is written twice.
    assert sorted(whole(log_at(path))) == [*sorted(taken), (20_000, 0)]


def test_the_next_start_finds_whole_files_where_a_run_died_on_a_full_disk(tiny_disk: Path):
    path = tiny_disk / "R.jsonl"
    log = log_at(path)
    with pytest.raises(ConfigError, match="No space left on device"):
        for task in range(10_000):
            log.append_group([finished(task, 0, padding=700), finished(task, 1, padding=700), failed(task, 2)])
            log.sync()
    with pytest.raises(ConfigError, match="No space left on device"):
        log.close()
    with log_at(path) as again:  # a log that could not be brought to the disk is released all the same
        keys = whole(again)
        assert len(keys) > 4
        # Rows of a group are written at once, so that a refused write takes all of them back.
        assert keys == [(task, index) for task in range(len(keys) // 2) for index in (0, 1)]
        assert again.ledger(keys).completed == len(keys)


def interrupted_at_line(number: int, action: Callable[[], None]) -> bool:
    """Runs `action`, with Ctrl-C at the `number`-th line of gym_bridge/io that it comes to; False when it ends before."""
    passed = itertools.count(1)

    def trace(frame: FrameType, event: str, _: object):
        if event == "line" and next(passed) == number:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: trace if "gym_bridge/io" in frame.f_code.co_filename else None)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_anywhere_in_a_sync_neither_loses_nor_doubles_a_row(tmp_path: Path):
    number, interrupted = 0, True
    while interrupted:
        number += 1
        with log_at(tmp_path / str(number) / "R.jsonl") as log:
            log.append_group([finished(0), failed(1), finished(2)])
            interrupted = interrupted_at_line(number, log.sync)
            log.append(finished(3))
        assert whole(log) == [(0, 0), (2, 0), (3, 0)]
        assert [row["_ng_task_index"] for _, row in read_jsonl(log.failures)] == [1]
    assert number > 40


def test_a_group_is_synced_in_one_write(tmp_path: Path):
    with log_at(tmp_path / "R.jsonl") as log:
        for task in range(62):
            log.append(finished(task))
        log.append_group([finished(99, index) for index in range(4)])
        groups = [row for row in log.rows() if row["_ng_task_index"] == 99]
    assert len(groups) == 4


def test_a_line_of_another_process_is_written_as_it_is(tmp_path: Path):
    line = b'{ "_ng_task_index": 3, "_ng_rollout_index": 0, "reward": 0.5, "more": 1 }\n'
    with log_at(tmp_path / "R.jsonl") as log:
        log.append(Rollout(key=RolloutKey(3, 0), attempt=0, row={"reward": 0.5, "gym_bridge": {"truncated": True}}, line=line))
        assert log.outcomes == {(3, 0): "truncated"}
        with pytest.raises(AssertionError, match="task 4, rollout 0 does not end with a newline"):
            log.append(Rollout(key=RolloutKey(4, 0), attempt=0, row={"reward": 0.5}, line=line.strip()))
    assert (tmp_path / "R.jsonl").read_bytes() == line


def test_a_rollout_that_has_its_row_is_never_written_again(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    with log_at(path) as log:
        log.append(finished(0))
        for again in (finished(0, reward=0.0), failed(0)):
            with pytest.raises(AssertionError, match="task 0, rollout 0 was played a second time"):
                log.append(again)
    with log_at(path) as log, pytest.raises(AssertionError):
        log.append(finished(0))
    assert whole(log_at(path)) == [(0, 0)]


def test_what_cannot_be_logged_is_refused_alone(tmp_path: Path):
    with log_at(tmp_path / "R.jsonl") as log:
        bad = TurnTokens(prompt_ids=(1,), completion_ids=(2, 3), logprobs=(0.0,), policy_version=0, starts_segment=True)
        with pytest.raises(DataError, match="log-probs"):
            log.append(dataclasses.replace(finished(0), turns=(bad,)))
        with pytest.raises(AssertionError, match="reward of nan"):
            log.append(finished(1, reward=float("nan")))
        log.append(finished(2))
        log.sync()
        assert whole(log) == [(2, 0)]
        assert log.outcomes == {(2, 0): "completed"}


def test_the_mean_reward_counts_every_run_and_no_failure(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    with log_at(path) as log:
        assert math.isnan(log.mean_reward)
        for rollout in (finished(0, reward=1.0), failed(1), finished(2, reward=0.25)):
            log.append(rollout)
        assert (log.mean_reward, log.num_with_reward) == (0.625, 2)
    with log_at(path) as log:
        assert (log.mean_reward, log.num_with_reward) == (0.625, 2)
        log.append(finished(1, reward=-0.5, attempt=1))
        assert (log.mean_reward, log.num_with_reward) == (0.25, 3)


def test_a_ledger_reads_its_requests_as_a_stream(tmp_path: Path):
    with log_at(tmp_path / "R.jsonl") as log:
        log.append_group([finished(0), finished(1, truncated=True), failed(2), failed(3)])
        ledger = log.ledger(RolloutKey(task, 0) for task in range(6))
    assert ledger.describe() == "6 requested = 1 completed + 1 truncated + 2 model_error + 2 not attempted"


def test_a_terminal_failure_is_known_in_the_next_run_until_a_reward_comes(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    for_good = Failure(type=FailureType.INVALID_ROW, message="no input", terminal=True)
    row = {**failed(0, kind=FailureType.INVALID_ROW).row, "gym_bridge": {"failure": {"type": "invalid_row", "terminal": True}}}
    with log_at(path) as log:
        log.append(Rollout(key=RolloutKey(0, 0), attempt=0, row=row, failure=for_good))
        log.append(failed(1))
        assert [log.is_terminal(RolloutKey(task, 0)) for task in range(3)] == [True, False, False]
    with log_at(path) as log:
        assert [log.is_terminal(RolloutKey(task, 0)) for task in range(3)] == [True, False, False]
        log.append(finished(0, attempt=1))
        assert (log.is_terminal(RolloutKey(0, 0)), log.is_done(RolloutKey(0, 0))) == (False, True)


def test_a_doubled_row_is_reported_with_both_lines(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    with log_at(path) as log:
        log.append_group([finished(0), finished(1), finished(2)])
    with path.open("ab") as file:
        file.write(b"\n" + orjson.dumps(finished(1).row) + b"\n")
    with pytest.raises(DataError, match=r"R\.jsonl:5: task 1, rollout 0 stands in line 2 already"):
        log_at(path)


@pytest.mark.parametrize("reward", [b"true", b'"1"', b"[]"])
def test_a_reward_that_is_no_number_is_refused(tmp_path: Path, reward: bytes):
    path = tmp_path / "R.jsonl"
    log_at(path).close()
    path.write_bytes(b'{"_ng_task_index":0,"_ng_rollout_index":0,"reward":' + reward + b"}\n")
    with pytest.raises(DataError, match=r"R\.jsonl:1: reward is"):
        log_at(path)


def test_the_manifest_tells_what_ran_and_how_it_ended(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    manifest = tmp_path / "R_manifest.json"
    log = log_at(path)
    log.append_group([finished(0), failed(1)])
    begun = orjson.loads(manifest.read_bytes())
    log.close(log.ledger([RolloutKey(0, 0), RolloutKey(1, 0), RolloutKey(2, 0)]))
    ended = orjson.loads(manifest.read_bytes())
    assert begun["identity"] == ended["identity"] == IDENTITY
    assert set(begun["versions"]) == {"python", "gym-bridge"}
    assert "ledger" not in begun
    assert ended["ledger"] == {"requested": 3, "completed": 1, "truncated": 0, "failed": {"model_error": 1}, "not_attempted": 1}
    log_at(path).close()
    assert orjson.loads(manifest.read_bytes()) == begun  # the collection goes on: its old ledger is none


HOLDER = """
import sys
from pathlib import Path
from tests.io.test_rollout_log import finished, log_at
log = log_at(Path(sys.argv[1]))
log.append(finished(0))
log.sync()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_kept_off_until_the_first_one_ends_however_it_does(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(ConfigError, match=rf"R\.jsonl is being written by (process {child.pid}|another process); "):
            log_at(path)
        with pytest.raises(ConfigError, match="is being written by"):
            RolloutLog(path, identity={}, overwrite=True)
        assert [row["_ng_task_index"] for _, row in read_jsonl(path)] == [0]  # readers need no lock, and nothing was discarded
        child.kill()
        child.wait()
    with log_at(path) as log:
        assert whole(log) == [(0, 0)]
        with pytest.raises(ConfigError, match=r"is being written by (this|another) process; "):
            log_at(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["R.jsonl", "R.tokens", "R_manifest.json"]


@pytest.mark.parametrize("change", ["removed", "appended", "replaced"])
def test_another_program_that_changes_the_file_is_noticed(tmp_path: Path, change: str):
    path = tmp_path / "R.jsonl"
    log = log_at(path)
    log.append(finished(0))
    log.sync()
    content = path.read_bytes()
    if change != "appended":
        path.unlink()
    if change != "removed":
        with path.open("ab") as file:
            file.write(content + content)
    log.append(finished(1))
    with pytest.raises(ConfigError, match=r"R\.jsonl was changed by another program"):
        log.sync()
    left = path.read_bytes().count(b"\n") if path.exists() else 0
    assert left == {"removed": 0, "appended": 3, "replaced": 2}[change]  # nothing of theirs was cut, nothing of ours was added


def test_fifty_thousand_rollouts_are_known_in_little_memory(tmp_path: Path):
    log = log_at(tmp_path / "R.jsonl")
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(50_000):
        log.outcomes.record_reward(RolloutKey(number // 8, number % 8), 1.0, truncated=False)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(log.outcomes) == 50_000
    assert after - before < 5_000_000
    assert log.ledger(RolloutKey(number // 8, number % 8) for number in range(50_000)).completed == 50_000


CHILD = """
import itertools, random, sys
from pathlib import Path
from tests.io.test_rollout_log import finished, failed, log_at
log = log_at(Path(sys.argv[1]))
pick = random.Random(sys.argv[2])
print("ready", flush=True)
for task in itertools.count():
    if log.is_done((task, 0)):
        continue
    tried = log.num_failed_attempts((task, 0))
    if pick.random() < 0.2:
        log.append(failed(task, attempt=tried))
        tried += 1
    log.append(finished(task, attempt=tried, padding=pick.choice((0, 100, 70_000))))
    if pick.random() < 0.3:
        log.sync()
        print(task, flush=True)
"""


def test_a_kill_at_any_moment_tears_and_doubles_no_row_and_leaves_none_without_tokens(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    pick = random.Random(0)
    last = -1
    for round_number in range(10):
        command = [sys.executable, "-c", CHILD, str(path), str(round_number)]
        with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(pick.uniform(0.0, 0.15))
            os.kill(child.pid, 9)
            child.wait()
            said = [int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        last = max([last, *said])
        with log_at(path) as log:
            keys = whole(log)
        # Done is done: what a child said to be synced is on disk, in every later round too.
        assert {RolloutKey(task, 0) for task in range(last + 1)} <= set(keys)
        failures = [row for _, row in read_jsonl(log.failures)] if log.failures.exists() and log.failures.stat().st_size else []
        assert len({(row["_ng_task_index"], row["_ng_attempt_index"]) for row in failures}) == len(failures)
    assert last > 10


def test_a_row_that_was_not_synced_is_played_again_and_its_first_tokens_are_ignored(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    log = log_at(path)
    other = (TurnTokens(prompt_ids=(1,), completion_ids=(2,), logprobs=(0.0,), policy_version=0, starts_segment=True),)
    log.tokens.append([((0, 0, 0), other)])  # as a kill between tokens and row leaves it
    log.close()
    again = log_at(path)
    assert not again.is_done(RolloutKey(0, 0))
    again.append(finished(0))
    again.close()
    assert whole(log_at(path)) == [(0, 0)]
    assert orjson.loads(path.read_bytes())["reward"] == 1.0
