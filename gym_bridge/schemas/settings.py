"""The settings of every verb: one model a verb, shared sections, defaults that somebody ran. Imports no torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BeforeValidator, Field, PlainValidator, PositiveFloat, PositiveInt, model_validator

from gym_bridge.config import StrictModel


def _json_object(value: Any) -> Any:
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError as error:
        raise ValueError(f"expected a JSON object: {error}") from None


def _repeats(value: Any) -> int | dict[str, int]:
    given = dict(part.strip().split("=", 1) for part in value.split(",")) if isinstance(value, str) and "=" in value else value
    try:
        counts = {str(name): int(count) for name, count in given.items()} if isinstance(given, dict) else int(given)
    except (TypeError, ValueError):
        raise ValueError("expected a number, or agent=number,... with _default=number for the others") from None
    if min(counts.values() if isinstance(counts, dict) else [counts]) < 1:
        raise ValueError("a task is repeated once at least")
    return counts


def _concurrency(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ValueError("expected a number of rollouts, or auto")
    return number


JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_object)]
Repeats = Annotated[int | dict[str, int], PlainValidator(_repeats)]
Concurrency = Annotated[int | Literal["auto"], PlainValidator(_concurrency)]


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


class TargetSettings(StrictModel):
    """Where rollouts are played: exactly one of a resource server, an agent, a head server, or NeMo Gym's own configs."""

    server: str | None = None
    """URL of a resource server, or the name, file or dotted path of one of ours, which is then started for the run. With
    --head-url or --gym-config: the name of one of its resource servers, which this process then plays itself."""
    dialect: Literal["auto", "seed_verify", "gymnasium"] = "auto"
    """What the resource server speaks: /seed_session and /verify, or /reset and /step; auto asks it."""
    agent_url: str | None = None
    """URL of a NeMo Gym agent, which plays the rollouts itself."""
    head_url: str | None = None
    """URL of NeMo Gym's head server: its agents play, each row by the agent that its agent_ref names."""
    gym_config: tuple[Path, ...] = ()
    """A config of NeMo Gym, which is started with all of these for the run, in its own venv; then as --head-url."""
    agent: str | None = None
    """With --head-url or --gym-config: the agent of the rows that name none."""
    cohort: bool | None = None
    """Play the rollouts of a task together, for verifiers that compare them. Left out: as the server's config says."""


class ModelSettings(StrictModel):
    """The policy that plays, and how it is asked."""

    model: str = "smollm2-135m"
    """Without --model-url: a run, a checkpoint, a directory, a GGUF file or a registry name, played in this process. With it: the
    model's name on the wire, sent as it is."""
    model_url: tuple[str, ...] = ()
    """Base URL of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; its key comes from OPENAI_API_KEY. Given more
    than once: replicas, of which a rollout keeps to one."""
    model_api: Literal["responses", "chat", "tokens"] = "responses"
    """Wire of the endpoint: OpenAI Responses, Chat Completions, or token ids both ways (vLLM)."""
    tokenizer: str | None = None
    """With --model-api tokens: directory or registry name of the model's tokenizer, where --model is neither."""
    renderer: str | None = None
    """How messages become token ids, in this process and on the tokens wire: a family's name or a dotted path. Left out: as the
    model's files tell."""
    header: tuple[str, ...] = ()
    """`Name: value`, sent to the model endpoint with every request; never written to a file."""
    extra_body: JsonObject = Field(default_factory=dict)
    """JSON object laid over every request to the model endpoint."""
    chat_template_kwargs: JsonObject = Field(default_factory=dict)
    """JSON object for the chat template of the model endpoint."""
    device: str = "cpu"
    """Torch device of the in-process sampler."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the in-process sampler. auto: bfloat16 where it is native."""


class SamplingSettings(StrictModel):
    """Which tasks are played how often, and with which parameters."""

    num_repeats: Repeats = 1
    """Rollouts of each task; or by agent: name=4,_default=1."""
    limit: PositiveInt | None = None
    """Play only the first so many tasks."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature, instead of the tasks' own; 0 takes the likeliest token. In this process 1 when neither says."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus of the sampling, instead of the tasks' own."""
    max_output_tokens: PositiveInt | None = None
    """Tokens of one model call at most, instead of the tasks' own. In this process and on the tokens wire never more than 512
    unless given here."""
    params: tuple[str, ...] = ()
    """`responses_create_params.KEY=VALUE`, laid over every task; VALUE is YAML."""
    prompt_config: Path | None = None
    """NeMo Gym's YAML prompt template, `user` and perhaps `system`, for tasks that come without an input."""
    seed_per_repeat: bool = False
    """Send each repeat's index as the endpoint's seed."""
    seed: int = 0
    """Seed of the sampler's random numbers, in this process and on the tokens wire."""


