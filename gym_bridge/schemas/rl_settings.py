"""The settings of online reinforcement learning: tasks, environments, sampler, algorithm. Imports no torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator

from gym_bridge.config import StrictModel
from gym_bridge.errors import nearest
from gym_bridge.schemas.play_settings import LimitSettings
from gym_bridge.schemas.rl_presets import PRESETS
from gym_bridge.schemas.rl_rules import OF_ALGORITHM, check_effects, taken_back


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class TaskFile(StrictModel):
    """A file of tasks and how often they are taken."""

    path: Path
    """JSONL of NeMo Gym task rows."""
    weight: PositiveFloat = 1.0
    """Share of the tasks that come from this file, beside the weights of the others."""
    name: str | None = None
    """Names the environment in metrics, such as reward/NAME; null: the file's name without its ending."""
    server: str | None = None
    """Resource server of these tasks, a URL or the name of one of ours; null: env.server."""

    @property
    def called(self) -> str:
        """Its environment in metrics."""
        return self.name or self.path.name.split(".", 1)[0]


class CurriculumSettings(StrictModel):
    """Which tasks are worth playing, by how often the policy solved them of late."""

    solved_reward: float = 1.0
    """A rollout of at least this reward counts as solved."""
    skip_above: float = Field(default=1.0, ge=0, le=1)
    """A task whose last group was solved at least this often is skipped."""
    skip_below: float = Field(default=0.0, ge=0, le=1)
    """A task whose last group was solved at most this often is skipped; one that was never solved only where all rewards of the
    group were the same."""
    skip_passes: PositiveInt = 2
    """Passes over the tasks for which a skipped one rests, before it is tried again."""


class GRPOData(StrictModel):
    """Tasks for online training; or what was played before: one of train, rollouts, groups and replay."""

    train: Path | tuple[TaskFile, ...] | None = None
    """A JSONL file of NeMo Gym task rows, or several as [{path: a.jsonl, weight: 2, name: maths}, {path: b.jsonl}]. null: tasks
    that env.server makes, where it is one of ours that can."""
    num_tasks: PositiveInt = 512
    """How many tasks it makes."""
    validation: dict[str, Path] = Field(default={})
    """Held-out task files by name, such as {held_out: heldout.jsonl}, played greedily and sampled every trainer.validate_every
    steps; each name begins its metrics: validation/held_out/reward. Played at env.server; where files of `train` have servers of
    their own, at that of the file with the set's name."""
    validation_repeats: PositiveInt = 1
    """Sampled rollouts of each held-out task, beside the greedy one."""
    curriculum: CurriculumSettings | None = None
    """Skip tasks that teach nothing; null: every task is taken once in each pass."""
    rollouts: Path | None = None
    """Rollouts with token ids and log-probs to train on instead of playing; their groups are those of one task and one policy
    version."""
    groups: Path | None = None
    """Ranked groups of such rollouts, without numbers."""
    replay: Path | None = None
    """Run whose recorded steps are taken again, without server and sampler."""

    @property
    def files(self) -> tuple[TaskFile, ...]:
        """The task files and their weights; none where nothing is played."""
        if isinstance(self.train, Path):
            return (TaskFile(path=self.train),)
        return self.train or ()

    @model_validator(mode="after")
    def _one_source(self) -> "GRPOData":
        """Raises ValueError for several sources of steps."""
        given = [name for name in ("train", "rollouts", "groups", "replay") if getattr(self, name) is not None]
        if len(given) > 1:
            told = " and ".join(f"data.{name}" for name in given)
            raise ValueError(f"expected one of data.train, data.rollouts, data.groups and data.replay, got {told}")
        return self

    @model_validator(mode="after")
    def _held_out_somewhere(self) -> "GRPOData":
        """Raises ValueError for a held-out set that files with servers of their own leave without a place to be played."""
        names = [one.called for one in self.files]
        if any(one.server is not None for one in self.files) and (astray := [one for one in self.validation if one not in names]):
            raise ValueError(
                f"data.validation.{astray[0]}: files of data.train have servers of their own; call it as the one at whose "
                f"server it is played: {', '.join(names)}"
            )
        return self

    @property
    def is_stored(self) -> bool:
        """True where steps come from what was played before, and nothing is played."""
        return any(one is not None for one in (self.rollouts, self.groups, self.replay))


