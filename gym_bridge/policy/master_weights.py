"""Master weights of a module that computes in any dtype, their gradients and their optimizer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gym_bridge.policy import optimizers
from gym_bridge.policy.allocator import give_back_freed_memory
from gym_bridge.policy.dtensors import whole
from gym_bridge.schemas.settings import PolicySettings


class MasterWeights:
    """What the optimizer updates: copies, in the master dtype, of those parameters of a module that train.

    bfloat16 has 8 bits of precision: an update of 1e-5 on a weight near 1 is lost to rounding. So the optimizer works on float32
    masters, and after each update the module's parameters become their rounded copies. Where master and compute dtype are the
    same, the parameters are their own masters. Gradients of every microbatch are added up in the master dtype. Parameters that
    do not train are kept in the compute dtype alone.

    Masters, gradients and moments, but those of 8 bits, are allocated here, before the first step, and stay: made in its midst they
    would lie among the activations and keep the freed memory of those in pieces that are too small for the next ones. So a weight
    that no token reached has a gradient of zero: it decays, and moves by its moments.
    """

    def __init__(self, module: nn.Module, settings: PolicySettings, *, compute_dtype: torch.dtype):
        """`module` is changed in place. Where its parameters are shards, which FSDP2 rounds when it gathers them, these are the
        masters."""
        master_dtype: torch.dtype = getattr(torch, settings.master_dtype)
        self.params = {name: param for name, param in module.named_parameters() if param.requires_grad}
        self.masters: dict[str, Tensor] = {}
        for name, param in module.named_parameters():
            if isinstance(param, DTensor):
                if param.requires_grad:
                    self.masters[name] = param
                continue
            dtype = master_dtype if param.requires_grad else compute_dtype
            master = own_copy(param, dtype)
            param.data = master.to(compute_dtype)
            if name in self.params and master_dtype == compute_dtype:
                self.masters[name] = param
            elif name in self.params:
                param.register_post_accumulate_grad_hook(_adder_to(master))
                self.masters[name] = master
        for master in self.masters.values():
            master.grad = torch.zeros_like(master)
        self.optimizer = optimizers.build_optimizer(self.masters.values(), settings)
        if next(module.parameters()).device.type == "cpu":
            give_back_freed_memory()

    def clip_gradients(self, max_grad_norm: float) -> float:
        """Scale the gradients added up so far down to `max_grad_norm`; returns their norm before.

        Where it is not finite they are of no use any more.
        """
        return _number(torch.nn.utils.clip_grad_norm_(self.masters.values(), max_grad_norm))

    def update(self, *, lr: float) -> None:
        """One optimizer step on the gradients added up so far, which are then forgotten."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.publish()
        self.drop_gradients()

    @contextmanager
    def dropping_on_error(self) -> Iterator[None]:
        """Forgets the gradients of what an error, or Ctrl-C, ends halfway."""
        try:
            yield
        except BaseException:
            self.drop_gradients()
            raise

    def gradient_norm(self) -> float:
        """The norm of the gradients added up so far."""
        return _number(torch.nn.utils.get_total_norm(self.gradients))

    def drop_gradients(self) -> None:
        """Forget the gradients added up so far."""
        self.optimizer.zero_grad(set_to_none=False)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the module's parameters."""
        for name, param in self.params.items():
            if self.masters[name] is not param:
                param.copy_(self.masters[name])

    @property
    def gradients(self) -> list[Tensor]:
        """Those added up so far, where there are any."""
        return [one.grad for one in self.masters.values() if one.grad is not None]

    @property
    def moments(self) -> list[Tensor]:
        """What the optimizer keeps."""
        return [one for state in self.optimizer.state.values() for one in state.values() if isinstance(one, Tensor)]

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by key and name."""
        return optimizers.state_tensors(self.optimizer, self.masters)

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state_tensors` gave."""
        optimizers.load_state_tensors(self.optimizer, self.masters, tensors)


def own_copy(param: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a loaded tensor: that stands where its file put it, and kernels for the CPU round by the address."""
    return param.detach().to(dtype, copy=True)


def _number(norm: Tensor) -> float:
    return float(whole(norm))


def _adder_to(master: Tensor):
    def add(param: Tensor) -> None:
        if param.grad is None:
            return
        assert master.grad is not None, "it is made with the master"
        master.grad.add_(param.grad)
        param.grad = None

    return add
