"""Low-rank adapters beside the linear layers of a frozen module, through peft.

W' = W + alpha / rank  B A        (Hu et al. 2021, arXiv 2106.09685, section 4.1), A random, B = 0 at the start
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gym_bridge.errors import ConfigError, PolicyError, nearest
from gym_bridge.policy.dtensors import placed_as, whole
from gym_bridge.policy.loading import SCORE
from gym_bridge.policy.optimizers import hush_bitsandbytes
from gym_bridge.schemas.seams import Head
from gym_bridge.schemas.settings import LoRASettings

WEIGHTS = "adapter_model.safetensors"
BASE = ".base_layer."
"""In the name of a parameter beside which there is an adapter."""


class Adapters:
    """The adapters of a module, which they change in place: it keeps its class, and what calls it goes through them.

    Only they train, and with the scalar head the head itself. `begin` gives them their first values.
    """

    def __init__(self, module: PreTrainedModel, settings: LoRASettings, *, head: Head):
        """Raises ConfigError for a target that is no linear layer of the module."""
        hush_bitsandbytes()  # which peft imports where it is installed
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        self.module = module
        self.config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
            target_modules=_targets(module, settings),
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in module.modules()),
            base_model_name_or_path=module.name_or_path,
        )
        with torch.random.fork_rng(devices=[]):  # its own first values are replaced
            inject_adapter_in_model(self.config, module)
        if head == "scalar":
            module.get_parameter(SCORE).requires_grad_(True)
        self.layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
        self.trained = [name for name, param in module.named_parameters() if param.requires_grad]

    @torch.no_grad()
    def begin(self) -> None:
        """First values, the same each time and in any number of processes: A uniform within 1 / sqrt(its inputs), B zero."""
        generator = torch.Generator().manual_seed(0)
        for layer in self.layers.values():
            down, up = (cast(Tensor, part["default"].weight) for part in (layer.lora_A, layer.lora_B))
            first = (2 * torch.rand(down.shape, generator=generator) - 1) / math.sqrt(down.shape[1])
            down.copy_(placed_as(first, down))
            up.zero_()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the module computes what it did without adapters."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    @torch.no_grad()
    def merged(self, masters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The weights, in float32, of the plain module that computes the same, with the adapters' `masters` added in."""
        for name, param in self.module.named_parameters():
            owner, adapted, leaf = name.rpartition(BASE)
            if adapted:
                value = param.detach().float()
                yield plain_name(name), value + self._product(owner, masters) if leaf == "weight" else value
            elif name == SCORE or name not in masters:
                yield name, masters.get(name, param).detach().float()

    def whole(self, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What trains, by peft's names in a file, gathered where it is in shards."""
        return {_name_in_file(name): whole(masters[name].detach()).contiguous() for name in self.trained}

    def save(self, directory: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write `directory` as peft does: adapter_config.json, and what `whole` gave as adapter_model.safetensors."""
        config = copy(self.config)
        config.task_type = "SEQ_CLS" if SCORE in self.trained else "CAUSAL_LM"
        config.modules_to_save = [SCORE.partition(".")[0]] if SCORE in self.trained else None
        config.inference_mode = True
        config.save_pretrained(str(directory))
        save_file(dict(tensors), directory / WEIGHTS)

    @torch.no_grad()
    def load(self, directory: Path, masters: Mapping[str, Tensor]) -> None:
        """Take over what `save` wrote. Raises PolicyError when it is not there or of another shape."""
        try:
            tensors = load_file(directory / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise PolicyError(f"{directory}: no adapter to go on from: {error}; keep policy.lora as it was") from error
        shapes = {_name_in_file(name): masters[name].shape for name in self.trained}
        if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
            raise PolicyError(f"{directory}: an adapter of another rank or for other layers; keep policy.lora as it was")
        for name in self.trained:
            masters[name].copy_(placed_as(tensors[_name_in_file(name)], masters[name]))

    def _product(self, owner: str, masters: Mapping[str, Tensor]) -> Tensor:
        layer: Any = self.layers[owner]
        down, up = (masters[f"{owner}.lora_{side}.default.weight"].float() for side in "AB")
        product = layer.scaling["default"] * (up @ down)
        return product.T if layer.fan_in_fan_out else product


def is_adapter(name: str) -> bool:
    """Whether a parameter of an adapted module is an adapter's."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """What the model itself calls a parameter of the adapted module."""
    return name.replace(BASE, ".")


def _targets(module: PreTrainedModel, settings: LoRASettings) -> list[str]:
    """Last parts of the names of the layers that get an adapter. The output head gets none: log-probs use its weight alone."""
    head = module.get_output_embeddings()
    layers = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head and f"{name}.weight" != SCORE
    ]
    names = {name.rpartition(".")[2] for name in layers}
    if settings.target_modules == "all-linear":
        return sorted(names)
    for target in settings.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise ConfigError(f"policy.lora.target_modules: no linear layer {target!r} in this model{nearest(target, names)}")
    return list(settings.target_modules)


def _name_in_file(name: str) -> str:
    """peft's name in a file for a parameter of the adapted module."""
    return f"base_model.model.{name.replace('.default.weight', '.weight')}"
