"""The settings of the verbs that play rollouts, and of reverify: one model a verb, shared sections, defaults that somebody ran."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator, PositiveFloat, PositiveInt, field_validator, model_validator

from gym_bridge.config import JsonObject, StrictModel
from gym_bridge.schemas.remote_names import FileName

KNOWN_ANSWERS, TRIED_ANSWERS = "known-answers", "tried-answers"
"""Models that say what tasks tell of answers: the right ones, or all that check-reward tries."""
"""The policy that says what is known to be right."""


def _repeats(value: Any) -> int | dict[str, int]:
    try:
        several = isinstance(value, str) and "=" in value
        given = dict(part.strip().split("=", 1) for part in value.split(",")) if several else value
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


Repeats = Annotated[int | dict[str, int], PlainValidator(_repeats)]
Concurrency = Annotated[int | Literal["auto"], PlainValidator(_concurrency)]


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
    """Name of the agent that plays the rows which name none."""
    cohort: bool | None = None
    """Play the rollouts of a task together, for verifiers that compare them. Left out: as the server's config says."""


class ModelSettings(StrictModel):
    """The policy that plays, and how it is asked."""

    model: str = "smollm2-135m"
    """Without --model-url: a run, a checkpoint, a directory, a GGUF file or a registry name, played in this process; or
    known-answers, which says what the tasks tell to be right: demonstrations; or tried-answers, which says all that check-reward
    tries, right, wrong and adversarial by turns: pairs for a reward model. With it: the model's name on the wire, as it is."""
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
    """Send each repeat's index as a seed, in `metadata.extra_body`, which NeMo Gym's model server, chat and tokens follow."""
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
    patience_s: PositiveFloat = 60.0
    """Seconds that a server may be away, once a rollout has succeeded; tries meanwhile are not counted."""


class BudgetSettings(StrictModel):
    """How much at once, and what ends the collection."""

    concurrency: Concurrency = 64
    """Rollouts in flight; auto follows the rate, the errors and the load of the endpoint."""
    workers: PositiveInt = 1
    """Processes that play, each with its share of the concurrency."""
    time_budget_s: PositiveFloat | None = None
    """Stop after so many seconds; rollouts in flight are called off."""
    token_budget: PositiveInt | None = None
    """Start no rollout once the model calls of this run took and gave so many tokens."""
    cost_budget: PositiveFloat | None = None
    """Start no rollout once the model calls of this run cost so much, by the two prices below."""
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

    input: FileName
    """JSONL of NeMo Gym task rows: a path, or a URL such as s3://bucket/tasks.jsonl."""
    output: FileName
    """The rollouts file, a path or a URL; its siblings are named after it. The same command goes on where the first stopped."""
    overwrite: bool = False
    """Discard what an earlier, different command left at --output."""


class PlaySettings(BudgetSettings, LimitSettings, SamplingSettings, ModelSettings, TargetSettings):
    """How rollouts are played: where, by whom, within which limits."""

    @model_validator(mode="after")
    def _consistent(self) -> "PlaySettings":
        """Raises ValueError for no target or several, and for settings that would do nothing: a silent one is an error too."""
        given = [name for name in ("agent_url", "head_url", "gym_config") if getattr(self, name)]
        named = [*given, *(["server"] if self.server and given in ([], ["agent_url"]) else [])]
        if len(named) != 1:
            told = f", got {' and '.join(map(_flag, named))}" if named else ""
            raise ValueError(f"expected one of --server, --agent-url, --head-url and --gym-config{told}")
        for name in ("server", "agent_url", "head_url"):
            _check_address(name, getattr(self, name))
        idle = self.model_fields_set & (OTHER_THAN[self.played_by] - ({"model", "model_url"} if self.gym_config else set()))
        if idle:
            raise ValueError(f"{', '.join(sorted(map(_flag, idle)))}: without effect {WHEN[self.played_by]}")
        if self.cost_budget is not None and not (self.input_price or self.output_price):
            raise ValueError("--cost-budget needs --input-price or --output-price, of a million tokens")
        if not all(HEADER.fullmatch(line) for line in self.header):
            raise ValueError("--header: expected 'Name: value'")
        if self.agent is not None and not given:
            raise ValueError("--agent needs --agent-url, --head-url or --gym-config")
        if self.gym_config and len(self.model_url) > 1:
            raise ValueError("--gym-config hands one --model-url to NeMo Gym; give one")
        if self.workers > 1 and self.played_by == "process":
            raise ValueError(f"--workers {self.workers}: {PLAYED_BY_ONE}")
        return self

    @property
    def samples_here(self) -> bool:
        """Whether a model is played in this process."""
        return self.played_by == "process" and self.model not in (KNOWN_ANSWERS, TRIED_ANSWERS)

    @property
    def played_by(self) -> Literal["agent", "process", "wire", "tokens"]:
        """Who asks the model: an agent of NeMo Gym, or we in this process, over a wire, or over the tokens wire."""
        if self.agent_url or ((self.head_url or self.gym_config) and not self.server):
            return "agent"
        if not self.model_url:
            return "process"
        return "tokens" if self.model_api == "tokens" else "wire"


HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+:[ \t]*[^\x00-\x1f\x7f]*")
IN_PROCESS = frozenset({"device", "compute_dtype"})
RENDERING = frozenset({"tokenizer", "renderer"})
ASKING = frozenset({"model_url", "model_api", "header", "extra_body"})
TURNS = frozenset({"max_turns", "max_tool_calls", "max_total_tokens", "max_repeated_turns", "request_timeout_s", "dialect"})
OTHER_THAN = {
    "agent": IN_PROCESS | RENDERING | ASKING | TURNS | {"model", "chat_template_kwargs", "seed"},
    "process": ASKING | {"tokenizer", "top_p"},
    "wire": IN_PROCESS | RENDERING | {"seed"},
    "tokens": IN_PROCESS,
}
"""Settings without effect, by who asks the model."""
PLAYED_BY_ONE = "a model in this process is played by one; give --model-url"
WHEN = {
    "agent": "where an agent of NeMo Gym plays: it has its own model and its own limits",
    "process": "where the model is played in this process: give --model-url",
    "wire": "where an endpoint plays by messages",
    "tokens": "where an endpoint plays",
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_address(name: str, value: str | None) -> None:
    if value is None or (name == "server" and "://" not in value):
        return
    parts = urlsplit(value)
    if parts.username or parts.password:
        raise ValueError(f"{_flag(name)} holds a user and a password; leave them out, a token stands in GYM_BRIDGE_SERVER_TOKEN")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{_flag(name)} {value!r}: expected an address such as http://127.0.0.1:9000")


class RunSettings(PlaySettings, FileSettings):
    """What `collect` and `eval` share: rollouts played from one file into another."""

    ray: str | None = None
    """Let Ray place the processes of --workers: auto, this machine's cluster; local, one that is started here; or HOST:PORT."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Serve what is done to Prometheus on this port of the loopback, while it runs."""

    @model_validator(mode="after")
    def _placeable(self) -> "RunSettings":
        """Raises ValueError for a model of this process that Ray is to place."""
        if self.ray is not None and self.played_by == "process":
            raise ValueError(f"--ray {self.ray}: {PLAYED_BY_ONE}")
        return self


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

    @field_validator("server")
    @classmethod
    def _an_address(cls, server: str) -> str:
        if "://" not in server:
            raise ValueError("expected the address of a running server, such as http://127.0.0.1:9000")
        _check_address("server", server)
        return server

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
