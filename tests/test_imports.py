"""What an import and a `--help` load, seen in fresh interpreters."""

import json
import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "transformers", "vllm", "ray", "pydantic", "omegaconf", "aiohttp", "openai", "numpy", "polars"}


def loaded_after(program: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after `program`."""
    ending = "\nimport json, sys\nsys.stderr.write(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program + ending], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_after("import gym_bridge; gym_bridge.__version__; gym_bridge.ConfigError")
    assert "gym_bridge" in loaded
    assert loaded & HEAVY == set()


def test_the_help_of_the_top_level_loads_nothing_heavy():
    program = "from gym_bridge.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code"
    loaded = loaded_after(program)
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_the_page_needs_only_what_the_base_install_has():
    loaded = loaded_after("import gym_bridge.viewer.serving, gym_bridge.viewer.shared_page")
    assert loaded & {"torch", "transformers", "vllm", "ray", "safetensors", "peft"} == set()


@pytest.mark.parametrize(
    "verb",
    [
        "collect",
        "transform",
        "audit",
        "train sft",
        "train grpo",
        "eval run",
        "view",
        "serve",
        "tasks",
        "quickstart",
        "checkpoint export",
        "nemo-rl import",
    ],
)
def test_the_help_of_a_verb_loads_no_torch(verb: str):
    argv = [*verb.split(), "--help"]
    program = f"from gym_bridge.cli.main import main\ntry:\n    main({argv})\nexcept SystemExit as end:\n    assert not end.code"
    assert loaded_after(program) & {"torch", "transformers", "vllm", "ray"} == set()


def test_collecting_with_a_remote_model_needs_no_torch():
    names = ["rollouts.collector", "rollouts.models.responses", "rollouts.models.chat", "transforms.engine", "api.collectors"]
    program = "import " + ", ".join(f"gym_bridge.{name}" for name in names)
    assert loaded_after(program) & {"torch", "transformers", "vllm", "ray"} == set()


def test_every_exported_name_exists_and_is_listed():
    import gym_bridge

    assert {name: getattr(gym_bridge, name).__name__ for name in gym_bridge.__all__ if name != "__version__"} == {
        name: name for name in gym_bridge.__all__ if name != "__version__"
    }
    with pytest.raises(AttributeError, match="no attribute 'colect'"):
        gym_bridge.colect  # noqa: B018  # pyright: ignore


def test_how_long_the_help_takes_is_said_and_not_judged(capsys: pytest.CaptureFixture[str]):
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "gym_bridge", "--help"], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    with capsys.disabled():
        print(f"\ngym-bridge --help: {seconds * 1000:.0f} ms (aim: 250 ms)")
    assert "Verbs:" in done.stdout
