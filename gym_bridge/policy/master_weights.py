"""AdamW over float32 master weights of a module that computes in any dtype."""

import math

import torch
from torch import Tensor, nn


class MasterWeights:
    """Float32 copies of a module's parameters, their gradients and their AdamW state.

    bfloat16 has 8 bits of precision: an update of 1e-5 on a weight near 1 is lost to rounding. So the optimizer works on float32
    masters, and after each update the module's parameters become their rounded copies. A module that computes in float32 is
    its own master. Gradients of every microbatch are added up in float32.
    """

    def __init__(
        self, module: nn.Module, *, compute_dtype: torch.dtype, lr: float, betas: tuple[float, float], weight_decay: float
    ):
        self.params = {name: param for name, param in module.named_parameters() if param.requires_grad}
        self.masters: dict[str, Tensor] = {}
        for name, param in self.params.items():
            if compute_dtype == torch.float32:
                self.masters[name] = param
            else:
                master = param.detach().to(torch.float32)
                param.data = param.data.to(compute_dtype)
                param.register_post_accumulate_grad_hook(_adder_to(master))
                self.masters[name] = master
        self.optimizer = torch.optim.AdamW(self.masters.values(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def update(self, *, lr: float, max_grad_norm: float) -> float:
        """One AdamW step on the gradients added up so far; returns their norm before clipping to `max_grad_norm`.

        A norm that is not finite leaves weights and moments as they were.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters.values(), max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
            self.publish()
        self.drop_gradients()
        return norm

    def drop_gradients(self) -> None:
        """Forget the gradients added up so far."""
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the module's parameters."""
        for name, param in self.params.items():
            if self.masters[name] is not param:
                param.copy_(self.masters[name])

    @torch.no_grad()
    def load_weights(self, module: nn.Module) -> None:
        """Take the values of a float32 `module` of the same shape."""
        for name, param in module.named_parameters():
            self.masters[name].copy_(param)
        self.publish()

    def state_tensors(self) -> dict[str, Tensor]:
        """AdamW's moments as `exp_avg.NAME` and `exp_avg_sq.NAME`, and `step`; empty before the first update."""
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            state = self.optimizer.state.get(master)
            if state:
                tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
                tensors["step"] = state["step"].reshape(1)
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state_tensors` gave."""
        if "step" not in tensors:
            return
        for name, master in self.masters.items():
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[master] = {
                    "step": tensors["step"].reshape(()).to(master.device, copy=True),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(master.device, copy=True),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(master.device, copy=True),
                }


def _adder_to(master: Tensor):
    def add(param: Tensor) -> None:
        if param.grad is None:
            return
        gradient = param.grad.to(torch.float32)
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        param.grad = None

    return add
