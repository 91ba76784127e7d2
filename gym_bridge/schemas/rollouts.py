"""A rollout, its row on disk, and how it ended. The row keeps NeMo Gym's keys; all that is ours stands under `gym_bridge`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypedDict

from gym_bridge.schemas.tokens import TurnTokens

TASK_INDEX = "_ng_task_index"
ROLLOUT_INDEX = "_ng_rollout_index"
ATTEMPT_INDEX = "_ng_attempt_index"
FAILURE_CLASS = "_ng_failure_class"

Row = dict[str, Any]
"""One JSON object of a tasks or rollouts file, as orjson read it. Foreign: keys that we do not know are kept."""

Item = dict[str, Any]
"""One item of a Responses `input` or `output` list: message, function_call, function_call_output or reasoning."""


def agent_ref(name: str) -> dict[str, str]:
    """How a row names the agent that plays it."""
    return {"type": "responses_api_agents", "name": name}


class RolloutKey(NamedTuple):
    """Identifies a rollout within its file."""

    task_index: int
    rollout_index: int


class StopReason(StrEnum):
    """Why the turn loop of a rollout ended."""

    ANSWERED = "answered"
    """The model answered without calling a tool."""
    MAX_OUTPUT_TOKENS = "max_output_tokens"
    """A turn reached its limit of tokens; the rollout is truncated."""
    CONTENT_FILTER = "content_filter"
    """The endpoint cut a turn off for its content; the rollout is truncated."""
    MAX_TURNS = "max_turns"
    """The rollout reached its limit of model calls; it is truncated."""
    MAX_TOOL_CALLS = "max_tool_calls"
    """The next calls would have passed the limit of tool calls; the rollout is truncated."""
    MAX_TOTAL_TOKENS = "max_total_tokens"
    """The conversation reached its limit of tokens; it is truncated."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The conversation no longer fits the model's context; it is truncated."""
    REPEATED_TURN = "repeated_turn"
    """The model did the same, with the same outcome, over and over; the rollout is truncated."""
    TERMINATED = "terminated"
    """A step-wise environment said that the task is over."""
    ENVIRONMENT_TRUNCATED = "environment_truncated"
    """A step-wise environment cut the task off; the rollout is truncated."""
    AGENT_ENDED = "agent_ended"
    """An agent played it and says no more than that it is done."""

    @property
    def truncated(self) -> bool:
        """True when a limit ended the rollout, not the model or the task."""
        return self not in (StopReason.ANSWERED, StopReason.TERMINATED, StopReason.AGENT_ENDED)


class FailureType(StrEnum):
    """Why a rollout has no reward."""

    INVALID_ROW = "invalid_row"
    SEED = "seed_error"
    MODEL = "model_error"
    TOOL = "tool_error"
    VERIFY = "verify_error"
    JUDGE = "judge_failed"
    TIMEOUT = "timeout_exceeded"
    CANCELLED = "cancelled"
    CONTEXT_OVERFLOW = "context_overflow"
    """The task's own prompt does not fit the model's context."""
    AGENT = "agent_error"
    STEP = "step_error"


class BridgeFields(TypedDict, total=False):
    """The `gym_bridge` object of a rollout row: all that NeMo Gym's rows do not know."""

    stop_reason: str
    truncated: bool
    num_turns: int
    num_tool_calls: int
    num_tool_errors: int
    num_input_tokens: int
    num_output_tokens: int
    attempt: int
    policy_versions: list[int]
    turn_rewards: list[float]
    timings_s: dict[str, float]
    waits_s: list[tuple[str, float]]
    """(stage, seconds) of each wait, in order: seed, model, tools, model, ..., verify."""
    failure: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one attempt has no reward. `status` is the HTTP status, where there was one."""

    type: FailureType
    message: str
    status: int | None = None
    terminal: bool = False
    """Another attempt would end in the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One finished attempt at a task: a row with its reward, or a failure, never both."""

    key: RolloutKey
    attempt: int
    row: Row
    """The row for `rollouts.jsonl`, or for `rollouts_failures.jsonl` when `failure` is set."""
    turns: tuple[TurnTokens, ...] = ()
    """Token view of every model call, empty when the endpoint reports none."""
    failure: Failure | None = None
    line: bytes | None = None
    """The row as its line of the file, where another process has written it already."""

    @property
    def reward(self) -> float | None:
        """What /verify gave; None for a failure."""
        return None if self.failure else float(self.row["reward"])

    @property
    def truncated(self) -> bool:
        """True when a limit ended the rollout."""
        return bool(self.row.get("gym_bridge", {}).get("truncated"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rollouts of one task under one policy, failed members kept, in order of their rollout index."""

    task_index: int
    rollouts: tuple[Rollout, ...]
    retried: tuple[Rollout, ...] = ()
    """Failed attempts that were tried again, and are no members."""

    @property
    def verified(self) -> tuple[Rollout, ...]:
        """The members that have a reward."""
        return tuple(one for one in self.rollouts if one.failure is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """How every requested rollout of a collection ended: requested = the sum of all the others."""

    requested: int
    completed: int
    truncated: int
    failed: dict[str, int]
    not_attempted: int

    def __post_init__(self):
        total = self.completed + self.truncated + sum(self.failed.values()) + self.not_attempted
        if total != self.requested:
            raise AssertionError(f"the ledger does not close: {self}")

    def describe(self) -> str:
        """One line: `64 requested = 60 completed + 3 truncated + 1 model_error`."""
        parts = [f"{self.completed} completed", f"{self.truncated} truncated"]
        parts += [f"{count} {name}" for name, count in sorted(self.failed.items())]
        parts += [f"{self.not_attempted} not attempted"] if self.not_attempted else []
        return f"{self.requested} requested = " + " + ".join(parts)
