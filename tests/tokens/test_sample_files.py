"""Files of rows to units. The reader of these tests makes a sequence of the numbers in `ids`; those of `trained` train."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.sample_files import Limits, SampleReader, Unit, read_samples


def sequence(ids: list[int], trained: list[int]) -> TrainingSequence:
    return TrainingSequence(
        token_ids=np.array(ids, dtype=np.int32),
        train_mask=np.isin(ids, trained),
        rollout_logprobs=np.arange(len(ids), dtype=np.float32),
    )


def read(row: dict[str, Any]) -> Unit | str:
    if "drop" in row:
        return row["drop"]
    if "wrong" in row:
        raise DataError("no such column") if row["wrong"] == "data" else ConfigError("no mask")
    return tuple(sequence(ids, row["trained"]) for ids in row["ids"])


def reader(*, whole: bool = False) -> SampleReader:
    return SampleReader(open=lambda path: read, identity={}, whole=whole)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


SHORT = {"ids": [[1, 2, 3]], "trained": [3]}
LONG = {"ids": [[1, 2, 3, 4, 5]], "trained": [3, 5]}


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
def test_every_unit_tells_file_and_line_of_its_row(tmp_path: Path, suffix: str, pack: Any):
    path = tmp_path / f"rows.jsonl{suffix}"
    text = write(tmp_path / "plain", SHORT, "", {"ids": [[1, 3], [2, 3]], "trained": [3]}, SHORT).read_bytes()
    path.write_bytes(pack(text))
    samples = read_samples(path, reader(), Limits(max_length=9))
    assert [[one.origin for one in unit] for unit in samples.units] == [[f"{path}:1"], [f"{path}:3"] * 2, [f"{path}:4"]]
    assert samples.lines == [1, 3, 4]


def test_rows_that_are_too_long_are_dropped_or_cut_and_counted(tmp_path: Path):
    late = {"ids": [[1, 2, 3, 4, 5]], "trained": [5]}
    path = write(tmp_path / "rows.jsonl", SHORT, LONG, {"drop": "failure"}, late)
    dropped = read_samples(path, reader(), Limits(max_length=3))
    assert (dropped.lines, dropped.dropped, dropped.num_cut) == ([1], {"failure": 1, "too_long": 2}, 0)
    cut = read_samples(path, reader(), Limits(max_length=3, over_length="cut"))
    assert (cut.lines, cut.dropped, cut.num_cut) == ([1, 2], {"failure": 1, "too_long": 1}, 1)
    (one,) = cut.units[1]
    assert (one.token_ids.tolist(), one.train_mask.tolist()) == ([1, 2, 3], [False, False, True])
    assert one.rollout_logprobs is not None
    assert one.rollout_logprobs.tolist() == [0, 1, 2]


def test_of_a_row_of_several_sequences_a_cut_leaves_those_that_still_train(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"ids": [[1, 2, 3], [1, 4, 6, 3]], "trained": [3]}, SHORT)
    cut = read_samples(path, reader(), Limits(max_length=3, over_length="cut"))
    assert [[one.token_ids.tolist() for one in unit] for unit in cut.units] == [[[1, 2, 3]], [[1, 2, 3]]]
    whole = read_samples(path, reader(whole=True), Limits(max_length=3, over_length="cut"))
    assert (whole.lines, whole.dropped) == ([2], {"too_long": 1})


def test_sides_that_a_cut_makes_equal_prefer_nothing(tmp_path: Path):
    rows = [{"ids": [[1, 3, 5], [1, 3, 6]], "trained": [3, 5, 6]}, {"ids": [[1, 5, 3], [1, 6, 3]], "trained": [3, 5, 6]}]
    samples = read_samples(write(tmp_path / "rows.jsonl", *rows), reader(whole=True), Limits(max_length=2, over_length="cut"))
    assert (samples.lines, samples.dropped) == ([2], {"too_long": 1})


@pytest.mark.parametrize(("token", "size"), [(400, 400), (-1, 400)])
def test_a_token_that_the_model_does_not_know_is_a_data_error(tmp_path: Path, token: int, size: int):
    path = write(tmp_path / "rows.jsonl", SHORT, {"ids": [[1, token, 3]], "trained": [3]})
    with pytest.raises(
        DataError, match=rf"rows\.jsonl:2: token id {token} is outside the model's vocabulary of 400; another model"
    ):
        read_samples(path, reader(), Limits(max_length=9, vocab_size=size))


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ("{oops", DataError, "no JSON"),
        ("[1]", DataError, "expected a JSON object, found list"),
        ({"wrong": "data"}, DataError, "no such column"),
        ({"wrong": "config"}, ConfigError, "no mask"),
        ({"ids": [[3, 1]], "trained": [3]}, DataError, "its first token trains, but nothing predicts it: the prompt is empty"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_with_path_and_line(tmp_path: Path, row: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=rf"rows\.jsonl:2: {message}") as caught:
        read_samples(write(tmp_path / "rows.jsonl", SHORT, row), reader(), Limits(max_length=9))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([LONG, LONG], r"no row is left of 2: 2 too_long; raise data\.max_length=4"),
        ([LONG, {"drop": "failure"}], r"no row is left of 2: 1 failure, 1 too_long; raise data\.max_length=4"),
        (
            [{"drop": "no_token_ids"}],
            "no row is left of 1: 1 no_token_ids; rollouts without token ids train as `gym-bridge transform",
        ),
        (["<PLACEHOLDER ROW>"], "no row is left of 1: 1 not_a_rollout"),
        ([], "the file is empty; expected one JSON object a line"),
    ],
)
def test_a_file_that_leaves_nothing_is_refused_with_the_reasons(tmp_path: Path, rows: list[Any], message: str):
    with pytest.raises(ConfigError, match=rf"rows\.jsonl: {message}"):
        read_samples(write(tmp_path / "rows.jsonl", *rows), reader(), Limits(max_length=4))
