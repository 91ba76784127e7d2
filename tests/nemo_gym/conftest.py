"""Real NeMo Gym servers, served from the venv that `make nemo-gym-venv` makes."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from gym_bridge.schemas.rollouts import Row
from tests.nemo_gym.replay import ModelServer

ROOT = Path(__file__).parents[2]
SERVED = (
    "example_single_tool_call",
    "example_multi_step",
    "workplace_assistant",
    "mcqa",
    "example_mcp_weather",
    "example_multi_turn_gymnasium",
    "example_session_state_mgmt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NemoGym:
    """Where everything is served."""

    head: str
    resources: dict[str, str]
    agents: dict[str, str]
    packages: Path
    """NeMo Gym's installation."""

    def tasks(self, name: str) -> list[Row]:
        """The example tasks of a server."""
        lines = (self.packages / "resources_servers" / name / "data" / "example.jsonl").read_bytes().splitlines()
        return [orjson.loads(line) for line in lines if line.strip()]


@pytest.fixture(scope="session")
def nemo_gym_venv() -> Path:
    """The venv with NeMo Gym."""
    venv = Path(os.environ.get("GYM_BRIDGE_NEMO_GYM_VENV") or ROOT / ".venv-nemo-gym")
    if not (venv / "bin" / "python").exists():
        pytest.skip(f"no NeMo Gym in {venv}: run `make nemo-gym-venv`, or name its venv in GYM_BRIDGE_NEMO_GYM_VENV")
    return venv


@pytest.fixture(scope="session")
def model_server() -> Iterator[ModelServer]:
    """The model that NeMo Gym's agents ask."""
    with ModelServer().serving() as server:
        yield server


@contextmanager
def nemo_gym_serving(venv: Path, model_server: ModelServer, names: Sequence[str], directory: Path) -> Iterator[NemoGym]:
    """Servers of NeMo Gym in one process, and its agents before servers that run elsewhere (`name=address`)."""
    (packages,) = venv.glob("lib/python3*/site-packages")
    command = [str(venv / "bin" / "python"), str(Path(__file__).with_name("serve.py"))]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--model-url", f"{model_server.url}/v1", *names], stdout=subprocess.PIPE, stderr=log, cwd=directory
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (directory / "log").read_text()[-3000:]
        yield NemoGym(**json.loads(line), packages=packages)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def nemo_gym(nemo_gym_venv: Path, model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NemoGym]:
    """All servers of these tests, in one process."""
    with nemo_gym_serving(nemo_gym_venv, model_server, SERVED, tmp_path_factory.mktemp("nemo_gym")) as served:
        yield served
