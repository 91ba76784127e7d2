"""Where a policy's weights are: whole in this process, or in shards over several (`policy.parallel`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from gym_bridge.policy.adapters import Adapters
from gym_bridge.policy.context_parallel import TokenShare
from gym_bridge.policy.distributed_files import read_distributed
from gym_bridge.policy.family import ModelFamily
from gym_bridge.policy.loading import resolve_device
from gym_bridge.policy.reading import Reading, head_for, open_module
from gym_bridge.schemas.policy_settings import PolicySettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model that is open in a placement."""

    module: PreTrainedModel
    around: Callable[[Callable[[], Any]], Any]
    """Calls a function that computes with the module: inside, its weights can be used."""
    adapters: Adapters | None = None
    """Those beside its layers, with their first values."""


class Placement(Protocol):
    """Where weights are, and which part of a step is computed here. All of its processes call its methods in the same order."""

    device: torch.device
    writes: bool
    """True in the process that writes what is there once."""
    num_shares: int
    """Parts into which the microbatches of a step are dealt out."""
    token_multiple: int
    """Of which the tokens of a pack are a multiple."""
    token_share: TokenShare | None
    """Which tokens of a pack are computed here; None: all."""

    def open(self, family: ModelFamily, directory: Path, settings: PolicySettings, *, reading: Reading) -> Opened:
        """The model of a directory in evaluation mode, with the adapters that `settings` ask for; whole in float32, in shards in
        the master dtype. Raises ConfigError and PolicyError."""
        ...

    def read_weights(self, weights: Mapping[str, Tensor], family: ModelFamily, directory: Path, *, reading: Reading) -> None:
        """Give the `weights` of an open model the values of another directory. Raises PolicyError."""
        ...

    def write_weights(self, directory: Path, module: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
        """Write a Hugging Face directory of these weights of `module`. Raises OSError and SafetensorError when the disk refuses."""
        ...

    def write_tensors(self, stem: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write named tensors, as `stem.safetensors` or as files in a directory `stem`. Raises as `write_weights`."""
        ...

    def read_tensors(self, stem: Path, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `write_tensors` of any number of processes wrote; `present` are such tensors of here. Raises OSError,
        SafetensorError and PolicyError."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor of which this process may hold a shard."""
        ...

    def dealt(self, parts: Sequence[T]) -> list[tuple[T, bool]]:
        """What is computed here of `parts`, as many as in each other share, and whether it counts or only keeps step."""
        ...

    def gathered(self, found: T) -> list[T]:
        """What each share found, in their order."""
        ...

    def anywhere(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        ...


class Whole:
    """All of it is in this process."""

    num_shares, token_multiple, writes = 1, 1, True
    token_share: TokenShare | None = None

    def __init__(self, settings: PolicySettings):
        """Raises ConfigError for a device that this machine lacks."""
        self.device = resolve_device(settings.device)

    def open(self, family: ModelFamily, directory: Path, settings: PolicySettings, *, reading: Reading) -> Opened:
        """The model of a directory, in float32."""
        module = open_module(family, directory, device=self.device, reading=reading)
        adapters = Adapters(module, settings.lora, head=head_for(reading)) if settings.lora else None
        if adapters:
            adapters.begin()
        return Opened(module=module, around=lambda compute: compute(), adapters=adapters)

    @torch.no_grad()
    def read_weights(self, weights: Mapping[str, Tensor], family: ModelFamily, directory: Path, *, reading: Reading) -> None:
        """Give the `weights` the values of another directory."""
        for name, param in open_module(family, directory, device=self.device, reading=reading).named_parameters():
            weights[name].copy_(param)

    def write_weights(self, directory: Path, module: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
        """Write a Hugging Face directory."""
        module.save_pretrained(directory, state_dict=dict(weights))

    def write_tensors(self, stem: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write `stem.safetensors`."""
        save_file(dict(tensors), stem.with_suffix(".safetensors"))

    def read_tensors(self, stem: Path, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read the file, or the directory of those that several processes wrote."""
        if stem.is_dir():
            return read_distributed(stem)
        return load_file(stem.with_suffix(".safetensors"))

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor."""
        return tensor

    def dealt(self, parts: Sequence[T]) -> list[tuple[T, bool]]:
        """All of them, and all count."""
        return [(part, True) for part in parts]

    def gathered(self, found: T) -> list[T]:
        """What was found here."""
        return [found]

    def anywhere(self, flag: bool) -> bool:
        """The flag."""
        return flag
