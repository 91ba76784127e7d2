"""Files of lines in blocks: every byte once, in order, with the right line numbers, whatever the file is packed in."""

import gzip
import io
import os
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.io.blocks import STDIN, RangeReader, blocks, open_sources, read_range

TEXT = b"one\n\ntwo\r\n" + b"x" * 5000 + b"\nlast"


def zstd_frames(data):
    """Two frames, one after the other, as parallel writers make them."""
    return zstandard.compress(data[:7]) + zstandard.compress(data[7:])


def gzip_members(data):
    return gzip.compress(data[:7]) + gzip.compress(data[7:])


PACKED = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "zstd frames": zstd_frames,
    "gzip members": gzip_members,
}


def file_of(directory: Path, data: bytes, name: str = "a.jsonl") -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("seekable", [False, True])
@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("size", [1, 6, 1 << 20])
def test_blocks_are_the_file_in_whole_lines(kind, seekable, with_data, size, tmp_path):
    path = file_of(tmp_path, PACKED[kind](TEXT))
    with open_sources([path], seekable=seekable) as sources:
        made = list(blocks(sources, size=size, with_data=with_data))
        assert b"".join(block.read() for block in made) == TEXT
        assert all(block.read().endswith(b"\n") for block in made[:-1])
        for block in made:
            assert block.first_line == TEXT[: block.offset].count(b"\n") + 1
            assert TEXT[block.offset : block.offset + block.length] == block.read()
        assert sources[0].spooled == (seekable and kind != "plain")
        if seekable:
            assert read_range(sources[0].place, 5, 3) == b"two"


@given(st.binary(max_size=60), st.integers(1, 20))
def test_no_byte_is_lost_whatever_a_file_holds(data, size):
    with tempfile.TemporaryDirectory() as directory:
        path = file_of(Path(directory), b" " + data)  # so that it is never taken for an archive
        with open_sources([path], seekable=False) as sources:
            assert b"".join(block.read() for block in blocks(sources, size=size)) == b" " + data


def test_blocks_of_many_files_know_their_source(tmp_path):
    paths = [file_of(tmp_path, text, name) for name, text in (("a", b"1\n2"), ("b", b""), ("c", gzip.compress(b"3\n")))]
    with open_sources(paths, seekable=False) as sources:
        assert [(block.source, block.first_line, block.read()) for block in blocks(sources)] == [(0, 1, b"1\n2"), (2, 1, b"3\n")]


def test_spooled_copies_are_gone_afterwards_even_after_an_error(tmp_path):
    path = file_of(tmp_path, gzip.compress(TEXT))
    places = []
    with pytest.raises(RuntimeError), open_sources([path, path], seekable=True) as sources:
        places = [source.place for source in sources]
        assert all(place.read_bytes() == TEXT for place in places)
        raise RuntimeError
    assert len(places) == 2
    assert not any(place.exists() for place in places)


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstandard.compress])
def test_stdin_is_spooled_plain_or_packed(packed, monkeypatch):
    with tempfile.TemporaryFile() as file:
        file.write(packed(TEXT))
        file.seek(0)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read())))
    with open_sources([STDIN], seekable=True) as sources:
        assert sources[0].spooled
        assert b"".join(block.read() for block in blocks(sources)) == TEXT


def test_a_stdin_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with os.fdopen(os.dup(1), "rb") as stream:
        os.dup2(descriptor, stream.fileno())
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(stream.raw)))
        with pytest.raises(ConfigError, match="-: stdin cannot be read: Is a directory"), open_sources([STDIN], seekable=True):
            pass
    os.close(descriptor)


def test_a_full_disk_is_told_as_one(tiny_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tiny_disk))
    path = file_of(tmp_path, gzip.compress(b"x" * 200_000))
    with (
        pytest.raises(ConfigError, match=r"cannot spool to .*disk: No space left on device; set TMPDIR to a place with room"),
        open_sources([path], seekable=True),
    ):
        pass
    assert list(tiny_disk.iterdir()) == []


def test_ranges_of_a_file_that_went_are_told(tmp_path):
    path = file_of(tmp_path, b"0123456789")
    with RangeReader() as ranges:
        assert ranges.read(path, 3, 4) == b"3456"
        path.unlink()
        assert ranges.read(path, 8, 9) == b"89"
    with pytest.raises(ConfigError, match=r"a\.jsonl: No such file"):
        read_range(path, 0, 1)
