"""A real vLLM server as a process, which can be killed and started again."""

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

START_TIMEOUT_S = 180.0
TRAINING = {"VLLM_SERVER_DEV_MODE": "1"}
"""Environment of a server that a training pushes weights to; it also needs `--enable-scale-out`."""


def vllm_python() -> Path:
    """The interpreter of the venv with vLLM; skips the test where there is none."""
    venv = Path(os.environ.get("GYM_BRIDGE_VLLM_VENV") or Path(__file__).parents[2] / ".venv-vllm")
    python = venv / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no vLLM at {venv}: make vllm-venv, or set GYM_BRIDGE_VLLM_VENV")
    return python


class VLLMProcess:
    """`vllm serve` of a model's directory on a free port of its own, which it keeps over starts."""

    def __init__(self, model: Path, *words: object, environment: Mapping[str, str] = {}):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        command = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
        self._command: Sequence[object] = [*command, "--port", self.port, "--enforce-eager", *words]
        self._environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **environment}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as this
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to start; `wait` for it to be ready."""
        self._server = subprocess.Popen(
            [str(one) for one in self._command],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
            cwd="/",
            start_new_session=True,
        )

    def wait(self) -> None:
        """Return when it serves; fails the test when it does not."""
        assert self._server is not None, "it was started"
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._server.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.5)
            else:
                return
        self._log.seek(0)
        told = self._log.read().decode(errors="replace")[-3000:]
        pytest.fail(f"vLLM was not ready after {START_TIMEOUT_S:g} s, or ended with {self._server.poll()}:\n{told}")

    def kill(self) -> None:
        """End it at once, with all its workers."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End it."""
        self._end(signal.SIGTERM)
        self._log.close()

    def _end(self, how: signal.Signals) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        os.killpg(server.pid, how)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
