"""The settings of a policy: the model, its optimizer, what it computes with. Imports no torch."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from gym_bridge.config import StrictModel


class LoRASettings(StrictModel):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): the model stays frozen, small matrices beside its layers train."""

    rank: PositiveInt = 16
    """Inner dimension of an adapter."""
    alpha: PositiveFloat = 32.0
    """An adapter's product is scaled by alpha / rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get an adapter, such as [q_proj, v_proj]; all-linear: every one but the output head."""


class PolicySettings(StrictModel):
    """The model and its optimizer."""

    model: str = "smollm2-135m"
    """A run, a checkpoint, a directory, a GGUF file or a registry name."""
    backend: str = "torch"
    """torch, or a dotted path to a policy class of your own: package.module:Name, called as TorchPolicy is."""
    family: str = "hf"
    """hf: what transformers can load; or a dotted path to a model family of your own: package.module:Name."""
    renderer: str | None = None
    """How messages become token ids: a family's name or a dotted path. null: as the model's files tell."""
    chat_template_kwargs: dict[str, Any] = Field(default={})
    """For the model's chat template, such as {enable_thinking: false}."""
    device: str = "cpu"
    """Torch device: cpu, cuda, cuda:1, ..."""
    tensor_parallel_size: PositiveInt = 1
    """Processes that compute each layer together, of those that torchrun starts; over the others weights are in shards."""
    sequence_parallel: bool = False
    """With a tensor_parallel_size: also what lies between attention and MLPs, each process for a part of the tokens."""
    context_parallel_size: PositiveInt = 1
    """Processes that share the tokens of each microbatch, for sequences too long for one; weights are in shards over them too."""
    cpu_offload: bool = False
    """In shards on a GPU: weights, gradients and moments lie in main memory; a layer's weights come to the GPU when it computes."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of forward and backward. auto: bfloat16 where it is native."""
    master_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights that the optimizer updates. bfloat16 loses small updates to rounding and needs allow_lost_updates."""
    allow_lost_updates: bool = False
    """Accept what master_dtype=bfloat16 loses."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """Kernel of packed attention: sdpa with a block mask, or FlexAttention, which skips masked blocks. auto: flex on CUDA."""
    activation_checkpointing: bool | Literal["selective"] = False
    """Compute activations again in the backward pass instead of keeping them. true: all of a layer's, a third more time; selective:
    all but what matrix products and attention gave (FlexAttention is computed again), for less memory at little time."""
    lora: LoRASettings | None = None
    """Train adapters instead of the whole model; null: the whole model."""
    optimizer: Literal["adamw", "adamw_fused", "adamw_8bit"] = "adamw_fused"
    """AdamW; fused in one kernel; or with moments of 8 bits."""
    lr: PositiveFloat = 1e-5
    """AdamW's peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises linearly to `lr`."""
    schedule: str = "constant_with_warmup"
    """How the learning rate goes on after the rise, by transformers' names: linear, cosine, cosine_with_min_lr, ..."""
    schedule_steps: PositiveInt | None = None
    """Updates over which a falling schedule falls; null: those of the whole run."""
    schedule_options: dict[str, Any] = Field(default={})
    """What the schedule takes besides, such as {min_lr_rate: 0.1}."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to at most this norm."""
    microbatch_tokens: PositiveInt = 1024
    """Packed tokens of one forward and backward; lower it when memory runs out."""
    prefix_sharing: bool = True
    """Compute the tokens with which sequences of a microbatch begin alike only once; the result is the same."""

    @property
    def together(self) -> int:
        """Processes that compute each microbatch together."""
        return self.tensor_parallel_size * self.context_parallel_size

    @property
    def together_told(self) -> str:
        """The settings that say so."""
        sizes = {name: getattr(self, name) for name in ("tensor_parallel_size", "context_parallel_size")}
        return " with ".join(f"policy.{name}={size}" for name, size in sizes.items() if size > 1)

    @model_validator(mode="after")
    def _parts_of_tokens(self) -> "PolicySettings":
        """Raises ValueError for sequence parallel without processes to share the tokens among."""
        if self.sequence_parallel and self.tensor_parallel_size == 1:
            raise ValueError(
                "policy.sequence_parallel=true needs policy.tensor_parallel_size of 2 or more; set it, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _no_lost_updates(self) -> "PolicySettings":
        """Raises ValueError for bfloat16 master weights that nobody asked for in so many words."""
        if self.master_dtype == "bfloat16" and not self.allow_lost_updates:
            raise ValueError(
                "policy.master_dtype=bfloat16 rounds away updates below 0.4 % of a weight; "
                "keep float32, or set policy.allow_lost_updates=true"
            )
        return self