class EnvSettings(LimitSettings):
    """Where rollouts are played and verified: exactly one of server, agent_url, head_url and gym_configs."""

    server: str | None = None
    """URL of a resource server, or the name of one of ours, which is then started for the run. With head_url or gym_configs: the
    name of one of its resource servers, which this process then plays itself."""
    dialect: Literal["auto", "seed_verify", "gymnasium"] = "auto"
    """What the resource server speaks: /seed_session and /verify, or /reset and /step; auto asks it."""
    agent_url: str | None = None
    """URL of a NeMo Gym agent, which plays the rollouts itself, with the policy's endpoint at policy_address as its model."""
    head_url: str | None = None
    """URL of NeMo Gym's head server: its agents play, each task by the agent that its agent_ref names."""
    gym_configs: tuple[Path, ...] = ()
    """Configs of NeMo Gym, which is started with all of these for the run, in its own venv; then as head_url."""
    agent: str | None = None
    """Name of the agent that plays the tasks which name none."""
    policy_address: str = "127.0.0.1:0"
    """HOST:PORT where the policy's endpoint listens for agents; port 0: any free one, for gym_configs, which are told of it."""
    cohort: bool | None = None
    """Play the rollouts of a task together, for verifiers that compare them. null: as the server's config says."""
    concurrency: PositiveInt = 64
    """Rollouts in flight."""
    patience_s: PositiveFloat = 600.0
    """Seconds that a server may be away before training stops; tries meanwhile are not counted."""
    max_failure_rate: float = Field(default=0.5, ge=0, le=1)
    """Training stops when more than this share of a step's rollouts failed; 1: never."""

    @model_validator(mode="after")
    def _one_place(self) -> "EnvSettings":
        """Raises ValueError for no place to play, or several."""
        given = [name for name in ("agent_url", "head_url", "gym_configs") if getattr(self, name)]
        named = [*given, *(["server"] if self.server and given == [] else [])]
        if len(named) != 1 or (self.server and given == ["agent_url"]):
            told = " and ".join(f"env.{name}" for name in ([*given, "server"] if self.server else given)) or "none"
            out = "; to leave one out set it to null, such as env.server=null" if " and " in told else ""
            raise ValueError(f"expected one of env.server, env.agent_url, env.head_url and env.gym_configs, got {told}{out}")
        return self

    @property
    def played_by(self) -> Literal["agent", "us"]:
        """Who runs the turns: agents of NeMo Gym, or our turn loop."""
        return "us" if self.server else "agent"


class SamplerSettings(StrictModel):
    """How the policy answers."""

    kind: str = "local"
    """local: in this process; vllm: servers at `url`; or a dotted path to a sampler of your own: package.module:Name, called with
    (policy, settings, overlaps=..., run=...): whether it plays while the policy steps, and the run's directory."""
    url: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    """With kind=vllm: base URLs of the replicas, such as [http://127.0.0.1:8000]; a rollout keeps to one. Or a file of them, one
    a line: servers may be added to it and taken out of it while the training runs."""
    transfer: Literal["auto", "disk", "nccl", "ipc"] = "auto"
    """How weights reach vLLM: a safetensors directory that both sides see, NCCL, or CUDA IPC on one machine. auto: disk on a CPU,
    nccl on CUDA."""
    weights_directory: Path | None = None
    """With transfer=disk: where the weights are laid down; null: in the run directory."""
    sleep: bool = False
    """With kind=vllm on the trainer's own GPU: vLLM sleeps while the trainer steps, and wakes for the next rollouts."""
    max_tokens: PositiveInt = 64
    """Tokens of one completion at most; a task's own max_output_tokens counts when it is lower."""
    max_batch: PositiveInt = 64
    """Completions sampled side by side, in this process."""
    lockstep: bool = False
    """In this process: sample a batch only once every rollout in flight waits for the sampler or for its verification is over, so
    that the same tasks under the same weights give the same rollouts, bit for bit."""


class OverlapSettings(StrictModel):
    """Playing while the trainer steps."""

    max_staleness: int = Field(default=0, ge=0)
    """By how many batches the weights that sampled a group may be older than those that train on it; a version each, where a batch
    is one update. 0: rollouts and steps take turns."""
    in_flight_updates: bool = False
    """Weights change while rollouts are under way; false: those under way are played to their end first."""


