"""FLOPs that a training step needs, and what share of the device's peak they are: model FLOPs utilisation.

After PaLM, appendix B (Chowdhery et al. 2022, arXiv 2204.02311): a trained token costs 6 FLOPs a parameter (2 forward, 4 backward)
and 12 * heads * head_dim FLOPs a layer and token of its sequence; what is computed a second time, as by activation checkpointing,
does not count. Beside the paper: a shared prefix counts once, the output head only where a token trains, a frozen parameter 4
FLOPs, an expert as often as it is chosen, and a sliding window no further than it reaches. As in the paper, causal attention counts
as if every token saw its whole sequence: the sum over a sequence's positions p of 2p + 1 is L^2.
"""

import logging
import math
import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

FORMULA = (
    "mfu = (6*params*tokens + 6*head_params*trained_tokens + 12*layers*heads*head_dim*sum over sequences of L^2) / (seconds*peak); "
    "frozen params count 4 instead of 6 (PaLM, appendix B, Chowdhery et al. 2022)"
)

PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)
"""Words of a device's name and its peak in FLOP/s: dense bfloat16 with float32 accumulation, by its maker's data sheet."""
PARTS_OF_A_DEVICE = ("MIG", "Laptop", "D")
"""Words of a name that mark less than the whole device of the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlops:
    """What one token costs in a model, forward and backward."""

    per_token: float
    """FLOPs of every packed token, without attention."""
    per_trained_token: float
    """FLOPs of the output head."""
    per_pair: float
    """FLOPs of a layer's attention from one token to one of its sequence."""
    windows: tuple[int | None, ...]
    """How far each attending layer reaches, None for the whole sequence."""

    def of_microbatch(self, positions: Tensor, *, num_trained: int) -> float:
        """FLOPs of a microbatch whose packed tokens stand at `positions` [T] of their sequences."""
        total = self.per_token * len(positions) + self.per_trained_token * num_trained
        for window in set(self.windows):
            reached = positions if window is None else positions.clamp(max=window - 1)
            total += self.windows.count(window) * self.per_pair * float((2 * reached + 1).sum())
        return total


def model_flops(module: PreTrainedModel) -> ModelFlops:
    """What a token costs in `module`: read off its config and its parameters, of which frozen ones get no gradient."""
    config = module.config.get_text_config()
    head = module.get_output_embeddings()
    elsewhere = {id(module.get_input_embeddings().weight)}  # looked up, and where it is tied counted at the head
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    per_token = 0.0
    for name, param in module.get_decoder().named_parameters():
        if id(param) not in elsewhere:
            per_token += _cost(param) * (min(1.0, chosen / experts) if ".experts." in name else 1.0)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelFlops(
        per_token=per_token,
        per_trained_token=_cost(head.weight) if head is not None else 0.0,
        per_pair=12.0 * heads * head_dim,
        windows=_windows(config),
    )


def _cost(param: Tensor) -> int:
    """FLOPs of a parameter and token: 2 forward, 2 for the gradient of what it multiplies, 2 for its own."""
    return (6 if param.requires_grad else 4) * param.numel()


def _windows(config) -> tuple[int | None, ...]:
    """The reach of each layer that attends; layers of other kinds have none."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return (window,) * config.num_hidden_layers
    reach = {"full_attention": None, "sliding_attention": window}
    return tuple(reach[kind] for kind in kinds if kind in reach)


def peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s of a GPU in dense bfloat16; None for a name that is not in the table: none is guessed."""
    words = f" {device_name.replace('-', ' ')} "
    if any(f" {part} " in words for part in PARTS_OF_A_DEVICE):
        return None
    return next((peak for name, peak in PEAK_FLOPS if f" {name} " in words), None)


def matrix_product_flops(dtype: torch.dtype, *, size: int = 1024, tries: int = 5) -> float:
    """FLOP/s of a product of square matrices on this CPU, the best of some tries."""
    first = torch.ones(size, size, dtype=dtype)
    best = math.inf
    for _ in range(tries):
        started = time.perf_counter()
        torch.mm(first, first)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


class Utilisation:
    """Says what share of the device's peak a step's FLOPs are; nothing where the peak is not known."""

    def __init__(self, module: PreTrainedModel, *, device: torch.device, compute_dtype: torch.dtype, num_devices: int = 1):
        """`num_devices`: those that compute each layer together."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device.type!r}"
        self.peak = peak_flops(name) if compute_dtype == torch.bfloat16 else None
        self._module, self._num_devices = module, num_devices
        self._flops = 0.0
        if self.peak is None:
            log.info("mfu is left out: no peak FLOP/s is known of %s in %s", name, compute_dtype)
        else:
            log.info("%s; peak %.0f TFLOP/s: %s", FORMULA, self.peak / 1e12, name)

    @cached_property
    def _model(self) -> ModelFlops:
        return model_flops(self._module)

    def begin(self) -> None:
        """Begin a step."""
        self._flops = 0.0

    def count(self, positions: Tensor, *, num_trained: int) -> None:
        """Count a microbatch of the step: where its packed tokens stand in their sequences [T], and how many of them train."""
        if self.peak is not None:
            self._flops += self._model.of_microbatch(positions, num_trained=num_trained)

    def metrics(self, *, seconds: float) -> dict[str, float]:
        """`mfu` of the step, which took `seconds`, between 0 and 1; empty where the peak is not known."""
        return {} if self.peak is None else {"mfu": self._flops / (seconds * self.peak * self._num_devices)}
