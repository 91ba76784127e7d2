"""The index of a rollouts file: what it tells of every shape of row, and how it follows a file that changes."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import parse_line, read_lines
from gym_bridge.io.rollout_reader import PLACEHOLDER, view_row
from gym_bridge.schemas.columns import ROLLOUT_COLUMNS
from gym_bridge.transforms.row_columns import rollout_columns
from gym_bridge.viewer import growing_frame, stored_frames
from tests.viewer.stage import append, failure, rollout_file, row, rows_of, write

FIXTURES = sorted((Path(__file__).parents[2] / "fixtures" / "nemo_gym").glob("*.jsonl"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_every_real_row_has_the_columns_that_a_transform_knows(path: Path):
    expected = []
    for _, line in read_lines(path):
        if line.strip() != PLACEHOLDER:
            expected.append(rollout_columns(view_row(parse_line(line, path=path)), ROLLOUT_COLUMNS))
    frame = rows_of(path).frame
    assert frame["problem"].null_count() == frame.height
    assert frame.select(ROLLOUT_COLUMNS.keys()).to_dicts() == expected


def test_a_row_is_found_again_by_its_place_and_reads_as_it_stands(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(0, 0), b"\n", row(0, 1, 0.5), PLACEHOLDER + b"\n", row(1, 0))
    write(tmp_path / "R_failures.jsonl", failure(1, 1))
    with rollout_file(path) as file:
        rows = file.look()
        places = [rows.place(number) for number in range(rows.frame.height)]
        assert places == ["1", "3", "5", "f1"]
        assert [rows.number(place) for place in places] == [0, 1, 2, 3]
        assert file.row(rows, 1)["reward"] == 0.5
        assert file.row(rows, 3)["_ng_failure_class"] == "model_error"
        for wrong in ("2", "f2", "9", "x", "", "f", "-1"):
            with pytest.raises(ConfigError, match="no rollout at"):
                rows.number(wrong)


def test_lines_that_are_no_rollouts_are_told_with_their_reason(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(), b"{not json\n", row() | {"reward": True}, b'{"a": 1}\n', b"\xff\xfe\n")
    frame = rows_of(path).frame
    assert frame["outcome"].to_list() == ["completed", "unreadable", "unreadable", "no reward", "unreadable"]
    assert ["no JSON" in (one or "") for one in frame["problem"]] == [False, True, False, False, True]
    assert "reward is True" in frame["problem"][2]


def test_rows_that_are_appended_come_with_the_next_look_and_a_torn_line_waits_for_its_end(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(0, 0))
    with rollout_file(path) as file:
        assert file.look().frame.height == 1
        line = json.dumps(row(0, 1, 0.25)).encode()
        append(path, line[:50])
        assert file.look().frame["problem"].to_list() == [None]
        append(path, line[50:])
        assert file.look().frame["reward"].to_list() == [1.0, 0.25]  # whole, although its newline is still to come
        append(path, b"\n", row(0, 2, 0.75))
        rows = file.look()
        assert rows.frame["reward"].to_list() == [1.0, 0.25, 0.75]
        assert rows.frame["line"].to_list() == [1, 2, 3]
        assert [file.row(rows, number)["reward"] for number in range(3)] == [1.0, 0.25, 0.75]
        assert file.look() is rows


def test_failures_and_a_file_that_come_later_are_seen(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    with rollout_file(path) as file:
        assert file.look().frame.height == 0
        write(tmp_path / "R_failures.jsonl", failure(0, 0))
        assert file.look().frame["outcome"].to_list() == ["failed"]
        write(path, row(0, 0))
        assert file.look().frame["outcome"].to_list() == ["completed", "retried"]


def test_a_file_that_is_replaced_or_cut_is_read_again(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(0, 0, 0.125), row(0, 1, 0.25))
    with rollout_file(path) as file:
        file.look()
        write(path, row(5, 0, 0.75))
        rows = file.look()
        assert rows.frame["reward"].to_list() == [0.75]
        assert file.row(rows, 0)["_ng_task_index"] == 5


@pytest.mark.parametrize("rename", [False, True], ids=["written over", "renamed into place"])
@pytest.mark.parametrize("count", [1, 9])
def test_a_file_that_another_took_the_place_of_is_read_again_whatever_its_size(tmp_path: Path, rename: bool, count: int):
    path = write(tmp_path / "R.jsonl", *(row(0, index, 0.125) for index in range(4)))
    with rollout_file(path) as file:
        rows = file.look()
        assert file.row(rows, 0)["reward"] == 0.125
        other = write(tmp_path / "other", *(row(7, index, 0.75) for index in range(count)))
        if rename:
            other.rename(path)
        else:
            path.write_bytes(other.read_bytes())
        rows = file.look()
        assert rows.frame["reward"].to_list() == [0.75] * count
        assert [file.row(rows, number)["_ng_task_index"] for number in range(count)] == [7] * count


def test_no_two_looks_that_found_something_are_taken_for_one(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row())
    with rollout_file(path) as file:
        generations = []
        for index in range(1, 30):
            generations.append(file.look().generation)
            append(path, row(0, index))
        assert len(set(generations)) == 29


def test_a_compressed_file_reads_as_a_plain_one_and_is_read_again_when_it_changes(tmp_path: Path):
    plain = write(tmp_path / "P.jsonl", row(0, 0, 0.5), row(0, 1))
    path = tmp_path / "R.jsonl.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    with rollout_file(path) as file:
        rows = file.look()
        assert rows.frame.equals(rows_of(plain).frame)
        assert file.row(rows, 0)["reward"] == 0.5
        path.write_bytes(gzip.compress(write(plain, row(1, 0, 0.25)).read_bytes()))
        rows = file.look()
        assert file.row(rows, 0)["reward"] == 0.25
        copies = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
        assert len([one for one in copies if "gym-bridge-" in one]) == 1  # the copy of before is gone


def test_processes_make_the_same_frame_and_the_cache_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GYM_BRIDGE_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "R.jsonl", *(row(task, index, task / 7) for task in range(40) for index in range(8)), b"{torn\n")
    plain = rows_of(path).frame
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(growing_frame, "PROCESSES_FROM_BYTES", 0)
    monkeypatch.setattr(growing_frame, "PART_BYTES", 20_000)
    monkeypatch.setattr(stored_frames, "KEPT_FROM_BYTES", 0)
    assert rows_of(path).frame.equals(plain)
    assert len(list((tmp_path / "cache" / "view").glob("*.arrow"))) == 1
    monkeypatch.setattr(growing_frame.GrowingFrame, "_take", None)  # nothing may be read again
    assert rows_of(path).frame.equals(plain)


def test_a_kept_frame_is_gone_on_with_where_the_file_grew_and_not_used_where_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GYM_BRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored_frames, "KEPT_FROM_BYTES", 0)
    path = write(tmp_path / "R.jsonl", row(0, 0), row(0, 1))
    rows_of(path)
    append(path, row(0, 2, 0.5))
    frame = rows_of(path).frame
    assert (frame["line"].to_list(), frame["reward"].to_list()) == ([1, 2, 3], [1.0, 1.0, 0.5])
    write(path, row(7, 0, 0.125), row(7, 1, 0.125), row(7, 2, 0.5))
    assert rows_of(path).frame["task_index"].to_list() == [7, 7, 7]
    for kept in (tmp_path / "cache" / "view").iterdir():
        kept.write_bytes(b"damaged")
    assert rows_of(path).frame["task_index"].to_list() == [7, 7, 7]


def test_a_frame_is_kept_again_only_where_much_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GYM_BRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored_frames, "KEPT_FROM_BYTES", 2000)

    def kept() -> list[int]:
        return [one.stat().st_mtime_ns for one in (tmp_path / "cache").glob("view/*.arrow")]

    path = write(tmp_path / "R.jsonl", row())
    with rollout_file(path) as file:
        file.look()
        assert kept() == []
        append(path, *(row(0, index) for index in range(1, 10)))
        file.look()
        (first,) = kept()
        append(path, row(0, 10))
        file.look()
        assert kept() == [first]
        append(path, *(row(1, index) for index in range(10)))
        file.look()
        assert kept() != [first]
    assert rows_of(path).frame.height == 21


def test_numbers_that_no_column_holds_are_not_told(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(0, 0) | {"gym_bridge": {"num_input_tokens": "many", "attempt": 1.5}})
    frame = rows_of(path).frame
    assert frame["problem"].null_count() == 1
    assert (frame["num_input_tokens"].to_list(), frame["attempt"].to_list()) == ([None], [None])
    assert frame.schema["attempt"] == pl.Int64
