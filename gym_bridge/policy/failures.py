"""What a training step says when it fails: which rows, how large, what to lower."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from gym_bridge.errors import NonFiniteLossError, PolicyError
from gym_bridge.schemas.settings import PolicySettings
from gym_bridge.schemas.tokens import TrainingSequence

SHOWN = 5  # rows that a message names


def non_finite(what: str, sequences: Sequence[TrainingSequence], *, lower: str = "policy.lr") -> NonFiniteLossError:
    """The error for a loss or gradient of `sequences` that is not finite; `what` says which, where and its value, `lower` names the
    learning rate that may be too high."""
    origins = list(dict.fromkeys(one.origin for one in sequences if one.origin))
    more = f" and {len(origins) - SHOWN} more" if len(origins) > SHOWN else ""
    rows = f" ({', '.join(origins[:SHOWN])}{more})" if origins else ""
    return NonFiniteLossError(
        f"{what}, from {len(sequences)} sequences{rows}; lower {lower} or look at these rows", sequences=sequences
    )


@contextmanager
def memory_told(sequences: Sequence[TrainingSequence], settings: PolicySettings, *, packed_tokens: int) -> Iterator[None]:
    """Raises PolicyError with the size of the microbatch, and what to lower, when memory runs out inside."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        longest = max(len(one.token_ids) for one in sequences)
        lower = ["policy.microbatch_tokens"] if longest < settings.microbatch_tokens else []
        advice = f"lower {' or '.join([*lower, 'data.max_length'])}"
        if settings.activation_checkpointing is not True:
            advice += ", or set policy.activation_checkpointing=true"
        raise PolicyError(
            f"out of memory on {settings.device} at {packed_tokens} packed tokens, {len(sequences)} sequences, "
            f"the longest of {longest} tokens; {advice}"
        ) from error


@contextmanager
def optimizer_memory_told(settings: PolicySettings) -> Iterator[None]:
    """Raises PolicyError with what to change when memory runs out for weights, gradients and moments, or in their update."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise PolicyError(
            f"out of memory on {settings.device} for the weights, gradients and moments of {settings.optimizer}; "
            "set policy.optimizer=adamw_8bit, or train adapters with policy.lora.rank=16"
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    """True for CUDA's, Python's and the CPU allocator's error, which has no type of its own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
