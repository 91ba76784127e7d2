"""A real vLLM on the CPU that serves the small embedded model, for as long as the session lasts."""

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.hub import EMBEDDED, resolve
from gym_bridge.tokens.chatml import TEMPLATE
from tests.vllm.playing import CONTEXT_LENGTH, MODEL, ServedModel

START_TIMEOUT_S = 180.0


@pytest.fixture(scope="session")
def model_directory() -> Path:
    """The embedded model as a Hugging Face directory."""
    from gym_bridge.policy.loading import unpack_gguf

    try:
        file = resolve(EMBEDDED)
    except ConfigError as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    return unpack_gguf(file, file.with_suffix(""), plain_chatml_template=TEMPLATE)


@pytest.fixture(scope="session")
def served(model_directory: Path) -> Iterator[ServedModel]:
    """The model behind vLLM's OpenAI-compatible server, with our chat template and vLLM's own tool parser."""
    venv = Path(os.environ.get("GYM_BRIDGE_VLLM_VENV") or Path(__file__).parents[2] / ".venv-vllm")
    python = venv / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no vLLM at {venv}: make vllm-venv, or set GYM_BRIDGE_VLLM_VENV")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", model_directory, "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", port, "--enforce-eager", "--gpu-memory-utilization", "0.4", "--dtype", "float32"),
        *("--max-model-len", CONTEXT_LENGTH, "--chat-template", TEMPLATE),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [str(one) for one in command], env=environment, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield ServedModel(url=f"http://127.0.0.1:{port}/v1", directory=model_directory)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
        else:
            return
    log.seek(0)
    told = log.read().decode(errors="replace")[-3000:]
    pytest.fail(f"vLLM was not ready after {START_TIMEOUT_S:g} s, or ended with {server.poll()}:\n{told}")
