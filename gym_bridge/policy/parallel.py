"""Weights, gradients and moments in shards, one a process: PyTorch's FSDP2 (`fully_shard`).

That is stage 3 of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054). A layer's weights are gathered when it computes, and its
gradients are summed into the shards.
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.policy.adapters import Adapters, is_adapter, plain_name
from gym_bridge.policy.context_parallel import TokenShare, check_shareable
from gym_bridge.policy.distributed_files import file_numbers, reason, whole_tensors
from gym_bridge.policy.dtensors import placed_as, whole
from gym_bridge.policy.family import TOLERANCE, HFFamily, ModelFamily
from gym_bridge.policy.importing import head_of
from gym_bridge.policy.loading import SCORE, first_score_weight, resolve_device, resolve_dtype
from gym_bridge.policy.placement import Opened
from gym_bridge.policy.ranks import Ranks, dealt
from gym_bridge.policy.reading import Reading, head_for
from gym_bridge.policy.tensor_parallel import cut_layers
from gym_bridge.schemas.policy_settings import PolicySettings

T = TypeVar("T")
FILE_BYTES = 5 * 10**9
"""Size up to which tensors go into one file of a model."""
UNREADABLE = "several processes cannot read this model"
ROUNDED = 0.1
"""In nats, as `TOLERANCE` of a family, where weights are rounded to bfloat16."""


class Gathered(nn.Module):
    """The outermost module that FSDP2 sees: it computes anything that needs the weights outside of the layers, such as the output
    head's."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[[], T]) -> T:
        """What `compute` gives."""
        return compute()


