"""The settings of training and of transform: shared sections, defaults that somebody ran. Imports no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gym_bridge.config import StrictModel


class PolicySettings(StrictModel):
    """The model and its optimizer."""

    model: str = "smollm2-135m"
    """A run, a checkpoint, a directory, a GGUF file or a registry name."""
    device: str = "cpu"
    """Torch device: cpu, cuda, cuda:1, ..."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of forward and backward; master weights and optimizer state are always float32. auto: bfloat16 where it is native."""
    lr: PositiveFloat = 1e-5
    """AdamW's peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises linearly to `lr`, then stays."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to at most this norm."""
    microbatch_tokens: PositiveInt = 1024
    """Packed tokens of one forward and backward; lower it when memory runs out."""


class TrainerSettings(StrictModel):
    """The training loop."""

    output: Path = Path("runs/train")
    """Run directory: config, metrics, checkpoints."""
    max_steps: PositiveInt | None = None
    """Stop after so many optimizer updates; null: when the data ends."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints; the last step is always saved."""
    keep_last: PositiveInt = 1
    """How many checkpoints stay on disk, the newest ones."""
    seed: int = 0
    """Order of the data, and of the sampler's random numbers."""


class SFTData(StrictModel):
    """Rows for supervised fine-tuning."""

    train: Path
    """JSONL of `{"messages", "tools"}` rows, as `transform --to sft` writes them."""
    max_length: PositiveInt = 2048
    """Rows of more tokens are dropped, and counted."""


class SFTAlgorithm(StrictModel):
    """Supervised fine-tuning."""

    batch_size: PositiveInt = 16
    """Rows of one optimizer update."""
    epochs: PositiveInt = 1
    """Passes over the rows."""


class SFTSettings(StrictModel):
    """`gym-bridge train sft`."""

    policy: PolicySettings = PolicySettings()
    data: SFTData
    algorithm: SFTAlgorithm = SFTAlgorithm()
    trainer: TrainerSettings = TrainerSettings()


class EnvSettings(StrictModel):
    """Where rollouts are played and verified."""

    server: str
    """URL of a resource server, or the name of one of ours, which is then started for the run."""
    max_turns: PositiveInt = 8
    """Model calls of a rollout at most; it is verified as it stands, and marked truncated."""
    concurrency: PositiveInt = 64
    """Rollouts in flight."""
    rollout_timeout_s: PositiveFloat = 600.0
    """Seconds after which a rollout fails."""
    max_attempts: PositiveInt = 3
    """Tries of a rollout that fails, each in a fresh session."""


class GRPOData(StrictModel):
    """Tasks for online training."""

    train: Path
    """JSONL of NeMo Gym task rows."""


class SamplerSettings(StrictModel):
    """How the policy answers."""

    max_tokens: PositiveInt = 64
    """Tokens of one completion at most; a task's own max_output_tokens counts when it is lower."""
    max_batch: PositiveInt = 64
    """Completions sampled side by side."""


class GRPOAlgorithm(StrictModel):
    """Group relative policy optimisation."""

    tasks_per_step: PositiveInt = 8
    """Groups of one step."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts of each task."""
    clip_low: PositiveFloat = 0.2
    """The importance ratio is clipped at 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """The importance ratio is clipped at 1 + clip_high."""
    scale: Literal["std", "none"] = "std"
    """std divides a group's centred rewards by their standard deviation (GRPO); none leaves them (Dr. GRPO)."""


class GRPOSettings(StrictModel):
    """`gym-bridge train grpo`."""

    policy: PolicySettings = PolicySettings()
    data: GRPOData
    env: EnvSettings
    sampler: SamplerSettings = SamplerSettings()
    algorithm: GRPOAlgorithm = GRPOAlgorithm()
    trainer: TrainerSettings = TrainerSettings(max_steps=10)


class TransformSettings(StrictModel):
    """`gym-bridge transform`."""

    to: Literal["response", "sft", "dpo"]
    """Target format: ResponseDataset rows, OpenAI chat rows with tools, or BinaryPreferenceDataset pairs."""
    output: Path
    """The dataset file, written aside and renamed."""
    min_reward: str | None = None
    """Keep rollouts with at least this reward; `none` keeps all. Default 0.9 for response and sft; pairs are never filtered."""
    min_margin: float = Field(default=0.0, ge=0)
    """Pairs need a reward gap larger than this."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a row that cannot be read or converted, or drop and count it."""
    report: Path | None = None
    """Write the row counts here, as JSON."""
