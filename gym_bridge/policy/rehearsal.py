"""A training step on tensors that hold nothing, to learn what memory a real one needs in each process.

The module, its shards, its optimizer and its backward pass are those of training; `FakeTensorMode` keeps shapes alone, and
PyTorch's fake process group stands in for the other processes. No weights are read.
"""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedModel

from gym_bridge.errors import ConfigError, GymBridgeError, PolicyError
from gym_bridge.policy.activation_checkpointing import checkpoint_layers
from gym_bridge.policy.adapters import Adapters
from gym_bridge.policy.attention import Block, BlockRows
from gym_bridge.policy.dtensors import local
from gym_bridge.policy.family import HFFamily, attention_kinds, hidden_states, values_at
from gym_bridge.policy.flops import model_flops
from gym_bridge.policy.live_bytes import LiveBytes
from gym_bridge.policy.loading import resolve_dtype
from gym_bridge.policy.master_weights import MasterWeights
from gym_bridge.policy.packing import Pack, pack
from gym_bridge.policy.parallel import Sharded, check_shardable
from gym_bridge.policy.ranks import Ranks
from gym_bridge.schemas.policy_settings import PolicySettings
from gym_bridge.schemas.seams import Head
from gym_bridge.schemas.tokens import TrainingSequence

APART = "from gym_bridge.policy.rehearsal import rehearse_apart; rehearse_apart()"
"""What a Python does for one that cuts layers: DTensor keeps what it learnt of the first processes until its interpreter ends."""
BLOCK_OF_8_BITS, NOT_IN_8_BITS = 256, 4096
"""Numbers that share a scale, and those of a weight below which its moments keep 32 bits, in `optimizers.build_optimizer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """Bytes of one process."""

    weights: int
    """Masters, and what computes where that is another copy."""
    gradients: int
    moments: int
    """Of the optimizer."""
    activations: int
    """What a microbatch keeps for its backward pass, with the weights that are gathered at its end."""
    logits: int
    """Of a chunk of the output head, in forward and backward at most."""
    peak: int
    """All of it at the fullest moment of a step."""
    parameters: int
    """Numbers of the model, over all processes; tied ones once."""
    parameters_here: int
    """Those of them that this process holds."""
    frozen: int
    """A second model that does not train, as a reference."""
    whole: int
    """The whole model in the compute dtype."""
    kv_bytes_per_token: int
    """Of keys and values of all layers, in the compute dtype."""
    logits_bytes_per_token: int
    """While a token is sampled."""
    flops_per_token: float
    """Forward and backward, of a microbatch that one sequence fills (`policy.flops`)."""


def rehearse(directory: Path, settings: PolicySettings, *, num_processes: int, head: Head, index: int = 0) -> Rehearsal:
    """What a step over microbatches of `policy.microbatch_tokens` needs in process `index` of so many.

    `directory`: a Hugging Face directory, of which only config.json is read. Raises ConfigError and PolicyError where training
    would, but for what only its weights tell.
    """
    if settings.family != "hf" or settings.backend != "torch":
        raise ConfigError("plan knows models of transformers on our own backend; leave out policy.family and policy.backend")
    if num_processes > 1:
        check_shardable(settings)
    if settings.tensor_parallel_size == 1:
        return _rehearsed(directory, settings, num_processes, head, index)
    call = pickle.dumps((directory, settings, num_processes, head, index))
    done = subprocess.run([sys.executable, "-P", "-c", APART], input=call, stdout=subprocess.PIPE, check=True)
    found = pickle.loads(done.stdout)
    if isinstance(found, GymBridgeError):
        raise found
    return found


def rehearse_apart() -> None:
    """In an interpreter of its own: the rehearsal that stdin asks for, or its error, to stdout."""
    call = pickle.load(sys.stdin.buffer)
    try:
        found: Rehearsal | GymBridgeError = _rehearsed(*call)
    except GymBridgeError as error:
        found = error
    sys.stdout.buffer.write(pickle.dumps(found))


def _rehearsed(directory: Path, settings: PolicySettings, num_processes: int, head: Head, index: int) -> Rehearsal:
    eight_bits = settings.optimizer == "adamw_8bit"
    dtype = resolve_dtype(settings.compute_dtype, torch.device("cpu")) if settings.device == "cpu" else _on_cuda(settings)
    changed: dict[str, Any] = {"device": "cpu", "attention": "sdpa", "compute_dtype": str(dtype).removeprefix("torch.")}
    settings = settings.model_copy(update=changed | ({"optimizer": "adamw"} if eight_bits else {}))
    with _processes(index, num_processes) as ranks:
        opened = _Outline(directory, settings, ranks=ranks, head=head)
        with FakeTensorMode(allow_non_fake_inputs=True):
            return opened.stepped(dtype, eight_bits=eight_bits)


class _Outline:
    """A model without values, in its place."""

    def __init__(self, directory: Path, settings: PolicySettings, *, ranks: Ranks | None, head: Head):
        self.settings = settings
        self.head: Head = head
        self.family = HFFamily(settings)
        self.module = self.family.outline(directory, head=head)
        self.parameters = sum(param.numel() for param in self.module.parameters())
        self.around: Callable[[Callable[[], Any]], Any] = lambda compute: compute()
        if settings.lora:
            Adapters(self.module, settings.lora, head=head)
        flops, layout = model_flops(self.module), {}
        if ranks is not None:
            placement = Sharded(ranks, settings)
            self.around = placement.cut(self.module, directory, settings)
            layout = {"multiple_of": placement.token_multiple, "share": placement.token_share}
        self.packed = _full_pack(settings.microbatch_tokens, layout)
        positions = self.packed.position_ids
        self.flops = flops.of_microbatch(positions, num_trained=len(self.packed.targets)) / len(positions)
        mask = BlockRows.of(len(self.packed.token_ids), torch.device("cpu"))
        mask.blocks, mask.lengths, mask.share = [Block((), None)], [len(self.packed.token_ids)], self.packed.share
        kinds, _ = attention_kinds(self.module)
        self.masks: Any = dict.fromkeys(kinds, mask) if len(kinds) > 1 else mask

    def stepped(self, dtype: torch.dtype, *, eight_bits: bool) -> Rehearsal:
        """What one step comes to."""
        module = self.module
        module.to_empty(device="cpu")
        module.tie_weights()
        if self.settings.activation_checkpointing:
            checkpoint_layers(module, selective=self.settings.activation_checkpointing == "selective")
        masters = MasterWeights(module, self.settings, compute_dtype=dtype)
        gradients, moments = masters.gradients, masters.moments
        weights = [*module.parameters(), *module.buffers(), *masters.masters.values()]
        sizes = {name: _size(tensors) for name, tensors in (("weights", weights), ("gradients", gradients), ("moments", moments))}
        with LiveBytes([*weights, *gradients, *moments]) as live:
            before = live.now
            values = self.around(self._values)
            activations, in_forward = live.now - before, live.most - live.now
            values.sum().backward()
        excess = sizes["moments"] - sum(map(_moments_of_8_bits, masters.masters.values())) if eight_bits else 0
        return Rehearsal(
            **{**sizes, "moments": sizes["moments"] - excess},
            activations=activations,
            logits=max(in_forward, live.most - before - activations),
            peak=live.most - excess,
            parameters=self.parameters,
            parameters_here=sum(local(param).numel() for param in module.parameters()),
            frozen=_size([*module.parameters()]),
            whole=self.parameters * dtype.itemsize,
            kv_bytes_per_token=_kept_numbers(module) * dtype.itemsize,
            logits_bytes_per_token=3 * 4 * module.config.get_text_config().vocab_size,  # as sampled, in float32, their shares
            flops_per_token=self.flops,
        )

    def _values(self) -> Tensor:
        packed, hidden = self.packed, hidden_states(self.module, self.packed, self.masks)
        place = "trained" if self.head == "scalar" else "predictors"
        return values_at(self.family, self.module, packed, hidden, place, self.head)[0]


def _kept_numbers(module: PreTrainedModel) -> int:
    """Of the keys and values of a token."""
    config = module.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head_dim


def _on_cuda(settings: PolicySettings) -> torch.dtype:
    """What `auto` comes to on a GPU, which need not be here."""
    return torch.float32 if settings.compute_dtype == "float32" else torch.bfloat16


def _full_pack(num_tokens: int, layout: dict[str, Any]) -> Pack:
    """One sequence that fills a microbatch; all its tokens but the first train."""
    ids = np.zeros(num_tokens, np.int32)
    return pack([TrainingSequence(token_ids=ids, train_mask=np.arange(num_tokens) > 0)], **layout)


@contextmanager
def _processes(index: int, count: int) -> Iterator[Ranks | None]:
    """Fake ones around this; None for a process alone. Raises PolicyError within a training of several."""
    if count == 1:
        yield None
        return
    if distributed.is_initialized():
        raise PolicyError("this process is one of a training's; plan from another")
    distributed.init_process_group("fake", rank=index, world_size=count, store=FakeStore())
    try:
        channel = cast(distributed.ProcessGroup, distributed.group.WORLD)
        yield Ranks(index=index, size=count, local_index=0, channel=channel)
    finally:
        distributed.destroy_process_group()


def _size(tensors: list[Tensor]) -> int:
    """Bytes of what they hold, shared storage once."""
    storages = [local(one).untyped_storage() for one in tensors]
    return sum({one._cdata: one.nbytes() for one in storages}.values())


def _moments_of_8_bits(master: Tensor) -> int:
    count = local(master).numel()
    if not master.requires_grad or count < NOT_IN_8_BITS:
        return 8 * count * master.requires_grad
    return 2 * (count + 4 * -(-count // BLOCK_OF_8_BITS))
