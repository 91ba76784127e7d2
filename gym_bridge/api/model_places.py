"""What lies at a path: a run, a checkpoint, a model in one of its layouts, an adapter. Told by names and headers, without torch."""

import json
import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from gym_bridge.errors import ConfigError, nearest
from gym_bridge.io.run_directory import RunDirectory, models_beside

SHARDING_INFO = "DCP_SHARDING_INFO"
MAX_HEADER_BYTES = 100_000_000


class Layout(StrEnum):
    """How weights are stored."""

    HUGGING_FACE = "Hugging Face directory"
    PICKLED_HUGGING_FACE = "Hugging Face directory with pickled weights"
    DCP = "DCP in safetensors"
    PICKLED_DCP = "pickled DCP"
    ADAPTER = "LoRA adapter"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlace:
    """A model, and what stands around it."""

    weights: Path
    """The directory of the weights."""
    layout: Layout
    owner: str = ""
    """What holds it: `run`, `checkpoint`, `NeMo RL checkpoint`; empty for the weights' directory itself."""
    checkpoint: Path | None = None
    """Ours: the directory with `model/` and `trainer/`."""
    tokenizer: Path | None = None
    """A directory with the tokenizer alone."""
    nemo_rl_config: Path | None = None
    """The settings that NeMo RL wrote beside it."""

    @property
    def adapter(self) -> Path | None:
        """The adapter that was trained to this checkpoint's model."""
        directory = self.checkpoint / "trainer" / "adapter" if self.checkpoint else None
        return directory if directory and (directory / "adapter_config.json").exists() else None


def locate_model(path: Path) -> ModelPlace:
    """The model at `path`: of a run its last checkpoint, of NeMo RL's results their last step. Raises ConfigError."""
    if path.is_symlink():  # checkpoints/best
        path = path.resolve()
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise ConfigError(f"{path}: expected a directory, found {found}{nearest(path.name, models_beside(path))}")
    for find in (_ours, _nemo_rl, _plain):
        if (place := find(path)) is not None:
            return place
    raise ConfigError(
        f"{path}: no model in it; expected a run, a checkpoint, a Hugging Face directory, a DCP directory or NeMo RL's step_N"
        + nearest(path.name, models_beside(path), at_most=8)
    )


def layout_of(directory: Path) -> Layout | None:
    """How the weights in `directory` are stored; None when it holds none."""
    has_config = (directory / "config.json").exists()
    if (directory / "adapter_config.json").exists() and not has_config:
        return Layout.ADAPTER
    if file := next(iter(sorted(directory.glob("*.safetensors"))), None):
        sharded = SHARDING_INFO in safetensors_header(file).get("__metadata__", {})
        return Layout.DCP if sharded or not has_config else Layout.HUGGING_FACE
    if (directory / ".metadata").exists():
        return Layout.PICKLED_DCP
    if has_config:
        pickled = any(directory.glob("pytorch_model*.bin")) or any(directory.glob("model*.bin"))
        return Layout.PICKLED_HUGGING_FACE if pickled else Layout.HUGGING_FACE
    return None


def safetensors_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file; empty when it has none that can be read, which whoever reads the weights says."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(length, MAX_HEADER_BYTES)))
    except (OSError, struct.error, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def step_number(directory: Path) -> int | None:
    """10 for `step_00000010` and for NeMo RL's `step_10`."""
    found = re.fullmatch(r"step_(\d+)", directory.name)
    return int(found[1]) if found else None


def _ours(path: Path) -> ModelPlace | None:
    if (path / "model" / "config.json").exists():
        return ModelPlace(weights=path / "model", layout=_layout(path / "model"), owner="checkpoint", checkpoint=path)
    if path.name == "model" and (path.parent / "trainer").is_dir() and (path / "config.json").exists():
        return ModelPlace(weights=path, layout=_layout(path), checkpoint=path.parent)
    last = RunDirectory(path).last_checkpoint()
    if last is None:
        return None
    return ModelPlace(weights=last / "model", layout=_layout(last / "model"), owner="run", checkpoint=last)


def _nemo_rl(path: Path) -> ModelPlace | None:
    """`step_N/policy/weights`, where NeMo RL's newer backend adds `model/` and, when asked, `model/consolidated/`."""
    if not (path / "policy" / "weights").is_dir():
        steps = [one for one in path.glob("step_*") if (one / "policy" / "weights").is_dir() and step_number(one) is not None]
        if not steps:
            return None
        path = max(steps, key=lambda one: step_number(one) or 0)
    weights = path / "policy" / "weights"
    for directory in (weights / "model" / "consolidated", weights / "consolidated", weights / "model", weights):
        if directory.is_dir() and (layout := layout_of(directory)) is not None:
            tokenizers = (path / "policy" / "tokenizer", weights / "tokenizer")
            return ModelPlace(
                weights=directory,
                layout=layout,
                owner="NeMo RL checkpoint",
                tokenizer=next((one for one in tokenizers if one.is_dir()), None),
                nemo_rl_config=path / "config.yaml" if (path / "config.yaml").exists() else None,
            )
    raise ConfigError(f"{weights}: neither safetensors files nor a DCP's .metadata; expected NeMo RL's weights")


def _plain(path: Path) -> ModelPlace | None:
    layout = layout_of(path)
    return ModelPlace(weights=path, layout=layout) if layout else None


def _layout(directory: Path) -> Layout:
    return layout_of(directory) or Layout.HUGGING_FACE
