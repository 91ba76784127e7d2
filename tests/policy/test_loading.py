"""GGUF files become directories once, however many ask for them."""

import subprocess
import sys

import pytest

from gym_bridge.hub import resolve

UNPACK = "import sys; from gym_bridge.api.models import model_directory; print(model_directory(sys.argv[1]))"


@pytest.mark.slow
def test_processes_that_begin_together_unpack_a_model_once(tmp_path):
    embedded = resolve("smollm2-135m")
    file = tmp_path / embedded.name
    file.symlink_to(embedded)
    directory = file.with_suffix("")
    left = tmp_path / f".{directory.name}.unpacking"  # by a process that was killed
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")

    asking = [
        subprocess.Popen([sys.executable, "-c", UNPACK, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    replies = [one.communicate(timeout=120) for one in asking]
    assert [one.returncode for one in asking] == [0, 0], replies
    assert {told.strip() for told, _ in replies} == {str(directory)}
    assert not left.exists()
    assert (directory / "config.json").exists()
    assert (directory / "model.safetensors").stat().st_size > 200_000_000
