"""Reads the files of a rollout log back, ours or those that NeMo Gym's `ng_collect_rollouts` wrote, row by row."""

import math
from pathlib import Path
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.io.jsonl import parse_line, read_lines
from gym_bridge.io.outcomes import Outcomes
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, FAILURE_CLASS, ROLLOUT_INDEX, TASK_INDEX, RolloutKey, Row

FAILURE_TERMINAL = "_ng_failure_terminal"
NO_REWARD = "no_reward"
"""Failure type of a row in the rollouts file whose reward is null, which is how NeMo Gym writes NaN."""
FAILED = "failed"
"""Failure type of a failure that names none."""


def replay(rollouts: Path, failures: Path, outcomes: Outcomes) -> None:
    """Record what both files hold; either may be missing.

    A failure that an old NeMo Gym wrote into the rollouts file is terminal: its row holds the place of a second attempt.
    Raises DataError with path and line for a row without its indices and for a rollout that the rollouts file holds twice.
    """
    if failures.exists():
        for number, line in read_lines(failures):
            row = parse_line(line, path=failures, line=number)
            key = _key_of(row, failures, number)
            attempt = _attempt_of(row, failures, number)
            terminal = bool(row.get(FAILURE_TERMINAL) or _failure_of(row).get("terminal"))
            outcomes.record_failure(key, _failure_name(row) or FAILED, attempt=attempt, terminal=terminal)
    if rollouts.exists():
        for number, line in read_lines(rollouts):
            row = parse_line(line, path=rollouts, line=number)
            key = _key_of(row, rollouts, number)
            if outcomes.is_written(key):
                first = _first_line_of(key, rollouts)
                raise DataError(
                    f"task {key.task_index}, rollout {key.rollout_index} stands in line {first} already; remove one of the two",
                    path=rollouts,
                    line=number,
                )
            _record_row(row, key, outcomes, rollouts, number)


def _record_row(row: Row, key: RolloutKey, outcomes: Outcomes, path: Path, line: int) -> None:
    reward = row.get("reward")
    failure = _failure_name(row) or (NO_REWARD if reward is None else None)
    if failure is not None:
        outcomes.record_failure(key, failure, written=True)
    elif isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise DataError(f"reward is {reward!r}; expected a finite number or null", path=path, line=line)
    else:
        outcomes.record_reward(key, float(reward), truncated=_truncated(row))


def _key_of(row: Row, path: Path, line: int) -> RolloutKey:
    task, index = row.get(TASK_INDEX), row.get(ROLLOUT_INDEX)
    if type(task) is int and type(index) is int:
        return RolloutKey(task, index)
    missing = [name for name, value in ((TASK_INDEX, task), (ROLLOUT_INDEX, index)) if type(value) is not int]
    raise DataError(
        f"no whole number as {' and '.join(missing)}: neither gym-bridge nor NeMo Gym 0.2 or later wrote this row; "
        "rows without both can be transformed, but their collection cannot be gone on with",
        path=path,
        line=line,
    )


def _attempt_of(row: Row, path: Path, line: int) -> int | None:
    attempt = row.get(ATTEMPT_INDEX)
    if attempt is not None and (type(attempt) is not int or attempt < 0):
        raise DataError(f"{ATTEMPT_INDEX} is {attempt!r}; expected a whole number from 0 on", path=path, line=line)
    return attempt


def _failure_name(row: Row) -> str | None:
    """The failure type of a row; None when it is no failure. NeMo Gym before its failures file marked the response's id."""
    name = row.get(FAILURE_CLASS) or _failure_of(row).get("type")
    if name is None and str(_object(row, "response").get("id", "")).endswith("-failed"):
        return FAILED
    return str(name) if name else None


def _failure_of(row: Row) -> dict[str, Any]:
    return _object(_object(row, "gym_bridge"), "failure")


def _truncated(row: Row) -> bool:
    """Our own rows say so in one place; others as the reader of rollouts understands them."""
    if "gym_bridge" in row:
        return bool(_object(row, "gym_bridge").get("truncated"))
    return bool(_object(row, "response").get("incomplete_details") or row.get("truncated"))


def _object(row: Row, name: str) -> dict[str, Any]:
    value = row.get(name)
    return value if isinstance(value, dict) else {}


def _first_line_of(key: RolloutKey, path: Path) -> int:
    keys = ((number, _key_of(parse_line(line, path=path, line=number), path, number)) for number, line in read_lines(path))
    return next(number for number, found in keys if found == key)
