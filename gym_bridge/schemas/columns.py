"""The one list of columns by which rollouts, and groups of them, are chosen and shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ColumnType = Literal["number", "whole number", "string", "true or false", "list of strings", "any"]

SOLVED_REWARD = 1.0
"""A rollout with at least this reward passes."""


@dataclass(frozen=True, slots=True)
class Column:
    """A named value of a rollout or of a group; where a row does not tell it, it has none."""

    name: str
    type: ColumnType
    about: str
    """What it is, in one sentence."""


def _by_name(*columns: Column) -> Mapping[str, Column]:
    return MappingProxyType({column.name: column for column in columns})


ROLLOUT_COLUMNS: Mapping[str, Column] = _by_name(
    Column("reward", "number", "What /verify gave, or what --reward makes of the row."),
    Column("task_index", "whole number", "The task's line in its tasks file, counted from 0."),
    Column("rollout_index", "whole number", "Which attempt at its task the rollout is, counted from 0."),
    Column("agent", "string", "Name of the agent that played it."),
    Column("model", "string", "Name of the model, as the response gives it."),
    Column("policy_version", "whole number", "The oldest policy version that sampled one of its turns."),
    Column("attempt", "whole number", "How often the rollout was tried before, after failures."),
    Column("status", "string", "Status of the response: completed, incomplete or failed."),
    Column("stop_reason", "string", "Why it ended: answered, terminated, max_turns, max_output_tokens and so on."),
    Column("truncated", "true or false", "A limit ended it, not the model or the task."),
    Column("failed", "true or false", "It has no reward because something went wrong."),
    Column("failure", "string", "Type of the failure, such as timeout_exceeded."),
    Column("masked", "true or false", "The environment says not to train on it."),
    Column("num_turns", "whole number", "Model calls."),
    Column("num_tool_calls", "whole number", "Tool calls of the model."),
    Column("num_tool_errors", "whole number", "Tool calls that an error answered."),
    Column("tools_used", "list of strings", "Names of the tools that were called, each once, in order of the first call."),
    Column("num_tools", "whole number", "Tools that the task offers."),
    Column("num_prompt_messages", "whole number", "Messages that the task brings."),
    Column("prompt_chars", "whole number", "Characters of the prompt's text."),
    Column(
        "answer_chars", "whole number", "Characters of the last answer's text; none where the model's last word is a tool call."
    ),
    Column("num_input_tokens", "whole number", "Prompt tokens over all model calls."),
    Column("num_output_tokens", "whole number", "Sampled tokens over all model calls."),
    Column("elapsed_s", "number", "Seconds from the start of the rollout to its end."),
)
"""Columns of a rollout. Beside them stand the row's own numbers, strings and booleans, the parts of `reward_components`, and
whatever a dotted path leads to."""

GROUP_COLUMNS: Mapping[str, Column] = _by_name(
    Column("num_rollouts", "whole number", "Rollouts of the task that have a reward."),
    Column("pass_rate", "number", f"Share of these with a reward of {SOLVED_REWARD} or more."),
    Column("mean_reward", "number", "Mean of their rewards."),
    Column("min_reward", "number", "Least of their rewards."),
    Column("max_reward", "number", "Greatest of their rewards."),
    Column("std_reward", "number", "Standard deviation of their rewards, dividing by their number."),
    Column("spread", "number", "max_reward minus min_reward."),
    Column("num_failed", "whole number", "Rollouts of the task that have no reward."),
    Column("num_truncated", "whole number", "Rollouts with a reward that a limit ended."),
    Column("agent", "string", "Name of the agent that played the task."),
    Column("task_index", "whole number", "The task's line in its tasks file, counted from 0."),
)
"""Columns of a group: the rollouts of one task."""