class LimitSettings(StrictModel):
    """What ends a rollout. What a limit stops is verified as it stands, and marked truncated."""

    max_turns: PositiveInt = 8
    """Model calls of a rollout at most."""
    max_tool_calls: PositiveInt | None = None
    """Tool calls of a rollout at most; a turn whose calls would pass it ends the rollout before they are made."""
    max_total_tokens: PositiveInt | None = None
    """Tokens of a rollout's conversation at most."""
    max_repeated_turns: int = Field(default=4, ge=2)
    """Turns in a row that say, call and get the same, after which a rollout ends."""
    request_timeout_s: PositiveFloat = 300.0
    """Seconds that one model call, tool call or verification may take."""
    rollout_timeout_s: PositiveFloat = 600.0
    """Seconds after which a rollout fails."""
    max_attempts: PositiveInt = 3
    """Tries of a rollout that fails, each in a fresh session."""


class BudgetSettings(StrictModel):
    """How much at once, and what ends the collection."""

    concurrency: Concurrency = 64
    """Rollouts in flight; auto follows the rate, the errors and the load of the endpoint."""
    workers: PositiveInt = 1
    """Processes that play, each with its share of the concurrency."""
    time_budget_s: PositiveFloat | None = None
    """Stop after so many seconds; rollouts in flight are called off."""
    token_budget: PositiveInt | None = None
    """Start no rollout once the model calls took and gave so many tokens."""
    cost_budget: PositiveFloat | None = None
    """Start no rollout once the model calls cost so much, by the two prices below."""
    input_price: float = Field(default=0.0, ge=0)
    """Price of a million input tokens."""
    output_price: float = Field(default=0.0, ge=0)
    """Price of a million output tokens."""
    max_failure_rate: float | None = Field(default=None, ge=0, lt=1)
    """Stop when more than this share of the attempts failed, once 64 have ended."""
    max_consecutive_failures: PositiveInt | None = None
    """Stop when so many attempts in a row failed."""


class PromptSettings(StrictModel):
    """A prompt template of NeMo Gym: `{field}` stands for the task's own field, `{{` and `}}` for braces."""

    user: str
    """Text of the user message."""
    system: str | None = None
    """Text of the system message; none without it."""


class FileSettings(StrictModel):
    """Tasks in, rollouts out."""

    input: Path
    """JSONL of NeMo Gym task rows."""
    output: Path
    """The rollouts file; its siblings are named after its stem. The same command again goes on where the first stopped."""
    overwrite: bool = False
    """Discard what an earlier, different command left at --output."""


class PlaySettings(BudgetSettings, LimitSettings, SamplingSettings, ModelSettings, TargetSettings):
    """How rollouts are played: where, by whom, within which limits."""

    @model_validator(mode="after")
    def _one_target(self) -> "PlaySettings":
        given = [name for name in ("agent_url", "head_url", "gym_config") if getattr(self, name)]
        named = [*given, *(["server"] if self.server and given in ([], ["agent_url"]) else [])]
        if len(named) != 1:
            raise ValueError(
                "expected one of --server, --agent-url, --head-url and --gym-config"
                + (f", got {' and '.join('--' + name.replace('_', '-') for name in named)}" if named else "")
            )
        if self.cost_budget is not None and not (self.input_price or self.output_price):
            raise ValueError("--cost-budget needs --input-price or --output-price, of a million tokens")
        if self.model_api == "tokens" and not self.model_url:
            raise ValueError("--model-api tokens needs --model-url; without it the model is played in this process")
        return self


class RunSettings(PlaySettings, FileSettings):
    """What `collect` and `eval` share: rollouts played from one file into another."""


class CollectSettings(RunSettings):
    """`gym-bridge collect`."""

    adopt: bool = False
    """Take over a collection that NeMo Gym's own collector began at --output, and finish it."""
    inline_token_ids: bool = False
    """Write token ids into the rows, as NeMo Gym's item fields, instead of beside them."""


class EvalSettings(RunSettings):
    """`gym-bridge eval`."""


class DoctorSettings(PlaySettings):
    """`gym-bridge doctor`."""

    input: Path | None = None
    """JSONL of task rows, of which the first is played. A server of ours makes a task itself."""


class ReverifySettings(FileSettings):
    """`gym-bridge reverify`. --input is a rollouts file; its failures file is read as well."""

    server: str
    """URL of the resource server that verifies."""
    only: Literal["all", "failed"] = "all"
    """Verify every rollout again, or only those whose verification failed."""
    force: bool = False
    """Verify although the server does not say that it needs no session."""
    concurrency: PositiveInt = 64
    """Verifications in flight."""
    request_timeout_s: PositiveFloat = 300.0
    """Seconds that one verification may take."""
    max_attempts: PositiveInt = 3
    """Tries of a verification that fails."""


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
