"""The protocols at which rooms meet. Each has, or may get, more than one backend."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from gym_bridge.schemas.rollouts import Group, Item, Rollout, Row
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams, TrainingSequence, TurnTokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """One call of the policy: the conversation so far and how to answer it."""

    items: tuple[Item, ...]
    """Input items of the task, then every output item since, in order."""
    tools: tuple[Item, ...]
    """Tools of the task in the flat Responses form."""
    params: Mapping[str, Any]
    """Responses parameters of the task and of the run: temperature, top_p, max_output_tokens, ..."""
    key: SampleKey
    previous: TurnTokens | None = None
    """Tokens of the turn before; a token endpoint extends them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a model call took in and gave out."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Of `input_tokens`, those that the endpoint had computed before."""
    reasoning_tokens: int = 0
    """Of `output_tokens`."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )

    def as_response(self) -> dict[str, Any]:
        """The `usage` of a Responses object."""
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one model call gave: Responses output items and, from a token endpoint, the tokens."""

    items: tuple[Item, ...]
    usage: Usage
    incomplete_reason: str | None = None
    """`max_output_tokens` when the call was cut off; None when the model ended it."""
    tokens: TurnTokens | None = None
    model: str = ""


class ModelEndpoint(Protocol):
    """A policy behind any wire: Responses, chat, tokens, in process."""

    async def turn(self, request: TurnRequest) -> Turn:
        """One model call. Raises ServerError when the endpoint fails."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class Sampler(Protocol):
    """Token ids in, token ids and log-probabilities out."""

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """One completion of `prompt_ids`. Raises PolicyError when the prompt leaves no room."""
        ...


class WeightSync(Protocol):
    """Brings the trainer's weights to the sampler."""

    def push(self, weights: Iterable[tuple[str, "Tensor"]], version: int) -> None:
        """After this returns, every new completion carries `version`."""
        ...


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss to differentiate and numbers to report. Metrics are sums over the microbatch, already divided by the step's totals;
    `largest` and `smallest` are extremes over it."""

    value: "Tensor"
    metrics: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    smallest: dict[str, float] = field(default_factory=dict)


LossFn = Callable[["Tensor", "TrainedTokens"], Loss]
"""(values [N] of the microbatch's trained tokens, their other columns) -> Loss. The values are log-probs, or scores: see `Head`."""

Head = Literal["lm", "scalar"]
"""What a policy computes for a trained token: `lm` its log-prob given those before it, `scalar` a score of all up to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTokens:
    """Columns beside the log-probs of a microbatch. N = its trained tokens, sequence after sequence."""

    rollout_logprobs: "Tensor"  # [N] as the sampler reported; NaN where the sequence was not sampled
    old_logprobs: "Tensor"  # [N] before this update; the sampler's where nothing else was computed
    ref_logprobs: "Tensor"  # [N] of the frozen reference; NaN where there is none
    advantages: "Tensor"  # [N]
    returns: "Tensor"  # [N] targets of a value model; NaN where there is none
    old_values: "Tensor"  # [N] of the value model before this update; NaN where there is none
    weights: "Tensor"  # [N] each token has its sequence's
    margins: "Tensor"  # [N] each token has its sequence's
    sequence: "Tensor"  # [N] int64, which sequence of the microbatch a token belongs to
    num_tokens: int  # trained tokens of the whole step, over all microbatches
    num_sequences: int  # sequences of the whole step
    entropies: "Tensor | None" = None  # [N] in nats, with gradient; None with the scalar head


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one optimizer update reports."""

    metrics: dict[str, float]


class Policy(Protocol):
    """The trained model: log-probs, gradient steps, its files. Algorithms stay outside."""

    version: int
    """Counter of weights: grows by one with each step."""

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list["Tensor"]:
        """For each sequence the log-probs [n] of its trained tokens, without gradient."""
        ...

    def reference_logprobs(self, sequences: Sequence[TrainingSequence]) -> list["Tensor"]:
        """As `logprobs`, of the model that training began with."""
        ...

    def step(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> StepResult:
        """One optimizer update over all microbatches. Raises PolicyError when the loss or gradient is not finite."""
        ...

    def evaluate(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> dict[str, float]:
        """The loss over all microbatches, as `loss`, and its metrics, without gradient and without a step."""
        ...

    def save(self, directory: Path, *, source_state: Mapping[str, Any]) -> None:
        """Write `directory/model` (a Hugging Face directory) and `directory/trainer` (the rest, `source_state` in it)."""
        ...

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote: weights, optimizer state, version, bit for bit."""
        ...

    def weights(self) -> Iterable[tuple[str, "Tensor"]]:
        """Names and tensors, as a sampler loads them."""
        ...


@runtime_checkable
class ValuedPolicy(Policy, Protocol):
    """A policy with a value model beside it."""

    def values(self, sequences: Sequence[TrainingSequence]) -> list["Tensor"]:
        """For each sequence the values [n] of the states before its trained tokens, without gradient."""
        ...


class Validation(Protocol):
    """Numbers on held-out data, taken while a policy trains. They change neither its weights nor what it draws."""

    def run(self, policy: Policy) -> dict[str, float]:
        """Its metrics now, named `validation/NAME/METRIC`; those of the set that comes first stand first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """What a step source hands to the loop: microbatches and what is to be said of them."""

    microbatches: list[list[TrainingSequence]]
    metrics: dict[str, float] = field(default_factory=dict)


class StepSource(Protocol):
    """Where training steps come from: a dataset's epochs, or rollouts collected as the policy learns."""

    def next(self) -> TrainStep | None:
        """The next step's sequences; None when there are no more."""
        ...

    def stepped(self, version: int) -> None:
        """Told after each update, with the policy's new version."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which `load_state_dict` continues."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last step of `state`."""
        ...

    def close(self) -> None:
        """End what runs in the background."""
        ...


AttemptTold = Callable[[Sequence[Rollout], int], None]
"""Told of every attempt as it ends: its rollouts, and how many rollouts have ended with it, 0 when it is tried again."""


class Collector(Protocol):
    """Plays tasks and yields their rollouts, a whole group at a time, in order of completion."""

    def groups(self, tasks: Iterable[Row], *, group_size: int, told: AttemptTold | None = None) -> AsyncIterator[Group]:
        """A group for every task; failed members are in it. `told` hears of every attempt as it ends."""
        ...

    async def close(self) -> None:
        """Release connections, in the event loop that played."""
        ...
