"""Activations that are computed again in the backward pass instead of being kept."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from gym_bridge.errors import ConfigError


def checkpoint_layers(module: nn.Module) -> None:
    """Make every decoder layer of `module` keep its inputs only, in place (Chen et al. 2016, arXiv 1604.06174).

    transformers does so in training mode alone; here modules stay in evaluation mode. Without gradient nothing changes, so that
    sampling with a cache is as before. Names of parameters stay. Raises ConfigError for a model without such layers.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"policy.activation_checkpointing: {type(module).__name__} has no layers that can be computed again; set it to false"
        )
    for layer in layers:
        layer.forward = _checkpointed(layer.forward)


def _checkpointed(forward: Any) -> Any:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return recomputed
