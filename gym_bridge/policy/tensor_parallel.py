"""Layers cut across processes, by the plans that transformers has for its families, through PyTorch's DTensor.

Of t processes each computes 1/t of the heads of attention and of the inner features of an MLP (Shoeybi et al. 2019, arXiv
1909.08053), and holds 1/t of the vocabulary. With sequence parallel, what lies between those is computed for 1/t of the tokens by
each (Korthikanti et al. 2022, arXiv 2205.05198).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.distributed.tensor.parallel.style import ParallelStyle
from transformers import PreTrainedModel

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.policy.loading import SCORE

TOKENS, HEADS = Shard(1), Shard(2)  # of [1, T, ...] and of [1, T, h, d]
COLUMNS, ROWS, NORM_OF_HEADS = "colwise", "rowwise", "replicated_with_grad_allreduce"
"""What transformers calls the three ways in its plans."""
OTHERWISE = "set policy.tensor_parallel_size=1, or choose another model"


def cut_layers(module: PreTrainedModel, mesh: DeviceMesh, *, sequence_parallel: bool, directory: Path) -> None:
    """Cut the parameters of a module, in place, over the processes of a mesh of one dimension; all become DTensors.

    Afterwards every process computes the same from the same tokens, whose number is a multiple of the mesh's size with
    `sequence_parallel`. Raises ConfigError when a size is no multiple of the mesh's, PolicyError for a model without a plan.
    """
    decoder: Any = module.get_decoder()
    _check_sizes(decoder.config, mesh.size())
    between: Placement = TOKENS if sequence_parallel else Replicate()
    styles = _styles(decoder, between, directory)
    styles[decoder.get_input_embeddings()] = RowwiseParallel(input_layouts=Replicate())
    if (head := module.get_output_embeddings()) is not None:
        styles[head] = ColwiseParallel(output_layouts=Replicate())
    else:
        styles[module.get_submodule(SCORE.rpartition(".")[0])] = Alike(Replicate())
    for name, part in module.named_modules():
        own = [*part.named_parameters(recurse=False)]
        if own and part not in styles:
            if "norm" not in type(part).__name__.lower():
                raise PolicyError(f"{directory}: {name}.{own[0][0]} has no place in a plan of tensor parallel; {OTHERWISE}")
            styles[part] = Alike(between)
    parents = {name.rpartition(".")[0] for name, part in module.named_modules() if _cuts_columns(styles.get(part), part)}
    for part, style in styles.items():
        style._apply(part, mesh)
    for name in parents - {""}:
        module.get_submodule(name).register_forward_pre_hook(_whole_input(mesh, between), with_kwargs=True)
    if sequence_parallel:
        decoder.layers[0].register_forward_pre_hook(_parted_input(mesh))
        decoder.register_forward_hook(_whole_output(mesh))


class Alike(ParallelStyle):
    """Every process has the whole parameters; what goes in and comes out is laid out in one way. Gradients are those of all."""

    def __init__(self, layout: Placement):
        self._layout = layout

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def replicate(_: str, part: nn.Module, mesh: DeviceMesh) -> None:
            for name, param in part.named_parameters(recurse=False):
                part.register_parameter(name, nn.Parameter(distribute_tensor(param, mesh, [Replicate()])))

        def laid_out(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> Any:
            return (DTensor.from_local(inputs[0], mesh, [self._layout], run_check=False), *inputs[1:])

        def local(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Any:
            return output.redistribute(mesh, [self._layout]).to_local()

        return distribute_module(module, device_mesh, replicate, laid_out, local)


def _styles(decoder: Any, between: Placement, directory: Path) -> dict[nn.Module, ParallelStyle]:
    """How the modules of the layers are cut that transformers' plan names."""
    plan: Mapping[str, str] = decoder.config.base_model_tp_plan or {}
    if not plan:
        raise PolicyError(f"{directory}: transformers has no plan of tensor parallel for {type(decoder).__name__}; {OTHERWISE}")
    kinds: dict[str, Callable[[], ParallelStyle]] = {
        COLUMNS: ColwiseParallel,
        ROWS: lambda: RowwiseParallel(output_layouts=between),
        NORM_OF_HEADS: lambda: Alike(HEADS),
    }
    if unknown := {*plan.values()} - kinds.keys():
        raise PolicyError(
            f"{directory}: transformers' plan of tensor parallel for {type(decoder).__name__} has {min(unknown)}, which is not "
            f"built; {OTHERWISE}"
        )
    styles = {}
    for name, part in decoder.named_modules():
        pattern = ".".join("*" if step.isdigit() else step for step in name.split("."))
        if pattern in plan and [*part.parameters(recurse=False)]:
            styles[part] = kinds[plan[pattern]]()
    return styles


def _cuts_columns(style: ParallelStyle | None, part: nn.Module) -> bool:
    return isinstance(style, ColwiseParallel) and isinstance(part, nn.Linear)


def _check_sizes(config: Any, size: int) -> None:
    """Raises ConfigError where heads or inner features cannot be dealt out evenly."""
    names = {"heads": "num_attention_heads", "heads of keys": "num_key_value_heads", "inner features": "intermediate_size"}
    for what, name in names.items():
        count = getattr(config, name, None)
        if count is not None and count % size:
            raise ConfigError(
                f"policy.tensor_parallel_size={size}: this model has {count} {what}, which is no multiple of it; choose a divisor"
            )


def _whole_input(mesh: DeviceMesh, layout: Placement) -> Callable[..., Any]:
    """Gives a module that begins with columns all tokens, once for all its columns."""

    def whole(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def gathered(hidden: Tensor) -> DTensor:
            return DTensor.from_local(hidden, mesh, [layout], run_check=False).redistribute(mesh, [Replicate()])

        if args:
            return (gathered(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": gathered(kwargs["hidden_states"])}

    return whole


def _parted_input(mesh: DeviceMesh) -> Callable[..., Any]:
    """Gives the first layer this process's part of the tokens: the model works out positions and masks for all."""

    def parted(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = DTensor.from_local(args[0], mesh, [Replicate()], run_check=False)
        return (hidden.redistribute(mesh, [TOKENS]).to_local(), *args[1:])

    return parted


def _whole_output(mesh: DeviceMesh) -> Callable[..., Any]:
    """Gathers the states of all tokens after the last norm."""

    def whole(_: nn.Module, args: Any, output: Any) -> Any:
        hidden = DTensor.from_local(output.last_hidden_state, mesh, [TOKENS], run_check=False)
        output.last_hidden_state = hidden.redistribute(mesh, [Replicate()]).to_local()
        return output

    return whole
