"""Steps on disk read back bit for bit."""

import dataclasses
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.step_records import COLUMNS, NUMBERS, keep_steps, read_step, recorded_steps, write_step
from gym_bridge.schemas.seams import TrainStep
from gym_bridge.schemas.tokens import TrainingSequence

bits32 = st.integers(0, 2**32 - 1).map(lambda one: np.uint32(one).view(np.float32))  # NaNs of every kind among them
number = st.floats(allow_nan=True)


@st.composite
def sequences(draw: st.DrawFn) -> TrainingSequence:
    """Any sequence, each column there or not."""
    length = draw(st.integers(0, 4))
    columns = {
        name: np.array(draw(st.lists(bits32, min_size=length, max_size=length)), dtype=np.float32) if draw(st.booleans()) else None
        for name in COLUMNS[2:]
    }
    return TrainingSequence(
        token_ids=draw(arrays(np.int32, length)),
        train_mask=draw(arrays(np.bool_, length)),
        **columns,
        **{name: draw(number) for name in NUMBERS},
        origin=draw(st.text(max_size=5)),
    )


steps = st.builds(
    TrainStep,
    microbatches=st.lists(st.lists(sequences(), max_size=3), max_size=3),
    metrics=st.dictionaries(st.text(max_size=3), number | st.integers(-(2**60), 2**60), max_size=3),
)


def plain(value: object) -> object:
    """What two steps are compared by: dtypes and bytes of arrays, bits of floats."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value.hex()
    return value


def told(step: TrainStep) -> object:
    names = [field.name for field in dataclasses.fields(TrainingSequence)]
    batches = [[{name: plain(getattr(one, name)) for name in names} for one in batch] for batch in step.microbatches]
    return batches, {name: (type(one), plain(one)) for name, one in step.metrics.items()}


def test_every_field_of_a_sequence_is_recorded():
    assert {*COLUMNS, *NUMBERS, "origin"} == {field.name for field in dataclasses.fields(TrainingSequence)}


@settings(max_examples=60, deadline=None)
@given(steps)
def test_a_step_reads_back_bit_for_bit(step: TrainStep):
    with tempfile.TemporaryDirectory() as directory:
        write_step(Path(directory), 1, step)
        assert told(read_step(Path(directory), 1)) == told(step)


def sequence(dtype: type = np.float32, old: bool = True) -> TrainingSequence:
    return TrainingSequence(
        token_ids=np.array([5, 6, 7], dtype=np.int32),
        train_mask=np.array([False, True, True]),
        old_logprobs=np.array([np.nan, -0.5, -0.25], dtype=dtype) if old else None,
    )


def test_sequences_of_different_dtypes_keep_them(tmp_path: Path):
    step = TrainStep(microbatches=[[sequence(np.float64), sequence(old=False)], [sequence(np.float32), sequence(np.float64)]])
    write_step(tmp_path / "steps", 3, step)
    found = read_step(tmp_path / "steps", 3)
    kinds = [[None if one.old_logprobs is None else one.old_logprobs.dtype for one in batch] for batch in found.microbatches]
    assert kinds == [[np.float64, None], [np.float32, np.float64]]
    assert told(found) == told(step)


def test_numbers_of_numpy_are_recorded_as_numbers(tmp_path: Path):
    write_step(tmp_path, 1, TrainStep(microbatches=[], metrics={"a": np.float32(0.5), "b": np.int64(3), "c": math.inf}))
    assert read_step(tmp_path, 1).metrics == {"a": 0.5, "b": 3, "c": math.inf}


def test_steps_are_listed_in_their_order_replaced_and_removed(tmp_path: Path):
    directory = tmp_path / "steps"
    assert recorded_steps(directory) == []
    for number in (3, 10, 2):
        write_step(directory, number, TrainStep(microbatches=[], metrics={"number": number}))
    write_step(directory, 3, TrainStep(microbatches=[], metrics={"number": 33}))
    (directory / "step_last.npz").write_bytes(b"")
    (directory / ".step_00000004.npz.123.tmp").write_bytes(b"half")
    assert recorded_steps(directory) == [2, 3, 10]
    assert read_step(directory, 3).metrics == {"number": 33}
    keep_steps(directory, {10, 11})
    assert sorted(one.name for one in directory.iterdir()) == ["step_00000010.npz", "step_last.npz"]
    keep_steps(tmp_path / "none", ())


def test_a_step_that_is_not_there_or_damaged_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"step_00000001\.npz: step 1 is not recorded"):
        read_step(tmp_path, 1)
    write_step(tmp_path, 1, TrainStep(microbatches=[[sequence()]]))
    path = tmp_path / "step_00000001.npz"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-30], whole[: len(whole) // 2], b"torn"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"step_00000001\.npz: no record of a step"):
            read_step(tmp_path, 1)


def test_a_flipped_byte_of_a_column_is_found(tmp_path: Path):
    write_step(tmp_path, 1, TrainStep(microbatches=[[sequence()]]))
    path = tmp_path / "step_00000001.npz"
    content = path.read_bytes()
    place = content.index(np.array([5, 6, 7], dtype=np.int32).tobytes())
    path.write_bytes(content[:place] + b"\x08" + content[place + 1 :])
    with pytest.raises(DataError, match="no record of a step"):
        read_step(tmp_path, 1)


def test_an_archive_of_something_else_is_no_step(tmp_path: Path):
    np.savez(tmp_path / "step_00000001.npz", rewards=np.zeros(3))
    with pytest.raises(DataError, match="no record of a step"):
        read_step(tmp_path, 1)


def test_pickles_are_not_loaded(tmp_path: Path):
    np.savez(tmp_path / "step_00000001.npz", described=np.array([{"format": 1}], dtype=object))
    with pytest.raises(DataError, match="no record of a step"):
        read_step(tmp_path, 1)


def test_a_full_disk_leaves_the_earlier_record(tiny_disk: Path):
    first = TrainStep(microbatches=[[sequence()]])
    write_step(tiny_disk, 1, first)
    large = dataclasses.replace(
        sequence(), token_ids=np.zeros(40_000, np.int32), train_mask=np.zeros(40_000, bool), old_logprobs=None
    )
    with pytest.raises(ConfigError, match=r"cannot write .*step_00000001\.npz: No space left"):
        write_step(tiny_disk, 1, TrainStep(microbatches=[[large]]))
    assert told(read_step(tiny_disk, 1)) == told(first)
    assert [one.name for one in tiny_disk.iterdir()] == ["step_00000001.npz"]
