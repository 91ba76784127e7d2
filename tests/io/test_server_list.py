"""Servers that come and go by a file."""

import logging
from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.io import server_list
from gym_bridge.io.server_list import ServerList

A, B, C = "http://a:1", "http://b:1", "https://c/v1"


@pytest.fixture(autouse=True)
def always_looked_at(monkeypatch):
    monkeypatch.setattr(server_list, "LOOK_S", 0.0)


def listed(*named: str | Path) -> ServerList:
    return ServerList([str(one) for one in named], setting="sampler.url")


def test_urls_are_the_servers_for_good():
    servers = listed(A, B, A)
    assert servers.current() == {0: A, 1: B}
    assert servers.current() is servers.current()


def test_a_file_is_read_again_and_a_url_keeps_its_number(tmp_path: Path):
    file = tmp_path / "servers.txt"
    file.write_text(f"# ours\n{A}\n\n  {B}  # the large one\n")
    servers = listed(file)
    assert servers.current() == {0: A, 1: B}
    assert servers.current() is servers.current()
    file.write_text(f"{B}\n{C}\n")
    assert servers.current() == {1: B, 2: C}
    file.write_text(f"{A}\n{C}\n{A}\n")
    assert servers.current() == {0: A, 2: C}


@pytest.mark.parametrize("content", ["", "# nobody\n", "a:1\n", None])
def test_while_it_names_none_those_of_before_stay(tmp_path: Path, content: str | None, caplog):
    file = tmp_path / "servers.txt"
    file.write_text(A)
    servers = listed(file)
    file.unlink() if content is None else file.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert (servers.current(), servers.current()) == ({0: A}, {0: A})
    expected = {"a:1\n": "'a:1' is no URL", None: "No such file or directory"}.get(content)
    assert [expected in one.message for one in caplog.records] == ([True] if expected else [])  # told once
    file.write_text(B)
    assert servers.current() == {1: B}


def test_what_is_made_of_a_url_is_made_once(tmp_path: Path):
    file = tmp_path / "servers.txt"
    file.write_text(A)
    made: list[str] = []
    each = listed(file).each(lambda url: (made.append(url), url.upper())[1])
    assert each() == {0: A.upper()}
    assert each() is each()
    file.write_text(f"{A}\n{B}\n")
    assert each() == {0: A.upper(), 1: B.upper()}
    file.write_text(f"{B}\n")
    assert each() == {1: B.upper()}
    file.write_text(f"{A}\n")
    assert each() == {0: A.upper()}
    assert made == [A, B]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["nowhere.txt"], "sampler.url=nowhere.txt: No such file or directory"),
        ([A, "b:1"], "sampler.url: b:1 is no URL; expected URLs such as http://127.0.0.1:8000, or one file of them"),
    ],
)
def test_what_names_no_servers_is_one_line(named: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        listed(*named)
    assert str(caught.value) == message


def test_a_line_that_is_no_url_is_a_mistake_at_the_start(tmp_path: Path):
    file = tmp_path / "servers.txt"
    file.write_text(f"{A}\nb:1\n")
    with pytest.raises(ConfigError, match=r"'b:1' is no URL; expected one a line, such as http://127.0.0.1:8000"):
        listed(file)


def test_an_empty_file_is_waited_for(tmp_path: Path):
    file = tmp_path / "servers.txt"
    file.touch()
    servers = listed(file)
    assert servers.current() == {}
    file.write_text(A)
    assert servers.current() == {0: A}
