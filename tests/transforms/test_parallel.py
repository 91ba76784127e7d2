"""Processes that work for a transform: none is waited for in vain, none outlives its parent, and Ctrl-C is the parent's."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pickle import PickleBuffer

import pytest

from gym_bridge.errors import DataError
from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms import engine, telling
from gym_bridge.transforms.engine import transform_files
from gym_bridge.transforms.format import Format, RowOptions
from gym_bridge.transforms.parallel import Processes, WorkerDiedError
from tests.transforms.stage import line, rollouts, transformed

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
FATAL = "kill me"


def killed_by(rollout: RolloutView, options: RowOptions) -> Row:
    """A row of one's own; one answer ends the process, as a lack of memory would."""
    text = rollout.items[-1]["content"][0]["text"]
    if text == FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"text": text}


FRAGILE = Format(row=killed_by)


def made_by(rollout: RolloutView, options: RowOptions) -> Row:
    """The process that made the row."""
    return {"process": os.getpid()}


TOLD = Format(row=made_by)


def test_a_small_input_starts_no_process(tmp_path, monkeypatch):
    path = rollouts(tmp_path, line())
    assert transformed(path, f"{__name__}:TOLD", workers=2, bare=True)[0] == [{"process": os.getpid()}]
    monkeypatch.setattr(engine, "WORKERS_FROM_BYTES", path.stat().st_size)
    assert transformed(path, f"{__name__}:TOLD", workers=2, bare=True)[0] != [{"process": os.getpid()}]


def test_a_worker_that_is_killed_ends_the_run_in_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "WORKERS_FROM_BYTES", 0)
    path = rollouts(tmp_path, line(), line(text=FATAL))
    with pytest.raises(WorkerDiedError, match="a worker process died: killed for want of memory"):
        transformed(path, f"{__name__}:FRAGILE", workers=2)
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]


def _failing() -> Callable[[int], int]:
    raise DataError("nothing can be made here")


def test_what_goes_wrong_in_making_the_function_is_told():
    for num in (1, 2):
        with pytest.raises(DataError, match="nothing can be made here"), Processes(num) as workers:
            list(workers.ordered_map(_failing, [1, 2]))


def _double() -> Callable[[int], int]:
    return (2).__mul__


def _process_of() -> Callable[[int], int]:
    return lambda item: os.getpid()


def test_results_come_in_the_order_of_the_items():
    with Processes(2) as workers:
        assert list(workers.ordered_map(_double, range(50))) == list(range(0, 100, 2))
        assert list(workers.ordered_map(_double, [])) == []


def test_the_processes_of_one_map_do_the_next_one_too():
    with Processes(2) as workers:
        assert list(workers.ordered_map(_double, range(3))) == [0, 2, 4]
        found = {process for _ in range(5) for process in workers.ordered_map(_process_of, range(50))}
    assert len(found) <= 2
    assert os.getpid() not in found


def test_one_worker_is_this_process():
    with Processes(1) as workers:
        assert set(workers.ordered_map(_process_of, range(3))) == {os.getpid()}


SLEEPERS = """
import os, time
from gym_bridge.transforms.parallel import Processes

def sleeper():
    def sleep(item):
        os.write(1, f"{os.getpid()}\\n".encode())  # at once: lines of two processes must not mix
        time.sleep(600)
    return sleep

if __name__ == "__main__":
    with Processes(2) as workers:
        list(workers.ordered_map(sleeper, range(4)))
"""


DOUBLERS = """
from gym_bridge.transforms.parallel import Processes
from tests.transforms.test_parallel import _double

if __name__ == "__main__":
    with Processes(2) as workers:
        print(sum(workers.ordered_map(_double, range(4))))
"""


def test_a_temporary_directory_too_long_for_sockets_is_no_hindrance(tmp_path):
    script, far = tmp_path / "doublers.py", tmp_path / ("d" * 100)
    script.write_text(DOUBLERS)
    far.mkdir()
    given = {**os.environ, "TMPDIR": str(far), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, env=given, timeout=PATIENCE_S)
    assert (ended.stdout, ended.stderr) == ("12\n", "")
    assert list(far.iterdir()) == []


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert len(set(workers)) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + PATIENCE_S
    while any(map(_runs, workers)):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.02)
    parent.stdout.close()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_in_a_terminal_reaches_the_parent_alone(tmp_path):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS.replace("600", "1"))
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    assert parent.stdout is not None
    for _ in range(2):
        parent.stdout.readline()
    os.killpg(parent.pid, signal.SIGINT)
    _, told = parent.communicate(timeout=PATIENCE_S)
    assert parent.returncode == -signal.SIGINT
    assert told.count("KeyboardInterrupt") == 1


def _doubled() -> Callable[[int], tuple[int, PickleBuffer]]:
    return lambda number: (number, PickleBuffer(bytes([number]) * (2 * number)))


def test_buffers_come_through_files_that_are_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Processes(2, imports=[]) as workers:
        results = workers.ordered_map(_doubled, [3, 0, 1])
        first = next(results)
        (spool,) = tmp_path.glob("gym-bridge-workers-*")
        found = [(number, bytes(text)) for number, text in (first, *results)]
    assert found == [(3, b"\3" * 6), (0, b""), (1, b"\1\1")]
    assert not spool.exists()


@pytest.mark.parametrize("quiet", [False, True])
def test_long_work_tells_how_far_it_is_unless_it_is_told_not_to(quiet, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(telling, "TOLD_FROM_BYTES", 0)
    path = rollouts(tmp_path, line(), line(0.0, "5"), line(1.0, "6", prompt="3+3?"))
    for to in ("dpo", "sft"):
        transform_files([path], TransformSettings(to=to, output=tmp_path / "out.jsonl"), quiet=quiet)
    told = capsys.readouterr().err.splitlines()
    starts = ["transform: MiB read: 0 in", "transform: rows written: 1/1 in", "transform: MiB read: 0 in"]
    assert [one.partition(" in")[0] + " in" for one in told] == ([] if quiet else starts)
    assert quiet or told[0].endswith("rows 3")
