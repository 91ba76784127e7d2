"""Rows as they go to disk: NeMo Gym's shape with the whole task row kept, and all that is ours under `gym_bridge`."""

import time
from collections.abc import Mapping
from typing import Any

from gym_bridge.rollouts.play import Play, Played
from gym_bridge.schemas.rollouts import (
    ATTEMPT_INDEX,
    FAILURE_CLASS,
    ROLLOUT_INDEX,
    TASK_INDEX,
    BridgeFields,
    Failure,
    RolloutKey,
    Row,
    agent_ref,
)

AGENT_REF = agent_ref("gym_bridge")


def response_object(key: RolloutKey, play: Play, params: Mapping[str, Any]) -> Row:
    """A Responses object over all turns, as NeMo Gym's SimpleAgent returns it."""
    return {
        "id": f"resp_{key.task_index}_{key.rollout_index}",
        "created_at": time.time(),
        "object": "response",
        "model": play.model,
        "status": "incomplete" if play.incomplete_reason else "completed",
        "incomplete_details": {"reason": play.incomplete_reason} if play.incomplete_reason else None,
        "output": play.output,
        "parallel_tool_calls": params.get("parallel_tool_calls") is not False,
        "tool_choice": params.get("tool_choice") or "auto",
        "tools": params.get("tools") or [],
        "usage": play.usage.as_response(),
    }


def finished_row(played: Played, play: Play, key: RolloutKey, *, attempt: int, elapsed_s: float) -> Row:
    """The row of a rollout that has its reward."""
    stop = played.stop
    return {
        **played.row,
        TASK_INDEX: key.task_index,
        ROLLOUT_INDEX: key.rollout_index,
        "agent_ref": played.row.get("agent_ref") or AGENT_REF,
        "gym_bridge": {
            "stop_reason": str(stop),
            "truncated": stop.truncated,
            **({"turn_rewards": play.turn_rewards} if play.turn_rewards else {}),
            **_bridge_fields(play, attempt=attempt, elapsed_s=elapsed_s),
        },
    }


def failure_row(row: Row, failure: Failure, play: Play, key: RolloutKey, *, attempt: int, elapsed_s: float) -> Row:
    """The row of an attempt that has none: the task's row, a null reward, and what went wrong."""
    described = {
        "type": str(failure.type),
        "message": failure.message,
        "status": failure.status,
        "stage": play.stage,
        "terminal": failure.terminal,
    }
    return {
        **row,
        **play.as_played,
        "reward": None,
        TASK_INDEX: key.task_index,
        ROLLOUT_INDEX: key.rollout_index,
        ATTEMPT_INDEX: attempt,
        FAILURE_CLASS: str(failure.type),
        "agent_ref": row.get("agent_ref") or AGENT_REF,
        "gym_bridge": {"failure": described, **_bridge_fields(play, attempt=attempt, elapsed_s=elapsed_s)},
    }


def _bridge_fields(play: Play, *, attempt: int, elapsed_s: float) -> BridgeFields:
    return BridgeFields(
        num_turns=play.num_turns,
        num_tool_calls=play.num_tool_calls,
        num_tool_errors=play.num_tool_errors,
        num_input_tokens=play.usage.input_tokens,
        num_output_tokens=play.usage.output_tokens,
        attempt=attempt,
        policy_versions=[turn.policy_version for turn in play.turns],
        timings_s={"total": round(elapsed_s, 6)} | {name: round(seconds, 6) for name, seconds in play.timings_s.items()},
        waits_s=[(name, round(seconds, 6)) for name, seconds in play.waits_s],
    )
