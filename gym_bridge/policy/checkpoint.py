"""Checkpoints: `model/` is a plain Hugging Face directory, `trainer/` holds optimizer state and adapters. No pickle."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from gym_bridge.errors import PolicyError
from gym_bridge.io.jsonl import sync_path
from gym_bridge.policy.placement import Placement

OPTIMIZER = "optimizer"
"""The optimizer's state in `trainer`: a safetensors file of one process, a directory of those of several."""
ADAPTER = Path("trainer") / "adapter"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)


@contextmanager
def checkpoint_aside(directory: Path) -> Iterator[Path]:
    """A new directory that becomes `directory`, synced to disk, when the block ends well, and vanishes when it does not.

    `directory` is at no time a mixture: a kill leaves what stood there, or what was written, or nothing of this name. Raises
    PolicyError when the disk refuses.
    """
    aside, replaced = (directory.with_name(f".{directory.name}.{state}") for state in ("saving", "removed"))
    for left in (aside, replaced):
        shutil.rmtree(left, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for file in [*aside.rglob("*"), aside]:
            sync_path(file)
        if directory.exists():
            directory.rename(replaced)
        aside.rename(directory)
        sync_path(directory.parent)
    except (OSError, SafetensorError) as error:
        raise PolicyError(f"cannot save {directory}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if replaced.exists() and not directory.exists():  # the second renaming failed
            replaced.rename(directory)
        for left in (aside, replaced):
            shutil.rmtree(left, ignore_errors=True)


def write_checkpoint(
    directory: Path,
    *,
    placement: Placement,
    module: PreTrainedModel,
    weights: Mapping[str, Tensor],
    tokenizer_files: Mapping[str, bytes],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    save_adapter: Callable[[Path], None] | None = None,
) -> None:
    """Write `directory/model` and `directory/trainer`. Raises OSError and SafetensorError when the disk refuses.

    `save_adapter` writes `trainer/adapter`, which `weights` then hold merged.
    """
    (directory / "trainer").mkdir(parents=True, exist_ok=True)  # the others make it too
    placement.write_weights(directory / "model", module, weights)
    placement.write_tensors(directory / "trainer" / OPTIMIZER, optimizer)
    if not placement.writes:
        return
    config = json.loads((directory / "model" / "config.json").read_text())
    (directory / "model" / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2))
    for name, content in tokenizer_files.items():
        (directory / "model" / name).write_bytes(content)
    if save_adapter is not None:
        save_adapter(directory / ADAPTER)
    (directory / "trainer" / "state.json").write_text(json.dumps(dict(state), indent=2))


def read_tokenizer_files(directory: Path) -> dict[str, bytes]:
    """The tokenizer's files that a model's directory holds, and its generation settings, by name."""
    return {name: (directory / name).read_bytes() for name in TOKENIZER_FILES if (directory / name).exists()}


def load_trainer_state(
    directory: Path, placement: Placement, present: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer tensors and plain state of a checkpoint; `present` are the optimizer's tensors now.

    Raises PolicyError when they are not there.
    """
    try:
        state = json.loads((directory / "trainer" / "state.json").read_text())
        return placement.read_tensors(directory / "trainer" / OPTIMIZER, present), state
    except (OSError, ValueError, SafetensorError) as error:
        raise PolicyError(f"{directory}: no whole checkpoint: {error}") from error
