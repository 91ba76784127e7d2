"""The page that opens from disk, and the verb."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gym_bridge.viewer.library import Library
from gym_bridge.viewer.shared_page import MAX_ROLLOUTS, shared_page
from tests.viewer.stage import failure, row, write
from tests.viewer.test_application import HOSTILE, stage


class Structure(HTMLParser):
    """The tags of a page, its ids and the places that links lead to."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.hrefs: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                self.ids.add(str(value))
            elif name in ("href", "src"):
                self.hrefs.add(str(value))


def test_the_page_needs_nothing_else_and_its_links_lead_within_it(tmp_path: Path):
    with Library([stage(tmp_path)]) as library:
        page = shared_page(library, title="run")
    found = Structure(page)
    assert found.tags & {"script", "link", "img", "iframe", "form"} == set()
    assert found.hrefs
    assert all(one.startswith("#") and one[1:] in found.ids for one in found.hrefs)
    assert "default-src 'none'" in page
    assert HOSTILE not in page
    for words in ("83.3 %", "dead: all have 0.5", "Training", "error", "while it waited for model"):
        assert words in page


def test_a_page_of_many_rollouts_says_how_many_it_holds(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", *(row(number, 0) for number in range(MAX_ROLLOUTS + 30)))
    with Library([path]) as library:
        page = shared_page(library, title="R")
    assert f"Rollouts, the first {MAX_ROLLOUTS} of {MAX_ROLLOUTS + 30}" in page
    assert page.count("<details") == MAX_ROLLOUTS


def gym_bridge(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gym_bridge", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_verb_exports_a_page(tmp_path: Path):
    done = gym_bridge("view", stage(tmp_path), "--export", tmp_path / "report.html", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"page": str(tmp_path / "report.html")})
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["gone"], "gone: there is no such file or directory"),
        (["tasks.jsonl"], "holds no rollouts"),
        ([], "Missing argument"),
        (["R.jsonl", "--export", "x.html", "--model", "m"], "an exported page holds no tokens"),
        (["R.jsonl", "--model", "gone/model/dir"], "unknown model"),
        (["R.jsonl", "--export", "R.jsonl"], "name a file that ends with .html"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, argv: list[str], told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tasks.jsonl", {"responses_create_params": {"input": "x"}})
    write(tmp_path / "R.jsonl", row(), failure())
    done = gym_bridge("view", *argv)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def test_the_verb_serves_until_it_is_ended_and_a_taken_port_is_said(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row())
    command = [sys.executable, "-m", "gym_bridge", "view", str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        with urllib.request.urlopen(url) as reply:
            assert b"R.jsonl" in reply.read()
        port = re.search(r":(\d+)/", url)
        assert port is not None
        done = gym_bridge("view", path, "--port", port[1])
        assert (done.returncode, f"port {port[1]} is taken" in done.stderr) == (2, True)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
