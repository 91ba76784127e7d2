"""What NeMo RL's dataset classes ask of a row, as checks that name what is wrong. NeMo RL itself fails late, or not at all.

| kind | columns | NeMo RL's class | trains |
|---|---|---|---|
| sft | messages, tools | openai_format | sft |
| response | input, output | ResponseDataset | sft, grpo |
| dpo | prompt, chosen, rejected | BinaryPreferenceDataset | dpo, rm |
| preference | context, completions | PreferenceDataset | dpo, rm |
| tasks | responses_create_params | NemoGymDataset | grpo, through NeMo Gym |
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
PLACEHOLDER = "_hf_placeholder"
"""Key of a task row whose question stands in a dataset elsewhere."""
NO_AGENT = "no agent_ref.name"
"""How the problem of a task begins that no agent is named to play. Rollouts of the oldest releases name none."""


class RowKind(StrEnum):
    """The kinds of rows that NeMo RL trains on, as `transform --to` calls them; grpo rows are of the kind response."""

    SFT = "sft"
    RESPONSE = "response"
    DPO = "dpo"
    PREFERENCE = "preference"
    TASKS = "tasks"


COLUMNS: dict[RowKind, tuple[str, ...]] = {
    RowKind.TASKS: ("responses_create_params",),
    RowKind.SFT: ("messages",),
    RowKind.PREFERENCE: ("context", "completions"),
    RowKind.DPO: ("prompt", "chosen", "rejected"),
    RowKind.RESPONSE: ("input", "output"),
}
"""Columns by which a kind is known."""


def row_kind(row: Mapping[str, Any]) -> RowKind | None:
    """The kind of a row by its columns; None for a row of none, such as a rollout."""
    if PLACEHOLDER in row:
        return RowKind.TASKS
    if "responses_create_params" in row and ("response" in row or "reward" in row):
        return None
    return next((kind for kind, columns in COLUMNS.items() if all(column in row for column in columns)), None)


def row_problems(row: Mapping[str, Any], kind: RowKind) -> list[str]:
    """All that NeMo RL would stumble over in a row of `kind`; empty for a good one."""
    return _CHECKS[kind](row)


def _sft(row: Mapping[str, Any]) -> list[str]:
    tools = row.get("tools", [])
    wrong = [] if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools) else ["'tools' is no list of objects"]
    return _conversation(row.get("messages"), "messages", ends_with_assistant=True) + wrong


def _response(row: Mapping[str, Any]) -> list[str]:
    wrong = [_no_string(row, column) for column in ("input", "output") if not isinstance(row.get(column), str)]
    if "messages" in row:
        wrong.append("a column 'messages' takes the place of 'input' and 'output' in NeMo RL's ResponseDataset")
    return wrong


def _dpo(row: Mapping[str, Any]) -> list[str]:
    wrong = [_no_string(row, column) for column in ("chosen", "rejected") if not isinstance(row.get(column), str)]
    prompt = row.get("prompt")
    return wrong if isinstance(prompt, str) else _conversation(prompt, "prompt", ends_with_assistant=False) + wrong


def _preference(row: Mapping[str, Any]) -> list[str]:
    wrong = _conversation(row.get("context"), "context", ends_with_assistant=False)
    completions = row.get("completions")
    if not isinstance(completions, list) or len(completions) != 2 or not all(isinstance(one, dict) for one in completions):
        return [*wrong, "'completions' needs exactly two objects {rank, completion}"]
    ranks = [one.get("rank") for one in completions]
    if not all(isinstance(rank, int) and not isinstance(rank, bool) for rank in ranks):
        wrong.append(f"the ranks {ranks} are not both integers")
    elif ranks[0] == ranks[1]:
        wrong.append(f"both completions have rank {ranks[0]}; NeMo RL takes no ties")
    for number, one in enumerate(completions):
        wrong += _conversation(one.get("completion"), f"completions.{number}.completion", ends_with_assistant=True)
    return wrong


def _task(row: Mapping[str, Any]) -> list[str]:
    if PLACEHOLDER in row:
        return [f"an unresolved {PLACEHOLDER}; run gym-bridge prep on the file"]
    wrong = []
    params = row.get("responses_create_params")
    given = params.get("input") if isinstance(params, dict) else None
    if not isinstance(params, dict):
        wrong.append("no object 'responses_create_params'")
    elif not isinstance(given, str) and not _objects(given):  # an empty list is a task whose environment speaks first
        wrong.append("responses_create_params.input is neither a text nor a list of items")
    agent = row.get("agent_ref")
    if not row.get("task_source") and not (isinstance(agent, dict) and agent.get("name") and isinstance(agent["name"], str)):
        wrong.append(f"{NO_AGENT}: NeMo Gym does not know which agent plays the task; gym-bridge prep --agent NAME names it")
    return wrong


def _conversation(messages: Any, column: str, *, ends_with_assistant: bool) -> list[str]:
    if not messages or not _objects(messages):
        return [f"{column!r} is no list of messages"]
    wrong = [f"{column}.{number}: {problem}" for number, message in enumerate(messages) if (problem := _message_problem(message))]
    last = messages[-1].get("role")
    if ends_with_assistant and last != "assistant":
        wrong.append(f"{column!r} ends with the role {last!r}; NeMo RL trains on an assistant's last message")
    return wrong


def _message_problem(message: Mapping[str, Any]) -> str | None:
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if role not in ROLES:
        return f"the role {role!r} is none of {', '.join(ROLES)}"
    if content is None and role == "assistant" and calls:
        return None
    if not isinstance(content, str) and not _objects(content):
        return f"content is {type(content).__name__}; expected a string"
    if calls is not None and not (_objects(calls) and all(_is_call(call) for call in calls)):
        return "tool_calls need a function's name and its arguments, an object or a string"
    return None


def _is_call(call: Mapping[str, Any]) -> bool:
    function = call.get("function", call)
    return (
        isinstance(function, dict) and isinstance(function.get("name"), str) and isinstance(function.get("arguments"), dict | str)
    )


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _no_string(row: Mapping[str, Any], column: str) -> str:
    found = type(row[column]).__name__ if column in row else "nothing"
    return f"{column!r} is {found}; NeMo RL needs a string"


_CHECKS: dict[RowKind, Callable[[Mapping[str, Any]], list[str]]] = {
    RowKind.SFT: _sft,
    RowKind.RESPONSE: _response,
    RowKind.DPO: _dpo,
    RowKind.PREFERENCE: _preference,
    RowKind.TASKS: _task,
}
