"""Model directories made of weights: streamed tensor by tensor, in files of bounded size, in a dtype. No pickle is written."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.io.jsonl import sync_path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".distcp")
INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}

Weights = Iterable[tuple[str, Tensor]]


def size_in_bytes(text: str) -> int:
    """`5GB`, `500 MiB` or `1000000` as bytes. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip().upper())
    if found is None or not float(found[1]):
        raise ConfigError(f"no size: {text!r}; write it as 5GB, 500MB or 2GiB")
    return int(float(found[1]) * UNITS[found[2] or ""])


@contextmanager
def directory_aside(output: Path) -> Iterator[Path]:
    """A new directory that becomes `output`, synced to disk, when the block ends well, and vanishes when it does not.

    Raises ConfigError when `output` exists, PolicyError when the disk refuses.
    """
    if os.path.lexists(output):
        raise ConfigError(f"{output} exists; nothing is overwritten: choose another --output")
    aside = output.with_name(f".{output.name}.{os.getpid()}.saving")
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in [*aside.rglob("*"), aside]:
            sync_path(path)
        aside.rename(output)
        sync_path(output.parent)
    except (OSError, SafetensorError) as error:
        raise PolicyError(f"cannot write {output}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_weights(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a directory's safetensors files, one at a time.

    Raises PolicyError for a damaged file and for one that the index names and that is not there.
    """
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118, a reader and no mapping
                    yield name, opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise PolicyError(f"{file}: no whole safetensors file: {error}") from error


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory: those of its index, else all. Raises PolicyError when one or all are missing."""
    index = directory / INDEX
    if index.exists():
        try:
            named = sorted({*json.loads(index.read_bytes())["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PolicyError(f"{index}: no index of weights: {error!r}") from error
        files = [directory / Path(name).name for name in named]
    else:
        files = sorted(directory.glob("*.safetensors"))
    if absent := [file.name for file in files if not file.exists()]:
        raise PolicyError(f"{directory}: not whole: {len(absent)} of {len(files)} weight files are missing, such as {absent[0]}")
    if not files:
        raise PolicyError(f"{directory}: no safetensors files in it")
    return files


def cast(weights: Weights, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """The weights with their floating-point tensors in `dtype`; None leaves them.

    Raises PolicyError for weights that are not finite, or would not be in `dtype`: nobody could use them.
    """
    for name, tensor in weights:
        if tensor.is_floating_point():
            if num_bad := _count_not_finite(tensor):
                raise PolicyError(f"{name}: {num_bad} of {tensor.numel()} weights are NaN or infinite; this model is broken")
            if dtype is not None:
                tensor = tensor.to(dtype)
                if num_bad := _count_not_finite(tensor):
                    raise PolicyError(f"{name}: {num_bad} weights are too large for {_name(dtype)}; choose bfloat16 or float32")
        yield name, tensor


def write_weights(directory: Path, weights: Weights, *, max_shard_bytes: int) -> int:
    """Write safetensors files of at most `max_shard_bytes` each, unless one tensor is larger, and their index when there are
    several; returns the total bytes of the tensors. Holds one file's tensors in memory.
    """
    parts: list[dict[str, int]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0
    for name, tensor in weights:
        if pending and size + tensor.nbytes > max_shard_bytes:
            parts.append(_save_part(directory, len(parts), pending))
            pending, size = {}, 0
        pending[name] = tensor.contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    parts.append(_save_part(directory, len(parts), pending))
    if len(parts) == 1:
        (directory / "part-0.safetensors").rename(directory / "model.safetensors")
        return total
    places: dict[str, str] = {}
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (directory / f"part-{number}.safetensors").rename(directory / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return total


def copy_all_but_weights(source: Path, target: Path) -> None:
    """Copy config, tokenizer, chat templates and whatever else lies in a model's directory, but no weights."""
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.suffix in WEIGHT_SUFFIXES or path.name.endswith(".index.json"):
            continue
        if path.is_file():
            shutil.copyfile(path, target / path.name)
        elif path.name == "additional_chat_templates":
            shutil.copytree(path, target / path.name)


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a model. Raises PolicyError when there is none or it is no object."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise PolicyError(f"{directory / 'config.json'}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(config, dict):
        raise PolicyError(f"{directory / 'config.json'}: expected a JSON object")
    return config


def write_dtype(directory: Path, dtype: torch.dtype) -> None:
    """Let `config.json` say in which dtype the weights are."""
    config = {key: value for key, value in read_config(directory).items() if key != "torch_dtype"}
    (directory / "config.json").write_text(json.dumps(config | {"dtype": _name(dtype)}, indent=2), encoding="utf-8")


def export_adapter(adapter: Path, target: Path, dtype: torch.dtype) -> None:
    """Write a LoRA adapter of peft's layout into the empty directory `target`, in `dtype`."""
    weights = dict(cast(read_weights(adapter), dtype))
    copy_all_but_weights(adapter, target)
    save_file(weights, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def stored_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that most of the weights have."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def _save_part(directory: Path, number: int, weights: dict[str, Tensor]) -> dict[str, int]:
    save_file(weights, directory / f"part-{number}.safetensors", metadata={"format": "pt"})
    return {name: tensor.nbytes for name, tensor in weights.items()}


def _count_not_finite(tensor: Tensor) -> int:
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
