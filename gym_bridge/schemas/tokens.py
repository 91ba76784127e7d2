"""Tokens as the sampler reports them and as the trainer reads them. T = tokens of one sequence. numpy only, no torch."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

FinishReason = Literal["stop", "length"]


class SampleKey(NamedTuple):
    """What a completion's random numbers are drawn from: equal keys draw equal numbers, whatever else runs."""

    seed: int
    task_index: int
    rollout_index: int
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one completion is sampled."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Mass of the likeliest tokens that are drawn from; 1 for all."""
    top_k: int = 0
    """How many of the likeliest tokens are drawn from; 0 for all."""
    stop_token_ids: tuple[int, ...] = ()
    """The completion ends with the first of these; it stays in the completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a sampler returns for one prompt.

    `logprobs[i]` is the log-probability of `ids[i]` under the model at temperature 1, as the trainer will compute it.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTokens:
    """One model call in tokens: what went in and what was sampled.

    `prompt_ids` is the whole prompt of this call. `starts_segment` says that it does not begin with the prompt and
    completion of the call before, so that a new segment of the trajectory starts here.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    policy_version: int
    starts_segment: bool

    @property
    def all_ids(self) -> tuple[int, ...]:
        """Prompt and completion, in order."""
        return self.prompt_ids + self.completion_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of tokens in which every prompt extends what came before.

    With two turns, prompt P0, completion A0, tool output E0 and completion A1:
    token_ids = P0 + A0 + E0 + A1, completion_mask is True on A0 and A1.
    """

    token_ids: np.ndarray  # [T] int32
    completion_mask: np.ndarray  # [T] bool, True where the policy sampled
    rollout_logprobs: np.ndarray  # [T] float32, NaN where completion_mask is False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The token view of one rollout; a rewritten history makes more than one segment."""

    task_index: int
    rollout_index: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSequence:
    """One sequence for a training step. Position 0 never trains: nothing predicts it.

    Sequences of one microbatch share the computation of the untrained tokens with which they begin alike.
    """

    token_ids: np.ndarray  # [T] int32
    train_mask: np.ndarray  # [T] bool
    rollout_logprobs: np.ndarray | None = None  # [T] float32, NaN outside train_mask; None: not sampled
    old_logprobs: np.ndarray | None = None  # [T] float32, before this update; None: rollout_logprobs stand for them
    ref_logprobs: np.ndarray | None = None  # [T] float32, NaN outside train_mask; None: no reference
    advantages: np.ndarray | None = None  # [T] float32, of each trained token; None: `advantage` for all of them
    returns: np.ndarray | None = None  # [T] float32, what a value model is to say of each trained token; None: no such model
    old_values: np.ndarray | None = None  # [T] float32, what it said before this update
    advantage: float = 1.0
    weight: float = 1.0
    """How much the sequence counts among the others of its step."""
    margin: float = 0.0
    """By how much the score of a chosen sequence should at least exceed that of the rejected one."""
    origin: str = ""
    """Where it comes from, to be named in errors: `out/sft.jsonl:17`, or a rollout."""

    @property
    def num_trained(self) -> int:
        """Number of tokens that train."""
        return int(self.train_mask.sum())
