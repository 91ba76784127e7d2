"""Tensors of which each of several processes may hold a part."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered from its parts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_as(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, which every process has, on the device, in the dtype and in the parts of another."""
    moved = tensor.to(other.device, other.dtype)
    return distribute_tensor(moved, other.device_mesh, other.placements) if isinstance(other, DTensor) else moved
