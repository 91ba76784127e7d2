"""JSONL files: bad lines are named, and a file is written whole or not at all."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import dump_line, parse_line, read_jsonl, read_lines, write_jsonl, written_aside


def test_rows_come_with_their_line_numbers_and_blank_lines_are_passed_over(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": "\xc3\xa9"}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"a": "é"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "no JSON"),
        (b'{"a": NaN}', "no JSON"),
        (b'{"a": "\xff"}', "no JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "found NoneType"),
        (b'{"a": 1} {"a": 2}', "no JSON"),
        (b"<PLACEHOLDER ROW>", "no JSON"),
    ],
)
def test_a_bad_line_is_named_by_path_and_line(tmp_path: Path, line: bytes, message: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    with pytest.raises(DataError) as raised:
        list(read_jsonl(path))
    assert str(raised.value).startswith(f"{path}:3: ")
    assert message in str(raised.value)
    assert (raised.value.path, raised.value.line) == (path, 3)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_packed_files_are_read_as_plain_ones_and_damaged_ones_are_named(pack: Callable[[bytes], bytes], tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(pack(b'{"a": 1}\r\n\n') + pack(b' \n{"a": 2}'))
    assert list(read_lines(path)) == [(1, b'{"a": 1}\r\n'), (4, b'{"a": 2}')]
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"a": 2})]
    path.write_bytes(pack(b"{}\n[]\n"))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: expected a JSON object, found list"):
        list(read_jsonl(path))
    path.write_bytes(pack(b"{}\n" * 99)[:-4])
    with pytest.raises(ConfigError, match=r"rows\.jsonl: the (gzip|zstd) file is damaged or cut off"):
        list(read_lines(path))
    path.write_bytes(pack(b"\n"))
    with pytest.raises(ConfigError, match="the file is empty"):
        list(read_jsonl(path))


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"\n \n", "empty"), (None, "No such file")])
def test_a_file_without_rows_is_a_config_error(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        list(read_jsonl(path))


def test_a_directory_is_no_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="Is a directory"):
        list(read_jsonl(tmp_path))
    with pytest.raises(ConfigError, match="cannot write"):
        write_jsonl(tmp_path, [{}])
    assert list(tmp_path.parent.glob(f".{tmp_path.name}.*")) == []


def test_what_fails_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert write_jsonl(path, [{"old": 1}, {"old": 2}]) == 2

    def rows():
        yield {"new": 1}
        raise LookupError("no more")

    with pytest.raises(LookupError):
        write_jsonl(path, rows())
    with pytest.raises(TypeError):
        write_jsonl(path, [{"new": object()}])
    with pytest.raises(KeyboardInterrupt), written_aside(path):
        raise KeyboardInterrupt
    assert path.read_bytes() == b'{"old":1}\n{"old":2}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "new" / "rows.jsonl"
    with written_aside(path) as file:
        file.write(b"{}\n")
        assert not path.exists()
    assert path.read_bytes() == b"{}\n"


def test_a_place_under_a_file_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot write"):
        write_jsonl(tmp_path / "file" / "rows.jsonl", [{}])


texts = st.text(st.characters(exclude_categories=("Cs",)))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(texts, values, max_size=4))
def test_a_row_is_one_line_and_reads_back(row: dict):
    line = dump_line(row)
    assert line.count(b"\n") == 1
    assert parse_line(line, path="x") == row