class CriticSettings(StrictModel):
    """The value model of generalised advantage estimation, on the same backend as the policy."""

    lr: PositiveFloat = 1e-5
    """Its peak learning rate; all else is as policy has it."""
    clip: PositiveFloat | None = 0.2
    """Values move at most this far from those before the update, else the loss does not pull them further; null: no bound."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of a token's future."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda: 0 trusts the values, 1 the rewards."""
    warmup_steps: int = Field(default=0, ge=0)
    """First updates in which the value model alone learns."""


class RewardScale(StrictModel):
    """A linear map of rewards; what lies outside of the source is moved to its border."""

    source: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest reward as verified."""
    target: tuple[float, float] = (0.0, 1.0)
    """What these become."""

    @field_validator("source")
    @classmethod
    def _rising(cls, source: tuple[float, float]) -> tuple[float, float]:
        """Raises ValueError for a source without extent."""
        if source[0] >= source[1]:
            raise ValueError("the lowest reward comes first and is below the highest")
        return source


class AlgorithmValues(StrictModel):
    """The settings of GRPOAlgorithm, each valid by itself."""

    preset: str | None = None
    """grpo, dapo, dr_grpo, gspo, cispo, rloo, reinforce_pp or ppo: its values stand for all that is not set, but for those that
    would have no effect beside what is. null: the defaults below. `algorithm=dapo` on the command line is short for it."""
    tasks_per_step: PositiveInt = 8
    """Groups of one batch."""
    group_size: PositiveInt = 8
    """Rollouts of each task."""
    epochs_per_batch: PositiveInt = 1
    """Passes over a batch of rollouts."""
    minibatches: PositiveInt = 1
    """Updates of one pass, each on its share of the batch's groups."""

    estimator: str = "group"
    """group: a rollout's reward against its group's; components: each component of the reward for itself (GDPO); gae: with a value
    model; teacher: on-policy distillation from algorithm.teacher, rewards play no part; or a dotted path to one of your own."""
    baseline: Literal["mean", "leave_one_out", "none"] = "mean"
    """What a reward is compared with: its group's mean, the mean of its siblings, or 0."""
    scale: Literal["std", "none"] = "std"
    """std divides a group's centred rewards by their standard deviation; none leaves them (Dr. GRPO)."""
    whiten: bool = False
    """Advantages are centred and scaled once more, over the whole batch."""
    component_weights: dict[str, float] = Field(default={})
    """With estimator=components: weights of the components by name; those that are not named weigh 1."""
    credit: Literal["rollout", "turn"] = "rollout"
    """rollout: every token has its rollout's advantage; turn: rewards count from the turn on that earned them, compared with the
    same turn of the siblings; with baseline=leave_one_out and scale=none without bias, whenever rollouts end."""

    loss: str = "clipped"
    """clipped: PPO's surrogate; cispo: a clipped weight, no token loses its gradient; reinforce: no ratio; or a dotted path to a
    function of these settings that gives a loss: package.module:name."""
    ratio: Literal["token", "sequence"] = "token"
    """The importance ratio of a token: its own, or the geometric mean over its sequence (GSPO)."""
    clip_low: PositiveFloat = 0.2
    """The importance ratio is clipped at 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """The importance ratio is clipped at 1 + clip_high."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Where the advantage is negative, the ratio counts as at most this; null: no bound."""
    normalise_by: Literal["tokens", "sequences", "fixed"] = "tokens"
    """What the loss is a mean of: the step's tokens; its sequences, of which each is a mean over its tokens; or its sequences, of
    which each is a sum over `fixed_length`."""
    fixed_length: PositiveInt | None = None
    """With normalise_by=fixed: divides the sum of each sequence; null: sampler.max_tokens."""
    entropy_bonus: float = 0.0
    """Weight of the mean entropy, which the loss rewards."""

    old_logprobs: Literal["sampler", "trainer"] = "sampler"
    """What the ratio is taken against: the sampler's log-probs, or those that the trainer computes before the first update of a
    batch."""
    correction: Literal["none", "tis", "icepop", "seq_mask"] = "none"
    """With old_logprobs=trainer, what the gap between sampler and trainer does to a token's part, by w = exp(old - rollout): tis
    weighs it by w, at most correction_high; icepop by w inside the bounds, 0 outside; seq_mask drops sequences whose geometric
    mean of w lies outside."""
    correction_low: PositiveFloat = 0.5
    """Lower bound of w."""
    correction_high: PositiveFloat = 2.0
    """Upper bound of w."""

    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference, the model that training began with; 0: there is no reference."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL is taken off: in the loss, or from each token's reward."""

    teacher: str | None = None
    """Model whose log-probs teach: a run, a checkpoint, a directory or a registry name, with the policy's tokenizer."""
    teacher_weight: PositiveFloat = 1.0
    """Weight of the teacher's part of an advantage; with an estimator other than teacher it is added to the rewards' part."""
    critic: CriticSettings = CriticSettings()
    """With estimator=gae: the value model."""

    reward_scale: RewardScale | None = None
    """Linear map of the verified rewards; null: as verified."""
    reward_shaping: str | None = None
    """Dotted path to a function of a rollout's row and its reward that gives the reward to train on: package.module:name."""
    truncated_factor: float | None = None
    """A truncated rollout's reward is multiplied by this; null: it stands."""
    overlong_buffer: PositiveInt | None = None
    """Tokens before the limit over which a completion's reward falls linearly (DAPO); null: it does not."""
    overlong_penalty: float = Field(default=1.0, ge=0)
    """By how much it has fallen at the limit."""
    overlong_filter: bool = False
    """Truncated rollouts count in their group's baseline and do not train."""
    dynamic_sampling: bool = False
    """Groups without a signal are replaced by further ones, until the batch is full."""
    max_refills: PositiveInt = 10
    """How many times more groups of a batch may be played, before it trains with those that have a signal."""


