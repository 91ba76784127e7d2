"""Models of other layouts: what a config expects, pickled weights that are trusted, and the proof that transformers loads them."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from gym_bridge.errors import PolicyError
from gym_bridge.policy.exporting import read_config, read_weights
from gym_bridge.policy.loading import SCORE, load_module
from gym_bridge.schemas.seams import Head

PICKLED_WEIGHTS = ("pytorch_model*.bin", "model*.bin")


def head_of(directory: Path) -> Head:
    """The head that `config.json` names: scalar for sequence classification, as reward models are."""
    names = read_config(directory).get("architectures") or [""]
    return "scalar" if str(names[0]).endswith("ForSequenceClassification") else "lm"


def expected_shapes(directory: Path) -> tuple[dict[str, torch.Size], dict[str, str]]:
    """Names and shapes of the weights of the model that `config.json` describes, and which of them are tied to which other.

    Computes nothing and holds no weights. Raises PolicyError when transformers does not know the model.
    """
    kind = AutoModelForSequenceClassification if head_of(directory) == "scalar" else AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(directory)
        with torch.device("meta"):
            module = kind.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise PolicyError(f"{directory}: transformers cannot make this model: {error}") from error
    return {name: tensor.shape for name, tensor in module.state_dict().items()}, dict(module.all_tied_weights_keys)


def check_loads(directory: Path) -> None:
    """Load the model once with transformers, in the dtype that its weights have. Raises PolicyError when it cannot be trained."""
    head = head_of(directory)
    names = set()
    dtype = torch.float32
    for name, tensor in read_weights(directory):
        names.add(name)
        dtype = tensor.dtype if tensor.is_floating_point() else dtype
    if head == "scalar" and SCORE not in names:
        raise PolicyError(f"{directory}: no weights for {SCORE}; expected a reward model's head")
    load_module(directory, device=torch.device("cpu"), dtype=dtype, head=head)


def read_pickled_weights(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of `pytorch_model*.bin` files, one file at a time. Only tensors and plain values are unpickled.

    Raises PolicyError for a damaged file and for one that the index names and that is not there.
    """
    for file in _pickled_files(directory):
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise PolicyError(f"{file}: no weights that can be read: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(weights, dict) or not all(isinstance(one, Tensor) for one in weights.values()):
            raise PolicyError(f"{file}: expected names and tensors")
        yield from weights.items()


def _pickled_files(directory: Path) -> list[Path]:
    index = directory / "pytorch_model.bin.index.json"
    if not index.exists():
        return sorted(file for pattern in PICKLED_WEIGHTS for file in directory.glob(pattern))
    try:
        files = sorted({directory / Path(name).name for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PolicyError(f"{index}: no index of weights: {error!r}") from error
    if absent := [file.name for file in files if not file.exists()]:
        raise PolicyError(f"{directory}: not whole: {absent[0]} is missing")
    return files
