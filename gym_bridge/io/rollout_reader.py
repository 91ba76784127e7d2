"""The tolerant reader of rollout rows: every shape in which NeMo Gym, old or new, has written one.

Keys that we do not know are ignored, and none but an output and a reward is required. A row that means something else
than its shape says (a boolean reward, a history that was rewritten) is an error, never a guess.
"""

import math
from typing import Any

from msgspec import Struct

from gym_bridge.errors import DataError
from gym_bridge.io import rollout_keys
from gym_bridge.io.row_items import Items, is_heard, read_items, read_transitions, split_prompt, with_audio
from gym_bridge.io.tool_lists import chat_tools_json, given_tools, read_tools, tool_names
from gym_bridge.schemas.chat import num_model_calls
from gym_bridge.schemas.rollouts import FAILURE_CLASS, ROLLOUT_INDEX, TASK_INDEX, Item, Row

PLACEHOLDER = b"<PLACEHOLDER ROW>"
"""A line that stands for a row left out; rollouts files that NeMo Gym ships hold it."""

NOT_KEPT = "_ng_no_persist"
"""A row that NeMo Gym's collector was told not to write anywhere."""

NEEDLESS_IN_FAILURES = (
    *("responses_create_params", "response", "output", "messages", "reward"),
    *("instance_config", "agent_ref", TASK_INDEX, ROLLOUT_INDEX),
)
_NOTHING: Row = {}


class RolloutView(Struct, kw_only=True):
    """What gym-bridge reads off one row; `row` is the row itself, untouched. Nobody changes a view.

    A struct, because one is made of every row, and a dataclass takes five times as long to make.
    """

    row: Row
    context: Items
    """The prompt: `instructions` as a system message, then the items of `input`; without an input, what stands before the
    model's first item."""
    output: Items | None
    """All that followed, over every turn; None when the row holds no rollout."""
    reward: float | None
    """None as well for a failure and for a row that was not verified, whatever number stands there."""
    agent: str | None
    """Name of the agent that played it."""
    task_index: int | None
    rollout_index: int | None
    truncated: bool
    """True when a limit and not the model ended the rollout."""
    failed: bool
    masked: bool
    """True when the environment says not to train on it."""
    verified: bool
    """False when verification was left out on purpose."""

    @property
    def items(self) -> Items:
        """The whole conversation, prompt first."""
        return self.context + (self.output or ())

    @property
    def task(self) -> str:
        """Equal for siblings within a file: the agent's name and the task index, without one `task_id`, without both its
        `content_key` in hexadecimal."""
        index: Any = self.row.get("task_id") if self.task_index is None else self.task_index
        if isinstance(index, bool) or not isinstance(index, int | str) or index == "":
            return self.content_key().hex()[:16]
        return f"{self.agent}:{index}" if self.agent else str(index)

    @property
    def tools(self) -> tuple[Item, ...]:
        """Tools of the task as the row has them; those of the response, where an environment gave them to the model on its own.

        Rows share them: leave them as they are. Raises DataError for anything but a list of objects.
        """
        return read_tools(self._tools)

    @property
    def num_turns(self) -> int:
        """Model calls: as the collector counted them, else as many as a chat of the output has assistant messages.

        Raises DataError for items without a chat form.
        """
        counted = _object(self.row, "gym_bridge").get("num_turns")
        return counted if type(counted) is int else num_model_calls(self.output or ())

    @property
    def num_tool_calls(self) -> int:
        """Tool calls that the model made."""
        counted = _object(self.row, "gym_bridge").get("num_tool_calls")
        return counted if type(counted) is int else sum(item.get("type") == "function_call" for item in self.output or ())

    def chat_tools(self) -> Any:
        """`tools` in the nested form of chat, for `orjson.dumps`: a list or a Fragment of ready JSON; None without tools.

        Raises DataError for a tool that is no function.
        """
        return None if (tools := self._tools) is None else chat_tools_json(tools)

    def content_key(self) -> bytes:
        """16 bytes, equal for the same prompt with tools of the same names, in whatever file and whoever played it."""
        return rollout_keys.content_key(self.context, tool_names(self._tools))

    def answer_key(self) -> bytes:
        """16 bytes, equal where the model did the same and its tools answered the same."""
        return rollout_keys.answer_key(self.output or ())

    def drop_reason(self) -> str | None:
        """Why no dataset may use it: failure, masked, not_a_rollout, not_verified, no_reward or no_prompt; None when it may."""
        if self.failed:
            return "failure"
        if self.masked:
            return "masked"
        if self.output is None:
            return "not_a_rollout"
        if not self.verified:
            return "not_verified"
        if self.reward is None:
            return "no_reward"
        return None if self.context else "no_prompt"

    @property
    def _tools(self) -> Any:
        row = self.row
        return (
            given_tools(_object(row, "responses_create_params").get("tools"))
            or given_tools(_object(row, "response").get("tools"))
            or (given_tools(row.get("tools")) if "messages" in row else None)
        )


