"""What a process of a role is: a command, its environment, and where its lines go. Imports no Ray."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ADDRESS_VARIABLE = "GYM_BRIDGE_NODE_ADDRESS"
"""In the environment of a process that Ray has placed: its machine's address, as the others reach it."""
PASSED_ON = (
    *("GYM_BRIDGE_", "HF_", "HUGGING_FACE_", "TRANSFORMERS_", "TOKENIZERS_", "TIKTOKEN_", "WANDB_", "MLFLOW_", "OPENAI_"),
    *("NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "VLLM_", "OMP_", "MKL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "XDG_CACHE_HOME"),
)
"""How those variables begin that a command's environment hands on to all machines; the rest is each machine's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One process, anywhere."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Besides the environment of the machine."""
    directory: Path
    """Where it runs; on a machine without it, in the home directory."""
    log: Path
    """Where its lines go, at the end of what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process runs."""

    address: str
    """Of its machine."""
    port: int
    """Nobody listens there yet."""


Plan = Callable[[Sequence[Place]], Sequence[Command]]
"""The commands of processes that belong together, by their places."""


def _nobody(places: Sequence[Place]) -> None:
    """Nobody is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Processes that serve others, each by itself."""

    role: str
    count: int
    command: Callable[[int, Place], Command]
    """The command of one of them, by its number and place."""
    tell: Callable[[Sequence[Place]], None] = _nobody
    """Told of their places, of those that have one, whenever these change."""


def passed_on(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that go to all machines."""
    return {name: value for name, value in environment.items() if name.upper().startswith(PASSED_ON)}


def own_modules() -> dict[str, str]:
    """Where our interpreter finds modules on the other machines: the user's own come after ours, whatever they are called."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    directory = str(Path.cwd())
    here = [directory] if {"", directory} & {*sys.path} else []
    return {"PYTHONPATH": os.pathsep.join(one for one in (*named, *here) if one)}


def python(own: str | None) -> list[str]:
    """The interpreter of a role, and that it looks for no modules beside what it runs."""
    return [own or sys.executable, "-P"]
