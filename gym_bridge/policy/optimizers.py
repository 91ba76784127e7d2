"""The optimizers, and their state as plain tensors that a file holds bit for bit."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gym_bridge.errors import PolicyError, missing_extra
from gym_bridge.schemas.settings import PolicySettings

TABLES = ("qmap1", "qmap2")  # what the codes of 8 bits stand for: the same for every weight, so never saved


def build_optimizer(masters: Iterable[Tensor], settings: PolicySettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) over `masters`.

    `adamw_8bit` is that of bitsandbytes: moments of 8 bits in blocks of 256 with a scale each (Dettmers et al. 2021, arXiv
    2110.02861), a quarter of the memory; weights of fewer than 4096 numbers keep moments of 32 bits. Raises ConfigError when
    it is not installed.
    """
    options: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.optimizer != "adamw_8bit":
        optimizer = torch.optim.AdamW(masters, fused=settings.optimizer == "adamw_fused", **options)
        for master in optimizer.param_groups[0]["params"]:
            moments = {"exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}
            optimizer.state[master] = _blank(optimizer, master) | moments
        return optimizer
    hush_bitsandbytes()
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError:
        raise missing_extra("policy.optimizer=adamw_8bit", "train-8bit") from None
    return AdamW8bit(masters, **options)


def hush_bitsandbytes() -> None:
    """Before it is imported: it warns that it has no kernels for 4 bits, which nothing here uses."""
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)


def state_tensors(optimizer: torch.optim.Optimizer, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state as `KEY.NAME`: `step` [1], and `exp_avg` and `exp_avg_sq`, or with 8 bits `state1`, `state2` and the
    scales of their blocks, `absmax1` and `absmax2`, these only after the first update.
    """
    tensors: dict[str, Tensor] = {}
    for name, master in masters.items():
        for key, value in optimizer.state.get(master, {}).items():
            if key == "step":
                tensors[f"step.{name}"] = torch.tensor([float(value)])
            elif key not in TABLES:
                tensors[f"{key}.{name}"] = value
    return tensors


def load_state_tensors(optimizer: torch.optim.Optimizer, masters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Continue from what `state_tensors` gave. Raises PolicyError for the state of other weights or of another optimizer."""
    found: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        key, _, name = full.partition(".")
        found.setdefault(name, {})[key] = value
    if unknown := found.keys() - masters.keys():
        raise PolicyError(
            f"the checkpoint's moments are those of other weights, such as {min(unknown)}; keep policy.lora as it was"
        )
    for name, master in masters.items():
        saved, state = found.get(name), _blank(optimizer, master)
        if saved is None:
            optimizer.state.pop(master, None)  # as before its first update
            continue
        if state.keys() - {*TABLES} != saved.keys():
            raise PolicyError(f"the checkpoint's moments {sorted(saved)} are another optimizer's; keep policy.optimizer as it was")
        step = saved.pop("step")
        state["step"] = int(step) if isinstance(state["step"], int) else step.reshape(()).to(state["step"].device, copy=True)
        held = optimizer.state.get(master, {})
        for key, value in saved.items():
            state[key] = held[key].copy_(value) if key in held else value.to(master.device, copy=True)
        optimizer.state[master] = state


def _blank(optimizer: torch.optim.Optimizer, master: Tensor) -> dict[str, Any]:
    """The state of a weight before its first update, with every key."""
    if isinstance(optimizer, torch.optim.AdamW):
        place = master.device if optimizer.defaults["fused"] else "cpu"
        return {"step": torch.zeros((), device=place), "exp_avg": None, "exp_avg_sq": None}
    group = optimizer.param_groups[0]
    index = next(place for place, one in enumerate(group["params"]) if one is master)
    optimizer.init_state(group, master, 0, index)  # pyright: ignore[reportAttributeAccessIssue]
    return dict(optimizer.state[master])
