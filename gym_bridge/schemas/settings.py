"""The settings of training: shared sections, defaults that somebody ran. Imports no torch."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from gym_bridge.config import StrictModel
from gym_bridge.errors import nearest
from gym_bridge.schemas.cluster_settings import ClusterSettings, OnlineClusterSettings
from gym_bridge.schemas.data_settings import DataFile, OfflineData, PreferenceData, RewardModelData, SFTData
from gym_bridge.schemas.logger_settings import LoggerSettings
from gym_bridge.schemas.policy_settings import LoRASettings, PolicySettings
from gym_bridge.schemas.rl_rules import OF_SECTIONS, check_effects
from gym_bridge.schemas.rl_settings import (
    CriticSettings,
    CurriculumSettings,
    EnvSettings,
    GRPOAlgorithm,
    GRPOData,
    OverlapSettings,
    RewardScale,
    SamplerSettings,
    TaskFile,
)

__all__ = [
    "ONLY_WITH",
    "PREFERENCE_LOSSES",
    "SETTINGS",
    "AlarmSettings",
    "ClusterSettings",
    "CriticSettings",
    "CurriculumSettings",
    "DPOAlgorithm",
    "DPOSettings",
    "DataFile",
    "EnvSettings",
    "GRPOAlgorithm",
    "GRPOData",
    "GRPOSettings",
    "GRPOTrainerSettings",
    "LoRASettings",
    "LoggerSettings",
    "OfflineData",
    "OnlineClusterSettings",
    "OverlapSettings",
    "PolicySettings",
    "PreferenceData",
    "RewardModelAlgorithm",
    "RewardModelData",
    "RewardModelSettings",
    "RewardScale",
    "SFTAlgorithm",
    "SFTData",
    "SFTSettings",
    "SamplerSettings",
    "TaskFile",
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
    """Validation metric that tells which checkpoint is best, such as held_out/accuracy; null: the first set's loss, or its reward
    where tasks are played."""
    watch_for: Literal["lowest", "highest"] | None = None
    """Which value of it is best; null: highest for rewards and accuracies, lowest for all else."""
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
    cluster: ClusterSettings = ClusterSettings()
    logger: LoggerSettings = LoggerSettings()


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
    cluster: ClusterSettings = ClusterSettings()
    logger: LoggerSettings = LoggerSettings()

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
    cluster: ClusterSettings = ClusterSettings()
    logger: LoggerSettings = LoggerSettings()


class AlarmSettings(StrictModel):
    """When training looks ill. An alarm is a metric, alarm/NAME, and a warning; it stops nothing."""

    min_entropy: float | None = Field(default=0.05, ge=0)
    """Nats a token below which the policy's entropy has collapsed; null: not watched."""
    max_kl: PositiveFloat | None = 10.0
    """KL to the reference, in nats a token, above which the policy has drifted; null: not watched. Needs algorithm.beta > 0."""
    max_gap: PositiveFloat | None = 1.05
    """Mean exp |log-prob of the sampler - log-prob of the trainer| above which the two disagree; null: not watched."""
    min_length_ratio: float | None = Field(default=0.3, ge=0, lt=1)
    """Mean length of completions, as a share of the first steps', below which it has collapsed; null: not watched."""
    max_without_signal: float | None = Field(default=0.9, gt=0, lt=1)
    """Share of the last five batches' groups without a signal above which hardly anything is learnt from; null: not watched."""
    min_spread_ratio: float | None = Field(default=0.1, gt=0, lt=1)
    """Deviation of the last five batches' rewards, as a share of the first five's, below which they tell nothing apart; null: not
    watched."""
    max_failed: float | None = Field(default=0.2, gt=0, lt=1)
    """Share of a batch's rollouts that may fail; null: not watched."""
    heldout_patience: PositiveInt | None = 3
    """Validations in a row in which the training reward rose while the held-out one fell; null: not watched."""


class GRPOTrainerSettings(TrainerSettings):
    """The training loop of reinforcement learning."""

    max_steps: PositiveInt | None = 10
    """Stop after so many optimizer updates; null: never where tasks are played, else when the data ends."""
    record: bool = False
    """Keep every batch's rollouts, token ids, advantages and log-probs in steps/, so that data.replay can take the steps again."""
    alarms: AlarmSettings = AlarmSettings()


