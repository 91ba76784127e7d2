"""NeMo Gym as a child process: started, waited for, and ended with all that it started. A script stands in for it here."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.rollouts.sessions.launcher import VENV_VARIABLE, NemoGymProcess, config_paths, launch_command

STAND_IN = '''#!{python}
"""Serves a head and, in a process of its own, one server; `+mood=...` says how it behaves."""
import json, os, signal, socket, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

words = dict(word.lstrip("+").split("=", 1) for word in sys.argv[1:])
mood = words.get("mood", "good")
print("command:", json.dumps(sys.argv[1:]), flush=True)
if mood == "dying":
    print("the last words", flush=True)
    sys.exit(3)
if mood == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.server.config is None:
            self.send_response(404)
            self.end_headers()
            return
        body = json.dumps(json.dumps(self.server.config)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass

def serve(listening, config):
    server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.config = config
    server.serve_forever()

def listen(port):
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen()
    return listening

if mood != "silent":
    head = listen(int(words["head_server.port"]))
    resources = listen(0)
    port = resources.getsockname()[1]
    if mood == "half":
        resources.close()
    config = {{"r": {{"resources_servers": {{"x": {{"entrypoint": "app.py", "host": "127.0.0.1", "port": port}}}}}}}}
    if os.fork() == 0:
        print("child:", os.getpid(), flush=True)
        if mood == "half":
            signal.pause()
        serve(resources, None)
    resources.close()
    try:
        serve(head, config)
    except KeyboardInterrupt:
        os.wait()
        sys.exit()
signal.pause()
'''


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A venv whose ng_run is the stand-in."""
    script = tmp_path / "venv" / "bin" / "ng_run"
    script.parent.mkdir(parents=True)
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(0o755)
    return tmp_path / "venv"


def running(venv: Path, *, mood: str = "good", timeout_s: float = 20) -> NemoGymProcess:
    return NemoGymProcess(
        ["a.yaml"], log=venv / "logs" / "nemo_gym.log", venv=venv, overrides=[f"+mood={mood}"], timeout_s=timeout_s
    )


def child_of(process: NemoGymProcess) -> int:
    """The process that the stand-in started."""
    (line,) = [line for line in process.log.read_text().splitlines() if line.startswith("child:")]
    return int(line.split()[1])


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_inside_the_block_the_head_and_its_servers_answer_and_after_it_nothing_is_left(venv: Path):
    with running(venv) as process:
        answer = httpx.get(f"{process.head_url}/global_config_dict_yaml")
        port = json.loads(answer.json())["r"]["resources_servers"]["x"]["port"]
        assert httpx.get(f"http://127.0.0.1:{port}").status_code == 404
        child = child_of(process)
        assert alive(child)
    assert not alive(child)
    with pytest.raises(httpx.ConnectError):
        httpx.get(process.head_url)


def test_it_is_told_its_files_and_where_its_head_is(venv: Path):
    with running(venv) as process:
        told = json.loads(process.log.read_text().splitlines()[0].removeprefix("command: "))
    port = process.head_url.rpartition(":")[2]
    assert told == ["+config_paths=['a.yaml']", "+mood=good", "++head_server.host=127.0.0.1", f"++head_server.port={port}"]


def test_an_error_inside_the_block_ends_it_as_well(venv: Path):
    process = running(venv)
    with pytest.raises(KeyboardInterrupt), process:
        raise KeyboardInterrupt
    assert not alive(child_of(process))


def test_a_kill_of_the_process_that_started_it_ends_it_as_well(venv: Path):
    script = """
import sys, time
from pathlib import Path
from gym_bridge.rollouts.sessions.launcher import NemoGymProcess
venv = Path(sys.argv[1])
with NemoGymProcess(["a.yaml"], log=venv / "log", venv=venv, timeout_s=20) as process:
    print(process.head_url, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(venv)], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        head_url = starter.stdout.readline().strip()
        (line,) = [line for line in (venv / "log").read_text().splitlines() if line.startswith("child:")]
        child = int(line.split()[1])
        assert alive(child)
        starter.kill()
    deadline = time.monotonic() + 15
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)
    with pytest.raises(httpx.ConnectError):
        httpx.get(head_url)


def test_what_does_not_heed_an_interrupt_is_ended_with_more_force(venv: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "gym_bridge.rollouts.sessions.launcher.SIGNALS", ((signal.SIGINT, 0.2), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
    )
    process = running(venv, mood="stubborn")
    with process:
        child = child_of(process)
    assert not alive(child)


def test_the_end_of_its_log_is_told_when_it_dies(venv: Path):
    with pytest.raises(ServerError, match=r"ended with status 3 .*nemo_gym.log ends with: .* \| the last words"):
        running(venv, mood="dying").__enter__()


@pytest.mark.parametrize(("mood", "missing"), [("silent", "its head server"), ("half", "no answer from r")])
def test_one_that_is_never_ready_is_ended_at_the_deadline(venv: Path, mood: str, missing: str):
    process = running(venv, mood=mood, timeout_s=1.5)
    started = time.monotonic()
    with pytest.raises(ServerError, match=f"not ready after 1.5 s: .*{missing}"):
        process.__enter__()
    assert time.monotonic() - started < 10
    if mood == "half":
        assert not alive(child_of(process))


def test_its_venv_is_named_by_the_environment_where_nothing_else_names_it(venv: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VENV_VARIABLE, str(venv))
    assert NemoGymProcess([], log=venv / "log").venv == venv
    assert NemoGymProcess([], log=venv / "log", venv=Path("/else")).venv == Path("/else")


def test_the_command_is_looked_up_on_path_where_there_is_no_venv(venv: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(venv / "bin"))
    assert launch_command(None) == [str(venv / "bin" / "ng_run")]
    (venv / "bin" / "ng_run").rename(venv / "bin" / "gym")
    assert launch_command(None) == [str(venv / "bin" / "gym"), "env", "start"]


def test_without_nemo_gym_the_error_says_how_to_name_it(tmp_path: Path):
    with pytest.raises(ConfigError, match=f"neither ng_run nor gym is in .*{VENV_VARIABLE}"):
        launch_command(tmp_path)


def test_paths_are_quoted_for_hydra():
    assert config_paths(["a b.yaml", "it's,[x].yaml"]) == r"+config_paths=['a b.yaml','it\'s,[x].yaml']"
