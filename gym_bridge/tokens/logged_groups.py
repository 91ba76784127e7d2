"""Whole groups out of a rollout log, as they were when they were appended: rows, tokens, failures."""

from collections.abc import Collection
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.io.jsonl import parse_line, read_lines
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.io.rollout_reader import view_row
from gym_bridge.schemas.rollouts import (
    FAILURE_CLASS,
    ROLLOUT_INDEX,
    TASK_INDEX,
    Failure,
    FailureType,
    Group,
    Rollout,
    RolloutKey,
    Row,
)
from gym_bridge.tokens.rollout_turns import RolloutTurns, attempt_of


def logged_groups(log: RolloutLog, firsts: Collection[RolloutKey], *, group_size: int) -> dict[RolloutKey, Group]:
    """The groups whose first rollouts are `firsts`, by these. Raises DataError where a member is missing."""
    owners = {RolloutKey(one.task_index, one.rollout_index + member): one for one in firsts for member in range(group_size)}
    found: dict[RolloutKey, Rollout] = {}
    if not owners:
        return {}
    turns = RolloutTurns(log.tokens.directory)
    for path in (log.failures, log.output):  # a reward counts more than the failures before it
        for number, line in read_lines(path) if path.exists() else ():
            row = parse_line(line, path=path, line=number)
            key = RolloutKey(row[TASK_INDEX], row[ROLLOUT_INDEX])
            if key in owners:
                found[key] = _rollout(row, key, turns)
    if missing := sorted(set(owners) - set(found)):
        task, rollout = missing[0]
        raise DataError(f"rollout {rollout} of task {task} is missing, on which the run has not trained yet", path=log.output)
    members = {one: [found[key] for key, owner in sorted(owners.items()) if owner == one] for one in firsts}
    return {one: Group(task_index=one.task_index, rollouts=tuple(rollouts)) for one, rollouts in members.items()}


def _rollout(row: Row, key: RolloutKey, turns: RolloutTurns) -> Rollout:
    if FAILURE_CLASS not in row:
        return Rollout(key=key, attempt=attempt_of(row), row=row, turns=turns.of(row, view_row(row)))
    told: dict[str, Any] = row["gym_bridge"]["failure"]
    failure = Failure(
        type=FailureType(told["type"]), message=told["message"], status=told["status"], terminal=bool(told["terminal"])
    )
    return Rollout(key=key, attempt=attempt_of(row), row=row, failure=failure)
