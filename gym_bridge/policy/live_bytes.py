"""The memory that tensors hold while code runs, fake tensors too, which hold none."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gym_bridge.policy.dtensors import local


class LiveBytes(TorchDispatchMode):
    """Inside, counts the bytes of every tensor that an operator gives, from there to its end. What a kernel needs for itself and
    frees again is not seen.

    FSDP2 fills the storages of gathered weights anew again and again, without an operator: those are looked at before each one.
    """

    def __init__(self, before: Iterable[Tensor] = ()):
        """`before`: tensors that are there already."""
        super().__init__()
        self.now, self.most = 0, 0
        self._sizes: dict[int, int] = {}
        self._refilled: dict[int, weakref.ref[Any]] = {}
        for tensor in before:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operator, and counts what it gives."""
        if DTensor in types:
            return NotImplemented  # its own operators come here next
        found = func(*args, **(kwargs or {}))
        self._look()
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        if "split_with_sizes_copy" in str(func):  # of FSDP2: gathered weights go to where they are used
            for leaf in tree_leaves((kwargs or {}).get("out", ())):
                self._see(leaf, refilled=True)
        return found

    def _look(self) -> None:
        for key, reference in list(self._refilled.items()):
            storage = reference()
            size = 0 if storage is None else storage.nbytes()
            self._count(size - self._sizes.get(key, 0))
            if size:
                self._sizes[key] = size
            else:
                self._sizes.pop(key, None)
                del self._refilled[key]

    def _see(self, tensor: Tensor, *, refilled: bool = False) -> None:
        storage = local(tensor).untyped_storage()
        key = storage._cdata
        if refilled:
            self._refilled[key] = weakref.ref(storage)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._count(storage.nbytes())
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._refilled.pop(key, None)
        self._count(-self._sizes.pop(key, 0))

    def _count(self, more: int) -> None:
        self.now += more
        self.most = max(self.most, self.now)
