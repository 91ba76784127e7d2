"""Token arrays on disk read back as they were, chunk by chunk, without pickle."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_bridge.errors import DataError
from gym_bridge.io.token_store import TokenKey, TokenStore
from gym_bridge.schemas.tokens import TurnTokens

ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
logprob = st.floats(max_value=0.0, width=32, allow_infinity=False)


@st.composite
def rollouts(draw: st.DrawFn) -> list[TurnTokens]:
    """Turns of which some extend the one before and some start a segment."""
    turns: list[TurnTokens] = []
    for number in range(draw(st.integers(0, 4))):
        starts = not number or draw(st.booleans())
        completion = draw(ids)
        turns.append(
            TurnTokens(
                prompt_ids=(() if starts else turns[-1].all_ids) + draw(ids),
                completion_ids=completion,
                logprobs=tuple(draw(logprob) for _ in completion),
                policy_version=draw(st.integers(0, 2**40)),
                starts_segment=starts,
            )
        )
    return turns


keys = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(keys, rollouts(), max_size=4), max_size=4))
def test_every_rollout_reads_back_as_it_was_written_last(chunks: list[dict[TokenKey, list[TurnTokens]]]):
    with tempfile.TemporaryDirectory() as directory:
        store = TokenStore(Path(directory) / "R.tokens")
        for chunk in chunks:
            store.append(list(chunk.items()))
        expected = {key: turns for chunk in chunks for key, turns in chunk.items() if turns}
        for reader in (store, TokenStore(store.directory)):
            for key, turns in expected.items():
                assert reader.read(key) == tuple(turns)


def turn(*prompt: int, completion: tuple[int, ...] = (9,), starts: bool = True, version: int = 0) -> TurnTokens:
    return TurnTokens(
        prompt_ids=prompt,
        completion_ids=completion,
        logprobs=tuple(-0.5 for _ in completion),
        policy_version=version,
        starts_segment=starts,
    )


def test_prompts_take_room_for_what_they_add_alone(tmp_path: Path):
    store = TokenStore(tmp_path / "R.tokens")
    turns = [turn(1, 2), turn(1, 2, 9, 3, starts=False), turn(5, starts=True)]
    store.append([((0, 0, 0), turns)])
    with np.load(store.directory / "chunk-000000.npz", allow_pickle=False) as chunk:
        assert chunk["prompt_delta_ids"].tolist() == [1, 2, 3, 5]
        assert chunk["completion_ids"].tolist() == [9, 9, 9]
        assert [chunk[name].dtype for name in ("prompt_delta_ids", "completion_ids", "logprobs")] == [
            np.int32,
            np.int32,
            np.float32,
        ]
    assert store.read((0, 0, 0)) == tuple(turns)


def test_a_rollout_that_is_not_there_is_a_data_error(tmp_path: Path):
    store = TokenStore(tmp_path / "R.tokens")
    with pytest.raises(DataError, match="no tokens of task 1, rollout 2, attempt 3"):
        store.read((1, 2, 3))
    store.append([((1, 2, 0), [turn(1)]), ((4, 4, 0), [])])
    for key in ((1, 2, 3), (4, 4, 0)):
        with pytest.raises(DataError, match="holds no tokens"):
            store.read(key)


def test_a_new_chunk_never_takes_the_place_of_one_that_is_there(tmp_path: Path):
    store = TokenStore(tmp_path / "R.tokens")
    for index in range(3):
        store.append([((index, 0, 0), [turn(index)])])
    (store.directory / "chunk-000000.npz").unlink()
    store.append([((3, 0, 0), [turn(3)])])
    assert [store.read((index, 0, 0))[0].prompt_ids for index in (1, 2, 3)] == [(1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([turn(1), turn(1, 8, 2, starts=False)], "starts no segment"),
        ([turn(1), turn(1, starts=False)], "starts no segment"),
        ([TurnTokens(prompt_ids=(1,), completion_ids=(2, 3), logprobs=(0.0,), policy_version=0, starts_segment=True)], "log-probs"),
    ],
)
def test_turns_that_would_read_back_otherwise_are_refused(tmp_path: Path, turns: list[TurnTokens], message: str):
    with pytest.raises(DataError, match=message):
        TokenStore(tmp_path).append([((0, 0, 0), turns)])


def test_a_chunk_with_pickled_objects_or_torn_is_refused(tmp_path: Path):
    np.savez(tmp_path / "chunk-000000.npz", table=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"chunk-000000\.npz: no chunk of token arrays"):
        TokenStore(tmp_path).read((0, 0, 0))
    (tmp_path / "chunk-000000.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match="no chunk"):
        TokenStore(tmp_path).read((0, 0, 0))


def test_what_a_kill_left_half_written_is_passed_over(tmp_path: Path):
    (tmp_path / "chunk-000000.tmp").write_bytes(b"half")
    store = TokenStore(tmp_path)
    store.append([((0, 0, 0), [turn(1)])])
    assert store.read((0, 0, 0)) == (turn(1),)


def test_a_reader_sees_what_is_written_meanwhile(tmp_path: Path):
    writer, reader = TokenStore(tmp_path / "R.tokens"), TokenStore(tmp_path / "R.tokens")
    with pytest.raises(DataError, match="holds no tokens"):
        reader.read((0, 0, 0))
    for number in range(30):
        writer.append([((number, 0, 0), [turn(number)]), ((99, 0, 0), [turn(number, 1)])])
        assert writer.read((number, 0, 0)) == reader.read((number, 0, 0)) == (turn(number),)
        assert writer.read((99, 0, 0)) == (turn(number, 1),)
    assert TokenStore(tmp_path / "R.tokens").read((99, 0, 0)) == (turn(29, 1),)


def test_chunks_beyond_a_million_stay_in_order(tmp_path: Path):
    store = TokenStore(tmp_path)
    store.append([((0, 0, 0), [turn(1)])])
    (tmp_path / "chunk-000000.npz").rename(tmp_path / "chunk-999999.npz")
    for number in (2, 3):
        again = TokenStore(tmp_path)
        again.append([((0, 0, 0), [turn(number)])])
        assert again.read((0, 0, 0)) == (turn(number),)
    assert [path.name for path in again.chunks()] == ["chunk-999999.npz", "chunk-1000000.npz", "chunk-1000001.npz"]


def test_a_discarded_store_is_empty_and_begins_anew(tmp_path: Path):
    store = TokenStore(tmp_path)
    store.append([((0, 0, 0), [turn(1)])])
    assert store.read((0, 0, 0)) == (turn(1),)
    store.discard()
    with pytest.raises(DataError, match="holds no tokens"):
        store.read((0, 0, 0))
    store.append([((0, 0, 0), [turn(2)])])
    assert store.read((0, 0, 0)) == (turn(2),)
    assert [path.name for path in tmp_path.iterdir()] == ["chunk-000000.npz"]


def test_a_full_disk_leaves_no_half_chunk_and_the_next_try_succeeds(tiny_disk: Path):
    store = TokenStore(tiny_disk / "R.tokens")
    wide = turn(*range(2000), completion=tuple(range(2000)))
    written = 0
    with pytest.raises(OSError, match="No space left"):
        for written in range(100):
            store.append([((written, 0, 0), [wide])])
    assert written > 0
    assert [path.suffix for path in store.directory.iterdir()] == [".npz"] * written
    store.chunks()[0].unlink()
    store.append([((written, 0, 0), [wide])])
    for reader in (store, TokenStore(store.directory)):
        assert reader.read((written, 0, 0)) == (wide,)


def test_writing_many_chunks_and_finding_a_rollout_in_them_is_quick(tmp_path: Path):
    store = TokenStore(tmp_path)
    for number in range(300):
        store.append([((number, index, 0), [turn(number, index)]) for index in range(4)])
    reader = TokenStore(tmp_path)
    assert all(reader.read((number, index, 0)) == (turn(number, index),) for number in range(299, -1, -7) for index in range(4))