def view_row(row: Row) -> RolloutView:
    """The view of a row, with the fields that RowDecoder keeps or with all. Raises DataError, without path and line, for a field
    of the wrong type; of a failure only what says that it is one must be right."""
    try:
        return _view(row)
    except DataError:
        if not _failed(row, _object(row, "gym_bridge"), row.get("response")):
            raise
        view = _view({**row, **dict.fromkeys(NEEDLESS_IN_FAILURES), FAILURE_CLASS: "failure"})
        view.row = row
        return view


def _view(row: Row) -> RolloutView:
    get = row.get
    response, ours = _object(row, "response"), _object(row, "gym_bridge") if "gym_bridge" in row else _NOTHING
    context, output = _conversation(row, _object(row, "responses_create_params"), response)
    failed = _failed(row, ours, response)
    verified = not get("verification_skipped")
    task_index, rollout_index = get(TASK_INDEX), get(ROLLOUT_INDEX)
    return RolloutView(
        row=row,
        context=context,
        output=output,
        reward=None if failed or not verified else _reward(get("reward")),
        agent=_agent(row) if "agent_ref" in row else None,
        task_index=task_index if type(task_index) is int else _index(task_index, TASK_INDEX),
        rollout_index=rollout_index if type(rollout_index) is int else _index(rollout_index, ROLLOUT_INDEX),
        truncated=bool(
            response.get("incomplete_details")
            or response.get("status") == "incomplete"
            or get("truncated")
            or (ours and ours.get("truncated"))
        ),
        failed=failed,
        masked=bool(get("mask_sample") or ("instance_config" in row and _object(row, "instance_config").get("mask_sample"))),
        verified=verified,
    )


def _failed(row: Row, ours: Row, response: Any) -> bool:
    """True for a failure; builds before the failures file marked the response's id with `-failed`."""
    if row.get(FAILURE_CLASS) or row.get(NOT_KEPT) or (ours and ours.get("failure")):
        return True
    identity = response.get("id") if isinstance(response, dict) else None
    return isinstance(identity, str) and identity.endswith("-failed")


def _conversation(row: Row, params: Row, response: Row) -> tuple[Items, Items | None]:
    """Prompt and output of a row."""
    prompt = _input(params)
    if (output := response.get("output")) is None:
        output = row.get("output")
    if isinstance(output, list) and output and isinstance(output[0], list):
        prompt, items = split_prompt(read_transitions(output), prompt)
    elif output is not None:
        items = read_items(output, "output")
        if not prompt and items and is_heard(items[0]):
            prompt, items = split_prompt(items, prompt)
    elif "reward" in row and (messages := row.get("messages")) is not None:
        prompt, items = split_prompt(read_items(messages, "messages"), prompt)
    else:
        items = None
    if prompt and (instructions := params.get("instructions")):
        prompt = ({"role": "system", "content": instructions}, *prompt)
    if prompt and (metadata := params.get("metadata")):
        prompt = with_audio(prompt, metadata)
    return prompt, items


def _input(params: Row) -> Items:
    given = params.get("input") or []
    return ({"role": "user", "content": given},) if isinstance(given, str) else read_items(given, "input")


def _object(row: Row, name: str) -> Row:
    value = row.get(name)
    if isinstance(value, dict):
        return value
    if value is not None:
        raise DataError(f"{name!r} is of type {type(value).__name__}; expected an object")
    return _NOTHING


def _reward(value: Any) -> float | None:
    if type(value) is float and math.isfinite(value):
        return value
    if value is None:
        return None
    if type(value) is not int:
        raise DataError(f"reward is {value!r}; expected a finite number or null")
    return float(value)


def _agent(row: Row) -> str | None:
    name = _object(row, "agent_ref").get("name")
    if name is not None and not isinstance(name, str):
        raise DataError(f"name of 'agent_ref' is {name!r}; expected a string")
    return name


def _index(value: Any, name: str) -> int | None:
    if value is not None and type(value) is not int:
        raise DataError(f"{name} is {value!r}; expected an integer")
    return value
