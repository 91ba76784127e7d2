"""The wheel: what is in it, and that it runs without the checkout."""

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    pytest.importorskip("hatchling", reason="building without a network needs hatchling: pip install hatchling")
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """The files in the wheel."""
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (one for one in opened.namelist() if one.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(opened.read(name))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the installed wheel and nothing else."""
    directory = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(directory), str(wheel)]
    subprocess.run(command, check=True)
    return directory


def run(installed: Path, directory: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *argv], cwd=directory, env=environment, capture_output=True, text=True, check=False)


def test_every_file_of_the_package_is_in_the_wheel_and_nothing_else(names: set[str]):
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gym_bridge").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == ours
    assert {Path(name).suffix for name in ours} >= {".py", ".yaml", ".jinja", ".jsonl", ".md", ".typed", ".html", ".css", ".js"}


def test_no_link_no_test_and_no_fixture_is_in_the_wheel(names: set[str], wheel: Path):
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"gym_bridge"}
    with zipfile.ZipFile(wheel) as opened:
        assert [one.filename for one in opened.infolist() if (one.external_attr >> 16) & 0o170000 == 0o120000] == []


def test_the_metadata_has_extras_licence_and_script(metadata: Message, names: set[str], wheel: Path):
    from gym_bridge import __version__

    assert (metadata["Name"], metadata["Version"]) == ("gym-bridge", __version__)
    assert set(metadata.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])
    assert metadata["License-Expression"] == PROJECT["license"]
    assert any(re.fullmatch(r"gym_bridge-.*\.dist-info/licenses/LICENSE", name) for name in names)
    assert "# gym-bridge" in str(metadata.get_payload())
    required = metadata.get_all("Requires-Dist") or []
    assert not [one for one in required if one.startswith(("torch", "transformers", "vllm", "ray")) and "extra ==" not in one]
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (one for one in names if one.endswith(".dist-info/entry_points.txt"))
        assert "gym-bridge = gym_bridge.cli.main:main" in opened.read(name).decode()


def test_the_installed_package_runs_outside_the_checkout(installed: Path, tmp_path: Path):
    where = run(installed, tmp_path, "-c", "import gym_bridge; print(gym_bridge.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed)
    helped = run(installed, tmp_path, "-m", "gym_bridge", "--help")
    assert helped.returncode == 0
    assert "Verbs:" in helped.stdout
    made = run(installed, tmp_path, "-m", "gym_bridge", "tasks", "arithmetic", "--num-tasks", "4", "--output", "tasks.jsonl")
    assert (made.returncode, made.stdout, made.stderr) == (0, "tasks.jsonl: 4 tasks\n", "")
    assert len((tmp_path / "tasks.jsonl").read_text().splitlines()) == 4


def test_the_installed_package_finds_its_data(installed: Path, tmp_path: Path):
    dry = run(installed, tmp_path, "-m", "gym_bridge", "train", "sft", "--config", "sft/tiny", "data.train=x", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    rollouts = ROOT / "fixtures" / "nemo_gym" / "workplace_assistant.jsonl"
    viewed = run(installed, tmp_path, "-m", "gym_bridge", "view", str(rollouts), "--export", "page.html")
    assert (viewed.returncode, viewed.stderr) == (0, "")
    assert "calls a tool" in (tmp_path / "page.html").read_text()
    program = (
        "from gym_bridge.tokens.chatml import TEMPLATE; from gym_bridge.recipes.quickstart.job import SHIPPED_ROLLOUTS as s;"
        "assert TEMPLATE.is_file() and s.is_file(); print(s)"
    )
    found = run(installed, tmp_path, "-c", program)
    assert Path(found.stdout.strip()).is_relative_to(installed), found.stderr