class GRPOSettings(StrictModel):
    """`gym-bridge train grpo`."""

    shorthands: ClassVar = {"algorithm": "algorithm.preset"}
    gives_way: ClassVar = {"env.agent_url": ("env.server",)}

    policy: PolicySettings = PolicySettings()
    data: GRPOData = GRPOData()
    env: EnvSettings | None = None
    """Not where data.rollouts, data.groups or data.replay stand in for playing."""
    sampler: SamplerSettings = SamplerSettings()
    algorithm: GRPOAlgorithm = GRPOAlgorithm()
    overlap: OverlapSettings = OverlapSettings()
    trainer: GRPOTrainerSettings = GRPOTrainerSettings()
    cluster: OnlineClusterSettings = OnlineClusterSettings()
    logger: LoggerSettings = LoggerSettings()

    @model_validator(mode="after")
    def _consistent(self) -> "GRPOSettings":
        """Raises ValueError for sections that contradict each other, and for settings that would do nothing."""
        if self.env is None and not self.data.is_stored:
            raise ValueError("training needs somewhere to play: set env.server, env.agent_url, env.head_url or env.gym_configs")
        server = None if self.env is None else self.env.server
        if not self.data.is_stored and self.data.train is None and (server is None or "://" in server):
            raise ValueError("data.train is required: only a server that env.server names makes tasks; set data.train=...")
        if (self.data.rollouts or self.data.groups) is not None and self.algorithm.old_logprobs == "trainer":
            raise ValueError("algorithm.old_logprobs=trainer: the policy that played stored rollouts is gone; set it to sampler")
        self._check_cluster()
        stale = self.overlap.max_staleness > 0 and self.algorithm.correction == "none"
        if stale and self.algorithm.old_logprobs == "trainer":
            raise ValueError(
                "algorithm.old_logprobs=trainer leaves the age of overlap.max_staleness uncorrected; "
                "set algorithm.correction=tis, or algorithm.old_logprobs=sampler"
            )
        batches = self.overlap.max_staleness + 1
        num_rollouts = batches * self.algorithm.tasks_per_step * self.algorithm.group_size
        if self.sampler.lockstep and self.env is not None and self.env.concurrency < num_rollouts:
            what = "a whole batch" if batches == 1 else f"the {batches} batches of overlap.max_staleness={batches - 1}"
            raise ValueError(f"sampler.lockstep needs env.concurrency >= {num_rollouts}, {what}, got {self.env.concurrency}")
        check_effects(OF_SECTIONS, {name: getattr(self, name) for name in ("data", "env", "sampler", "overlap")})
        return self

    def _check_cluster(self) -> None:
        """Raises ValueError for roles that nothing asks for, and for vLLM without an address."""
        sampler, roles = self.sampler, self.cluster
        if sampler.kind == "vllm" and not sampler.url and not roles.sampler.count:
            raise ValueError("sampler.kind=vllm needs sampler.url, such as [http://127.0.0.1:8000], or cluster.sampler.count")
        if roles.sampler.count and (sampler.kind != "vllm" or sampler.url):
            raise ValueError("cluster.sampler.count starts vLLM servers: set sampler.kind=vllm, and leave out sampler.url")
        if roles.collectors.count and self.data.is_stored:
            raise ValueError("cluster.collectors.count has no effect on data that is stored: nobody plays; leave it out")
        if roles.collectors.count and self.env is not None and self.env.played_by != "us":
            raise ValueError("cluster.collectors.count has no effect where NeMo Gym's agents play; leave it out")


TrainSettings = SFTSettings | DPOSettings | RewardModelSettings | GRPOSettings
"""Settings of any `gym-bridge train` verb."""
SETTINGS: dict[str, type[TrainSettings]] = {"sft": SFTSettings, "dpo": DPOSettings, "rm": RewardModelSettings, "grpo": GRPOSettings}
"""Their classes by verb."""


def verb_of(settings: TrainSettings) -> str:
    """The verb that they are settings of."""
    return next(name for name, kind in SETTINGS.items() if isinstance(settings, kind))
