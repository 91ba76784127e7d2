"""Activations that are computed again in the backward pass instead of being kept."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from gym_bridge.errors import ConfigError

PRODUCTS = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "mm",
        "addmm",
        "bmm",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_grouped_mm",
    )
)
"""What costs a layer its time. FlexAttention, which is compiled, is not seen here and is computed again."""


def checkpoint_layers(module: nn.Module, *, selective: bool = False) -> None:
    """Make every decoder layer of `module` keep its inputs only, in place (Chen et al. 2016, arXiv 1604.06174); with `selective`
    what its matrix products and its attention gave too, so that only norms, activations and the like are computed again (after
    Korthikanti et al. 2022, arXiv 2205.05198).

    transformers does so in training mode alone; here modules stay in evaluation mode. Without gradient nothing changes, so that
    sampling with a cache is as before. Names of parameters stay. Raises ConfigError for a model without such layers.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"policy.activation_checkpointing: {type(module).__name__} has no layers that can be computed again; set it to false"
        )
    kept = {"context_fn": partial(create_selective_checkpoint_contexts, _kept)} if selective else {}
    for layer in layers:
        layer.forward = _checkpointed(layer.forward, kept)


def _kept(context: Any, operator: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def _checkpointed(forward: Any, kept: dict[str, Any]) -> Any:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kept, **kwargs)

    return recomputed
