"""The settings of training: shared sections, defaults that somebody ran. Imports no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from gym_bridge.config import StrictModel
from gym_bridge.errors import nearest
from gym_bridge.schemas.data_settings import DataFile, OfflineData, PreferenceData, RewardModelData, SFTData
from gym_bridge.schemas.policy_settings import LoRASettings, PolicySettings

__all__ = [
    "ONLY_WITH",
    "PREFERENCE_LOSSES",
    "DPOAlgorithm",
    "DPOSettings",
    "DataFile",
    "EnvSettings",
    "GRPOAlgorithm",
    "GRPOData",
    "GRPOSettings",
    "LoRASettings",
    "OfflineData",
    "PolicySettings",
    "PreferenceData",
    "RewardModelAlgorithm",
    "RewardModelData",
    "RewardModelSettings",
    "SFTAlgorithm",
    "SFTData",
    "SFTSettings",
    "SamplerSettings",
    "TrainSettings",
    "TrainerSettings",
]


class TrainerSettings(StrictModel):
    """The training loop."""

    output: Path = Path("runs/train")
    """Run directory: config, metrics, checkpoints."""
    max_steps: PositiveInt | None = None
    """Stop after so many optimizer updates; null: when the data ends."""
    max_time_s: PositiveFloat | None = None
    """Stop, and save, after so many seconds of this command; the same command again goes on. null: no budget."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints; the last step is always saved."""
    keep_last: PositiveInt = 1
    """How many checkpoints stay on disk, the newest ones."""
    validate_every: PositiveInt | None = None
    """Steps between validations on data.validation; the first is before all steps, the last after them. null: only these two."""
    watch: str | None = None
    """Validation metric that tells which checkpoint is best, such as held_out/accuracy; null: the first set's loss."""
    watch_for: Literal["lowest", "highest"] = "lowest"
    """Which value of it is best."""
    keep_best: bool = False
    """Save a checkpoint at each best validation and keep the newest of those too; checkpoints/best leads to it."""
    patience: PositiveInt | None = None
    """Stop early after so many validations in a row without a better one; null: never."""
    seed: int = 0
    """Order of the data, and of the sampler's random numbers."""


class SFTAlgorithm(StrictModel):
    """Supervised fine-tuning."""

    loss: str = "nll"
    """nll: negative log-likelihood; or a dotted path to a function of these settings that gives a loss: package.module:name."""
    mean_over: Literal["tokens", "rows"] = "tokens"
    """What the loss is a mean of: the step's trained tokens, so that long answers count more, or its rows; of a row that makes
    several sequences each counts as one."""
    batch_size: PositiveInt = 16
    """Rows of one optimizer update."""
    epochs: PositiveInt = 1
    """Passes over the rows."""

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        """Raises ValueError for a name that is neither a loss of ours nor a dotted path."""
        if ":" not in name and name != "nll":
            raise ValueError(f"no loss of this name{nearest(name, ['nll'])}; nll, or package.module:name")
        return name


class SFTSettings(StrictModel):
    """`gym-bridge train sft`."""

    policy: PolicySettings = PolicySettings()
    data: SFTData
    algorithm: SFTAlgorithm = SFTAlgorithm()
    trainer: TrainerSettings = TrainerSettings()


PREFERENCE_LOSSES = ("sigmoid", "robust", "ipo", "simpo", "orpo", "kto")

ONLY_WITH: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("sigmoid", "robust"),
    "length_normalised": ("sigmoid", "robust", "ipo"),
    "margin": ("simpo",),
    "sft_weight": ("sigmoid", "robust", "ipo", "simpo", "kto"),
}
"""The losses that heed a setting of DPOAlgorithm."""


class DPOAlgorithm(StrictModel):
    """Direct preference optimisation and its kin."""

    loss: str = "sigmoid"
    """sigmoid: DPO, with label_smoothing cDPO; robust: its unbiased form; ipo; simpo and orpo, which need no reference; kto, which
    takes each side for itself; or a dotted path to a function of these settings that gives a loss: package.module:name."""
    beta: PositiveFloat = 0.1
    """Scale of the rewards, for ipo its tau; for orpo the weight of the odds ratio beside the likelihood."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are assumed to stand the wrong way round."""
    length_normalised: bool = False
    """Log-ratios are means over a side's tokens instead of sums; `beta` is then larger, such as 5."""
    margin: float = Field(default=0.5, ge=0)
    """SimPO's gamma: by how much the chosen reward should be higher."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen side's negative log-likelihood, a mean over its tokens; orpo has it anyway, with weight 1."""
    batch_size: PositiveInt = 8
    """Pairs of one optimizer update."""
    epochs: PositiveInt = 1
    """Passes over the pairs."""

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        """Raises ValueError for a name that is neither a loss of ours nor a dotted path."""
        if ":" not in name and name not in PREFERENCE_LOSSES:
            known = ", ".join(PREFERENCE_LOSSES)
            raise ValueError(f"no loss of this name{nearest(name, PREFERENCE_LOSSES)}; one of {known}, or package.module:name")
        return name


class DPOSettings(StrictModel):
    """`gym-bridge train dpo`."""

    policy: PolicySettings = PolicySettings(lr=1e-6)
    data: PreferenceData
    algorithm: DPOAlgorithm = DPOAlgorithm()
    trainer: TrainerSettings = TrainerSettings()

    @model_validator(mode="after")
    def _no_idle_setting(self) -> "DPOSettings":
        """Raises ValueError for a setting that the loss would not heed: a silent one is an error too."""
        for name, losses in ONLY_WITH.items():
            value, default = getattr(self.algorithm, name), DPOAlgorithm.model_fields[name].default
            if value != default and ":" not in self.algorithm.loss and self.algorithm.loss not in losses:
                known = ", ".join(losses)
                raise ValueError(f"algorithm.{name} has no effect on algorithm.loss={self.algorithm.loss}; it is for {known}")
        return self


class RewardModelAlgorithm(StrictModel):
    """A reward model after Bradley and Terry."""

    centring: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of a pair's scores, which holds them around 0; 0.01 is usual."""
    batch_size: PositiveInt = 8
    """Pairs of one optimizer update."""
    epochs: PositiveInt = 1
    """Passes over the pairs."""


class RewardModelSettings(StrictModel):
    """`gym-bridge train rm`."""

    policy: PolicySettings = PolicySettings()
    data: RewardModelData
    algorithm: RewardModelAlgorithm = RewardModelAlgorithm()
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

    kind: str = "local"
    """local: in this process; or a dotted path to a sampler of your own: package.module:Name, called with (policy, settings)."""
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


TrainSettings = SFTSettings | DPOSettings | RewardModelSettings | GRPOSettings
"""Settings of any `gym-bridge train` verb."""
