"""Installing the package from the checkout into environments of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def test_the_base_install_works_with_uv_and_brings_no_torch(tmp_path: Path):
    tools, environment = tmp_path / "tools", tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
    subprocess.run([str(tools / "bin" / "pip"), "install", "--quiet", "uv"], check=True)
    uv = str(tools / "bin" / "uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
    python = str(environment / "bin" / "python")
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "-e", str(ROOT)], check=True)
    installed = subprocess.run([uv, "pip", "list", "--python", python], check=True, capture_output=True, text=True).stdout
    assert "gym-bridge" in installed
    assert not [line for line in installed.splitlines() if line.split()[0] in ("torch", "transformers", "vllm", "ray")]

    tasks = tmp_path / "tasks.jsonl"
    command = str(environment / "bin" / "gym-bridge")
    subprocess.run([command, "tasks", "arithmetic", "--num-tasks", "3", "--output", str(tasks)], check=True, cwd=tmp_path)
    assert len(tasks.read_text().splitlines()) == 3
    training = [command, "train", "sft", "--config", "sft/tiny", f"data.train={tasks}"]
    refused = subprocess.run(training, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "gym-bridge: training needs the 'train' extra: pip install 'gym-bridge[train]'\n"
