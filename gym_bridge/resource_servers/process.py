"""A resource server in a child process, for as long as a `with` block lasts."""

import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from gym_bridge.errors import ServerError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
_ADDRESS = re.compile(r"http://\S+:\d+\b")
_STDERR_TAIL_BYTES = 2000


class ServerProcess:
    """`gym-bridge serve NAME --port PORT` as a child process; port 0 takes a free one.

        with ServerProcess("arithmetic") as server:
            ... server.url ...

    The child ends when its stdin closes, so that it outlives this process by no kind of end. Entering raises ServerError when
    the child dies, or prints no address within 60 s.
    """

    url: str

    def __init__(self, name: str, argv: Sequence[str] = (), *, port: int = 0):
        self._name = name
        self._command = [sys.executable, "-m", "gym_bridge", "serve", name, "--port", str(port), "--until-stdin-closes", *argv]

    def __enter__(self) -> "ServerProcess":
        self._stderr = tempfile.TemporaryFile()  # a pipe that nobody reads would fill
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True)
        try:
            self.url = self._address()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _address(self) -> str:
        assert self._child.stdout is not None
        found: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=_watch, args=(self._child.stdout, found), daemon=True)
        self._reader.start()
        try:
            url = found.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            raise self._error(f"printed no address within {START_TIMEOUT_S:g} s") from None
        if url is None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_TIMEOUT_S)
            raise self._error(f"closed its stdout before it printed its address (exit code {self._child.returncode})")
        return url

    def _error(self, message: str) -> ServerError:
        self._stderr.seek(max(0, self._stderr.seek(0, 2) - _STDERR_TAIL_BYTES))
        tail = self._stderr.read().decode(errors="replace").strip()
        return ServerError(
            f"the process {message}; its stderr ends with: {tail or '(nothing)'}", url=f"resource server {self._name!r}"
        )

    def _stop(self) -> None:
        self._child.terminate()
        try:
            self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._reader.join(STOP_TIMEOUT_S)
        self._stderr.close()


def _watch(stdout: IO[str], found: "queue.SimpleQueue[str | None]") -> None:
    """Put the first address into `found`, None at the end; read on to the end, so that the child never blocks on a full pipe."""
    with stdout:
        for line in stdout:
            if address := _ADDRESS.search(line):
                found.put(address.group())
    found.put(None)
