"""A child process that serves, seen through shell scripts that stand where the interpreter would."""

import os
import sys
from pathlib import Path

import pytest

from gym_bridge.errors import ServerError
from gym_bridge.resource_servers import process
from gym_bridge.resource_servers.process import ServerProcess


def script(folder: Path, text: str) -> str:
    """A program that stands in for the Python interpreter; it ignores its arguments."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def test_a_server_process_gives_its_address_and_ends_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = f'echo $$ "$@" > {tmp_path}/started; echo loading; echo "arithmetic: http://127.0.0.1:4711"; exec sleep 100'
    monkeypatch.setattr(sys, "executable", script(tmp_path, text))
    with ServerProcess("arithmetic", ["--shuffle-rewards"]) as server:
        assert server.url == "http://127.0.0.1:4711"
        pid, *argv = (tmp_path / "started").read_text().split()
        os.kill(int(pid), 0)
    assert argv == ["-m", "gym_bridge", "serve", "arithmetic", "--port", "0", "--until-stdin-closes", "--shuffle-rewards"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_server_process_that_dies_early_or_never_speaks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", script(tmp_path, "echo boom >&2; exit 3"))
    with pytest.raises(ServerError, match=r"exit code 3\); its stderr ends with: boom"), ServerProcess("arithmetic"):
        pass
    monkeypatch.setattr(sys, "executable", script(tmp_path, "exec sleep 100"))
    monkeypatch.setattr(process, "START_TIMEOUT_S", 0.2)
    with (
        pytest.raises(ServerError, match=r"no address within 0.2 s; its stderr ends with: \(nothing\)"),
        ServerProcess("arithmetic"),
    ):
        pass


def test_a_server_process_that_ignores_termination_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = f"trap '' TERM; echo $$ > {tmp_path}/started; echo http://127.0.0.1:1; while :; do sleep 0.1; done"
    monkeypatch.setattr(sys, "executable", script(tmp_path, text))
    monkeypatch.setattr(process, "STOP_TIMEOUT_S", 0.2)
    with ServerProcess("arithmetic"):
        pid = int((tmp_path / "started").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
