"""A glance at a line of a rollouts file: its scalars and its task, at the rate at which JSON can be skipped.

It knows plain rollouts alone, with a task index, a prompt and an output. Any other line, or one with a sign of a failure, it
leaves to the tolerant reader, so that both tell the same.
"""

from typing import Annotated, Any

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.io.row_decoder import Index
from gym_bridge.schemas.rollouts import FAILURE_CLASS, ROLLOUT_INDEX, TASK_INDEX, Item

UNREAD: tuple[Item, ...] = ({},)
"""Stands for items that were not read."""

GLANCED = frozenset(
    {
        *("reward", "task_index", "rollout_index", "agent", "truncated", "failed", "masked"),
        *("policy_version", "num_tool_errors", "elapsed_s"),
    }
)
"""Columns of a rollout that a glance tells: those of the view itself, and those that `gym_bridge` alone has."""


class _Unread(Struct, gc=False):
    """An item; not a chat message that stands for several."""

    tool_calls: None = None


class _Params(Struct, gc=False):
    input: Annotated[str, Meta(min_length=1)] | Annotated[list[_Unread], Meta(min_length=1)]
    instructions: str | None = None
    metadata: dict[str, str] | None = None


class _Response(Struct, gc=False):
    output: list[_Unread]
    id: str | None = None
    status: str | None = None
    incomplete_details: dict[str, Any] | None = None


class _Agent(Struct, gc=False):
    name: str | None = None


class _Instance(Struct, gc=False):
    mask_sample: bool | None = None


_NAMES = {
    "task_index": TASK_INDEX,
    "rollout_index": ROLLOUT_INDEX,
    "failure_class": FAILURE_CLASS,
    "no_persist": "_ng_no_persist",
}


class _Row(Struct, gc=False, rename=_NAMES):
    responses_create_params: _Params
    response: _Response
    task_index: Index
    rollout_index: Index | None = None
    reward: float | None = None
    agent_ref: _Agent | None = None
    gym_bridge: dict[str, Any] | None = None
    truncated: bool | None = None
    mask_sample: bool | None = None
    instance_config: _Instance | None = None
    verification_skipped: bool | None = None
    failure_class: str | None = None
    no_persist: bool | None = None


_DECODER = Decoder(_Row)


def glance(line: bytes) -> RolloutView | None:
    """The view of a plain rollout, `UNREAD` in place of its items, and of its row at most `gym_bridge`; None for any other line.

    What it tells of `GLANCED`, the task and the drop reason is what `view_row` tells.
    """
    try:
        if not line.isascii():
            line.decode()
        row = _DECODER.decode(line)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None
    response, ours, agent, instance = row.response, row.gym_bridge or {}, row.agent_ref, row.instance_config
    identity, verified = response.id, not row.verification_skipped
    if row.failure_class or row.no_persist or ours.get("failure") or (identity is not None and identity.endswith("-failed")):
        return None
    cut_off = response.incomplete_details or response.status == "incomplete"
    return RolloutView(
        row={"gym_bridge": ours},
        context=UNREAD,
        output=UNREAD,
        reward=row.reward if verified else None,
        agent=None if agent is None else agent.name,
        task_index=row.task_index,
        rollout_index=row.rollout_index,
        truncated=bool(cut_off or row.truncated or ours.get("truncated")),
        failed=False,
        masked=bool(row.mask_sample or (instance is not None and instance.mask_sample)),
        verified=verified,
    )