class Sharded:
    """Shards over all ranks."""

    def __init__(self, ranks: Ranks, settings: PolicySettings):
        """Raises ConfigError for a device that this machine lacks, and for what cannot be sharded."""
        check_shardable(settings)
        self.device = resolve_device(f"cuda:{ranks.local_index}" if settings.device == "cuda" else settings.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._ranks, self._together = ranks, settings.together
        self.num_shares, self.writes = ranks.size // settings.together, ranks.leads
        self._tensor, self._context = settings.tensor_parallel_size, settings.context_parallel_size
        self.token_multiple = self._context * (self._tensor if settings.sequence_parallel else 1)
        logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # it advises on how norms are summed
        sizes = {"fsdp": self.num_shares, "cp": self._context, "tp": self._tensor}
        self._mesh = init_device_mesh(self.device.type, (*sizes.values(),), mesh_dim_names=(*sizes,))
        self._shards = self._mesh["fsdp"] if self._context == 1 else self._mesh["fsdp", "cp"]._flatten("shards")
        self.token_share = TokenShare(self._mesh["cp"].get_group()) if self._context > 1 else None

    def open(self, family: ModelFamily, directory: Path, settings: PolicySettings, *, reading: Reading) -> Opened:
        """The model of a directory, of which no rank ever holds a whole copy, in the master dtype."""
        assert isinstance(family, HFFamily), "others are refused"
        head = head_for(reading)
        module = family.outline(directory, head=head)
        if kept := module.state_dict().keys() - {*dict(module.named_parameters(remove_duplicate=False))}:
            raise PolicyError(f"{directory}: {UNREADABLE}: it keeps {min(kept)}, which is no parameter")
        adapters = Adapters(module, settings.lora, head=head) if settings.lora else None
        root = self.cut(module, directory, settings)
        _fill(module, params_on=torch.device("cpu") if settings.cpu_offload else self.device, buffers_on=self.device)
        self._read(module, directory, reading)
        if adapters:
            adapters.begin()

        def around(compute: Callable[[], T]) -> T:
            found = root(compute)
            if not torch.is_grad_enabled():
                cast(FSDPModule, root).reshard()
            return found

        narrow = (
            resolve_dtype(settings.compute_dtype, self.device) == torch.bfloat16
        )  # then both sides of the comparison are rounded
        with torch.no_grad():
            tolerance = ROUNDED if narrow else TOLERANCE
            layout = {"multiple_of": self.token_multiple, "share": self.token_share}
            around(lambda: family.check(module, head, directory, tolerance=tolerance, **layout))
        return Opened(module=module, around=around, adapters=adapters)

    def cut(self, module: PreTrainedModel, directory: Path, settings: PolicySettings) -> Gathered:
        """Turn the parameters of an outline, in place, into shards in the master dtype; returns what gathers them."""
        dtype = getattr(torch, settings.master_dtype)
        for param in module.parameters():
            param.data = param.data.to(dtype)
        if self._context > 1:
            check_shareable(module, directory, context=self._context, tensor=self._tensor)
        if self._tensor > 1:
            cut_layers(module, self._mesh["tp"], sequence_parallel=settings.sequence_parallel, directory=directory)
            module.tie_weights()
        computing = MixedPrecisionPolicy(
            param_dtype=resolve_dtype(settings.compute_dtype, self.device),
            reduce_dtype=torch.promote_types(dtype, torch.float32),
            cast_forward_inputs=False,
        )
        on_gpu = self.device.type == "cuda"
        kept = CPUOffloadPolicy(pin_memory=on_gpu) if settings.cpu_offload else OffloadPolicy()
        for layer in module.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                fully_shard(layer, mesh=self._shards, mp_policy=computing, offload_policy=kept)
        root = Gathered(module)
        fully_shard(root, mesh=self._shards, mp_policy=computing, offload_policy=kept)
        for part in root.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # losses are divided by the step's totals already: a sum is wanted
                part.set_force_sum_reduction_for_comms(True)
        return root

    def read_weights(self, weights: Mapping[str, Tensor], family: ModelFamily, directory: Path, *, reading: Reading) -> None:
        """Give the `weights` the values of another directory, of whose files each rank reads its part."""
        self._load(directory, {name: one.detach() for name, one in weights.items()}, f"{directory}: {UNREADABLE}")

    def write_weights(self, directory: Path, module: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
        """Write a Hugging Face directory: each rank its shards, which the first one then joins file by file."""
        writer = HuggingFaceStorageWriter(
            str(directory),
            fqn_to_index_mapping=file_numbers(weights, max_bytes=FILE_BYTES),
            save_distributed=True,
            enable_consolidation=True,
        )
        self._save(weights, writer, directory)
        if self._ranks.leads:
            shutil.rmtree(directory / "sharded")
            module.config.architectures = [type(module).__name__]
            module.config.save_pretrained(directory)

    def write_tensors(self, stem: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write a directory `stem`, a file a rank."""
        writer = HuggingFaceStorageWriter(str(stem), fqn_to_index_mapping=dict.fromkeys(tensors, 1), save_distributed=True)
        self._save(tensors, writer, stem)

    def read_tensors(self, stem: Path, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read each rank's part."""
        tensors = {name: torch.empty_like(one) for name, one in present.items()}
        place = stem if stem.is_dir() else stem.parent
        self._load(place, tensors, f"{place}: no whole checkpoint")
        return tensors

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor, gathered from its shards."""
        return whole(tensor)

    def dealt(self, parts: Sequence[T]) -> list[tuple[T, bool]]:
        """Every so many-th of them; the first one stands in where another share has one more."""
        return dealt(parts, index=self._ranks.index // self._together, size=self.num_shares)

    def gathered(self, found: T) -> list[T]:
        """What the first rank of each share found: the others of it found the same."""
        return self._ranks.gathered(found)[:: self._together]

    def anywhere(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        return self._ranks.anywhere(flag)

    @torch.no_grad()
    def _read(self, module: PreTrainedModel, directory: Path, reading: Reading) -> None:
        weights = {plain_name(name): param.detach() for name, param in module.named_parameters() if not is_adapter(name)}
        if reading != "lm" and head_of(directory) == "lm":
            score = weights.pop(SCORE)
            score.copy_(placed_as(torch.zeros(score.shape) if reading == "value" else first_score_weight(module), score))
        self._load(directory, weights, f"{directory}: {UNREADABLE}")

    def _load(self, directory: Path, tensors: dict[str, Tensor], failure: str) -> None:
        try:
            whole_tensors(directory)
            with _quietly():
                load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), process_group=self._ranks.channel)
        except (CheckpointException, OSError, SafetensorError, ValueError, KeyError) as error:
            raise PolicyError(f"{failure}: {reason(error)}") from error

    def _save(self, tensors: Mapping[str, Tensor], writer: HuggingFaceStorageWriter, directory: Path) -> None:
        try:
            with _quietly():
                save(dict(tensors), storage_writer=writer, process_group=self._ranks.channel)
        except CheckpointException as error:
            raise PolicyError(f"cannot write {directory}: {reason(error)}") from error


def check_shardable(settings: PolicySettings) -> None:
    """Raises ConfigError for settings that shards do not have."""
    alone = "which one process can train alone; leave it out, or start the training without torchrun"
    if settings.backend != "torch":
        raise ConfigError(f"policy.backend={settings.backend}: only policy.backend=torch trains in several processes")
    if settings.family != "hf":
        raise ConfigError(f"policy.family={settings.family}: only models of transformers can be sharded; train in one process")
    if settings.device not in ("cpu", "cuda"):
        raise ConfigError(
            f"policy.device={settings.device}: each of several processes has a device of its own; set it to cpu or cuda"
        )
    if settings.lora is not None and settings.tensor_parallel_size > 1:
        raise ConfigError("policy.lora: adapters of layers that are cut are not built; set policy.tensor_parallel_size=1")
    if settings.optimizer == "adamw_8bit":
        raise ConfigError(f"policy.optimizer=adamw_8bit: moments of 8 bits have no shards, {alone}")


def _fill(module: PreTrainedModel, *, params_on: torch.device, buffers_on: torch.device) -> None:
    """Give an outline's parameters memory without values, and its buffers, which are in no file, their values."""
    module.to_empty(device=params_on)
    module.tie_weights()
    for param in module.parameters():
        param._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
    module.initialize_weights()
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, buffer.to(buffers_on), persistent=False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's advice on its own checkpoints."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch.distributed")
        yield
