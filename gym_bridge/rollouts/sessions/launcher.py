"""Starts NeMo Gym itself, from its own venv, for as long as a run needs it."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.rollouts.sessions import process_group
from gym_bridge.rollouts.sessions.head import ROUTE, addresses, parse_config
from gym_bridge.rollouts.sessions.process_group import SIGNALS, end_group

VENV_VARIABLE = "GYM_BRIDGE_NEMO_GYM_VENV"
READY_TIMEOUT_S = 600.0
"""NeMo Gym makes a venv for each server when it is started for the first time."""
POLL_S = 0.1
PROBE_TIMEOUT_S = 5.0
TAIL_LINES = 8


class NemoGymProcess:
    """NeMo Gym, run with some of its YAML files; inside `with`, its head server and every server of the files answer.

    `configs` are named as NeMo Gym names them: relative to the working directory or to its own installation. `venv` is the
    environment in which it is installed; without one, the variable GYM_BRIDGE_NEMO_GYM_VENV names it, or `ng_run` or `gym` are
    looked up on PATH. What it prints goes to `log`. `overrides` are further words of its command line.

    It ends with this process, however that one ends. Raises ConfigError where NeMo Gym is not found, ServerError where it ends, or
    is not ready after `timeout_s` seconds.
    """

    def __init__(
        self,
        configs: Sequence[str | Path],
        *,
        log: Path,
        venv: Path | None = None,
        overrides: Sequence[str] = (),
        timeout_s: float = READY_TIMEOUT_S,
    ):
        self.configs, self.log, self.overrides, self.timeout_s = tuple(map(str, configs)), log, tuple(overrides), timeout_s
        told = os.environ.get(VENV_VARIABLE)
        self.venv = venv or (Path(told) if told else None)
        self.head_url = ""
        """Where the head server answers, once it is started."""
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        port = _free_port()
        self.head_url = f"http://127.0.0.1:{port}"
        command = [*launch_command(self.venv), config_paths(self.configs), *self.overrides]
        command += ["++head_server.host=127.0.0.1", f"++head_server.port={port}"]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            # A session of its own: a Ctrl-C at the terminal reaches us alone, and we end all of it.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(self.venv), start_new_session=True
            )
        try:
            self._watch = _watch(self._process.pid)
            self._wait_until_ready(time.monotonic() + self.timeout_s)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process of it: as Ctrl-C would, then with more force. Safe to call again."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            end_group(process.pid, SIGNALS, reap=process.poll)  # it is reaped as the first of its group
        finally:
            process.wait()
            watch, self._watch = self._watch, None
            if watch is not None:  # killed, not told: the number of the group may be another's by now
                watch.kill()
                watch.communicate()

    def tail(self) -> str:
        """The last lines of the log, as one."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return " | ".join([line.strip() for line in lines if line.strip()][-TAIL_LINES:])

    def _wait_until_ready(self, deadline: float) -> None:
        waiting: dict[str, str] | None = None
        while True:
            self._check()
            waiting = self._not_ready(waiting)
            if waiting is not None and not waiting:
                return
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(waiting)) if waiting else "its head server"
                message = (
                    f"NeMo Gym was not ready after {self.timeout_s:g} s: no answer from {missing}; its log {self.log} ends with"
                )
                raise ServerError(f"{message}: {self.tail()}", url=self.head_url)
            time.sleep(POLL_S)

    def _check(self) -> None:
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            message = f"NeMo Gym ended with status {code} before it was ready; its log {self.log} ends with: {self.tail()}"
            raise ServerError(message, url=self.head_url)

    def _not_ready(self, waiting: dict[str, str] | None) -> dict[str, str] | None:
        """Of the servers, those that do not answer yet; None while the head does not. Any HTTP answer counts."""
        if waiting is None:
            try:
                reply = httpx.get(f"{self.head_url}{ROUTE}", timeout=PROBE_TIMEOUT_S, trust_env=False)
            except httpx.HTTPError:
                return None
            if reply.status_code >= 300:
                return None
            waiting = addresses(parse_config(reply.content, url=self.head_url), url=self.head_url)
        return {name: url for name, url in waiting.items() if not _answers(url)}


def launch_command(venv: Path | None) -> list[str]:
    """The command that starts NeMo Gym: of its venv, or found on PATH. Raises ConfigError where there is none."""
    place = str(venv / "bin") if venv is not None else None
    for name, *words in (("ng_run",), ("gym", "env", "start")):
        found = shutil.which(name, path=place)
        if found is not None:
            return [found, *words]
    where = f"in {place}" if place is not None else "on PATH"
    raise ConfigError(
        f"NeMo Gym is not installed: neither ng_run nor gym is {where}; install nemo-gym into a venv of its own "
        f"and name that venv in {VENV_VARIABLE}"
    )


def config_paths(configs: Sequence[str]) -> str:
    """The word of NeMo Gym's command line that names its YAML files, quoted for Hydra's grammar."""
    quoted = ("'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'" for path in configs)
    return f"+config_paths=[{','.join(quoted)}]"


def _environment(venv: Path | None) -> dict[str, str]:
    """Ours, with the programs of its venv first: it starts others by name."""
    if venv is None:
        return dict(os.environ)
    return {**os.environ, "VIRTUAL_ENV": str(venv), "PATH": os.pathsep.join([str(venv / "bin"), os.environ.get("PATH", "")])}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=PROBE_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return False
    return True


def _watch(group: int) -> subprocess.Popen[bytes]:
    """A process that ends the group once this one is gone, as after a kill -9, where nothing of ours runs any more."""
    command = [sys.executable, "-I", "-S", str(process_group.__file__), str(group)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