class GRPOAlgorithm(AlgorithmValues):
    """Policy-gradient reinforcement learning on groups; `preset` names a published combination of the settings beside it."""

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, given: Any) -> Any:
        """The preset's values below those given. Raises ValueError for an unknown preset."""
        if isinstance(given, str):
            given = {"preset": given}
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        name = given["preset"]
        if name not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"algorithm.preset={name!r}: no preset of this name{nearest(str(name), PRESETS)}; one of {known}")
        preset = PRESETS[name]
        try:
            gone = taken_back(preset, given, AlgorithmValues.model_validate({**preset, **given}))
        except ValidationError:
            gone = set()  # the values are told of where they are validated
        return {**{key: value for key, value in preset.items() if key not in gone}, **given}

    @model_validator(mode="after")
    def _consistent(self) -> "GRPOAlgorithm":
        """Raises ValueError for settings that contradict each other, or would do nothing."""
        for ok, sentence in _demands(self):
            if not ok:
                raise ValueError(sentence)
        check_effects(OF_ALGORITHM, {"algorithm": self})
        return self


def _demands(chosen: GRPOAlgorithm) -> list[tuple[bool, str]]:
    return [
        (
            ":" in chosen.loss or chosen.loss in LOSSES,
            f"algorithm.loss={chosen.loss!r}: one of {', '.join(LOSSES)}, or package.module:name",
        ),
        (
            ":" in chosen.estimator or chosen.estimator in ESTIMATORS,
            f"algorithm.estimator={chosen.estimator!r}: one of {', '.join(ESTIMATORS)}, or package.module:name",
        ),
        (
            chosen.baseline != "none" or chosen.scale == "none" or chosen.estimator not in ("group", "components"),
            "algorithm.baseline=none centres nothing that algorithm.scale=std could divide; set algorithm.scale=none",
        ),
        (chosen.correction_low < chosen.correction_high, "algorithm.correction_low must be below algorithm.correction_high"),
        (chosen.estimator != "teacher" or chosen.teacher is not None, "algorithm.estimator=teacher needs algorithm.teacher"),
        (
            chosen.group_size > 1 or chosen.baseline == "none" or chosen.estimator in ("gae", "teacher") or ":" in chosen.estimator,
            "algorithm.group_size=1: a rollout without siblings has no advantage; set algorithm.baseline=none, or a larger group",
        ),
    ]


LOSSES = ("clipped", "cispo", "reinforce")
ESTIMATORS = ("group", "components", "gae", "teacher")
