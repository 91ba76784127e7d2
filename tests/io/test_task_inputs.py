from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.io.blocks import STDIN
from gym_bridge.io.task_inputs import TaskInputs, materialized_inputs_of

LINES = (
    b'\xef\xbb\xbf{"_ng_task_index": 3, "q": "first"}\n',
    b"\n",
    b'{"q": "no index"}\n',
    b'{"_ng_task_index": "4"}\n',
    b"{torn\n",
    b'{"_ng_task_index": 3, "q": "second"}\n',
    b'{"_ng_task_index": 5, "q": "\xff"}\n',
    b'{"_ng_task_index": 0, "q": "\xc3\xa9"}',
)


def test_the_first_row_of_every_task_is_found_as_it_stands(tmp_path):
    path = tmp_path / "inputs.jsonl"
    path.write_bytes(b"".join(LINES))
    inputs = TaskInputs(path)
    assert inputs.line(3) == b'{"_ng_task_index": 3, "q": "first"}\n'
    assert inputs.line(0) == LINES[-1]
    assert [inputs.line(index) for index in (1, 4, 5, -1)] == [None] * 4


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.jsonl: No such file"):
        TaskInputs(tmp_path / "gone.jsonl")


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst", "r"])
def test_inputs_stand_beside_their_rollouts(name, tmp_path):
    assert materialized_inputs_of(tmp_path / name) is None
    inputs = tmp_path / "r_materialized_inputs.jsonl"
    inputs.write_bytes(b"")
    assert materialized_inputs_of(tmp_path / name) == inputs


def test_stdin_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("-_materialized_inputs.jsonl").write_bytes(b"")
    assert materialized_inputs_of(STDIN) is None
