"""Units on disk: what is loaded is what was saved, bit for bit, and what was not saved is nothing."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.sample_cache import SampleCache
from gym_bridge.tokens.sample_files import Samples

ROWS = Path("data/rows.jsonl")


def sequence(length: int, line: int, *, sampled: bool = False, **numbers: Any) -> TrainingSequence:
    ids = np.arange(length, dtype=np.int32) + line
    logprobs = np.where(ids % 2, np.float32(-0.1), np.float32("nan")) if sampled else None
    return TrainingSequence(token_ids=ids, train_mask=ids % 3 == 0, rollout_logprobs=logprobs, origin=f"{ROWS}:{line}", **numbers)


def made() -> Samples:
    units = [
        (sequence(5, 1, weight=0.1 + 0.2),),
        (sequence(9, 4, margin=1 / 3), sequence(1, 4)),
        (sequence(7, 5, sampled=True), sequence(3, 5, sampled=True)),
        (sequence(2, 7),),
    ]
    return Samples(units=units, lines=[1, 4, 5, 7], dropped=Counter(too_long=2, failure=1), num_cut=3)


def assert_equal(first: Samples, second: Samples) -> None:
    assert (first.lines, first.dropped, first.num_cut) == (second.lines, second.dropped, second.num_cut)
    assert [len(unit) for unit in first.units] == [len(unit) for unit in second.units]
    pairs = zip([one for unit in first.units for one in unit], [one for unit in second.units for one in unit], strict=True)
    for one, other in pairs:
        for name in ("token_ids", "train_mask", "rollout_logprobs"):
            ours, theirs = getattr(one, name), getattr(other, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or (ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes())
        for name in ("advantage", "weight", "margin", "origin"):
            assert getattr(one, name) == getattr(other, name)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path):
    cache = SampleCache(tmp_path / "tokens")
    assert cache.load("a" * 64, path=ROWS) is None
    cache.save("a" * 64, made())
    loaded = cache.load("a" * 64, path=ROWS)
    assert loaded is not None
    assert_equal(loaded, made())
    assert cache.load("b" * 64, path=ROWS) is None


def test_rows_that_were_moved_are_named_where_they_are_now(tmp_path: Path):
    cache = SampleCache(tmp_path)
    cache.save("a", made())
    moved = cache.load("a", path=Path("elsewhere.jsonl"))
    assert moved is not None
    assert [one.origin for one in moved.units[1]] == ["elsewhere.jsonl:4", "elsewhere.jsonl:4"]


@pytest.mark.parametrize("length", [0, 1, 100, 1000, -1])
def test_a_torn_file_is_ignored_and_replaced(tmp_path: Path, length: int):
    cache, file = SampleCache(tmp_path), tmp_path / "a.npz"
    cache.save("a", made())
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    assert cache.load("a", path=ROWS) is None
    cache.save("a", made())
    assert cache.load("a", path=ROWS) is not None


def test_a_file_that_is_not_ours_is_ignored(tmp_path: Path):
    cache = SampleCache(tmp_path)
    cache.save("a", made())
    (tmp_path / "a.npz").replace(tmp_path / "b.npz")
    assert cache.load("b", path=ROWS) is None  # it was saved under another digest
    with (tmp_path / "c.npz").open("wb") as file:
        np.savez(file, told=np.zeros(3), key=np.zeros(3))
    with (tmp_path / "d.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert [cache.load(key, path=ROWS) for key in "cd"] == [None, None]


def test_a_flipped_bit_is_noticed(tmp_path: Path):
    cache, file = SampleCache(tmp_path), tmp_path / "a.npz"
    cache.save("a", made())
    whole = bytearray(file.read_bytes())
    place = whole.index(sequence(9, 4).token_ids.tobytes())
    whole[place] ^= 1
    file.write_bytes(whole)
    assert cache.load("a", path=ROWS) is None


def test_a_full_disk_is_told_and_stops_nothing(tiny_disk: Path, caplog: pytest.LogCaptureFixture):
    big = Samples(units=[(sequence(50_000, 1),)], lines=[1])
    cache = SampleCache(tiny_disk / "tokens")
    cache.save("a", big)
    assert "the tokens are not kept: cannot write" in caplog.text
    assert cache.load("a", path=ROWS) is None
    assert [one.name for one in tiny_disk.rglob("*") if one.is_file()] == []
