"""Held-out tasks played, and rollouts summarised and compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gym_bridge.api.collecting import play
from gym_bridge.errors import ServerError
from gym_bridge.io.jsonl import read_jsonl, written_aside
from gym_bridge.io.remote_files import send
from gym_bridge.io.rollout_log import sibling
from gym_bridge.schemas.play_settings import EvalSettings
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, Row

if TYPE_CHECKING:
    from gym_bridge.evaluation.summary import Comparison, EvalSummary


def evaluate(settings: EvalSettings, *, quiet: bool = True) -> "EvalSummary":
    """Play held-out tasks and summarise the rewards; the summary is written beside the rollouts. Raises as `collect` does."""
    result = play(settings, title="eval", quiet=quiet)
    if not (result.ledger.completed or result.ledger.truncated):
        raise ServerError(f"no task was played: {result.stopped}; {result.ledger.describe()}", url=str(settings.output))
    summary = summarize_file(settings.output).model_copy(update={"num_not_played": result.ledger.not_attempted})
    told = sibling(settings.output, "_summary.json")
    with written_aside(told) as file:
        file.write(summary.model_dump_json(indent=2).encode())
    send(told)
    return summary


def summarize_file(rollouts: Path) -> "EvalSummary":
    """The summary of a rollouts file; its failures file, when there is one, tells how many have no reward."""
    from gym_bridge.evaluation.summary import summarize

    rows, num_failed = _finished_rows(rollouts)
    return summarize(rows, num_failed=num_failed)


def compare(before: Path, after: Path) -> "Comparison":
    """Two rollouts files over the same tasks, paired by task. Raises DataError when their tasks differ."""
    from gym_bridge.evaluation.summary import compare as compare_rows

    rows_before, num_failed_before = _finished_rows(before)
    rows_after, num_failed_after = _finished_rows(after)
    return compare_rows(rows_before, rows_after, num_failed_before=num_failed_before, num_failed_after=num_failed_after)


def _finished_rows(rollouts: Path) -> tuple[list[Row], int]:
    """The rows of a rollouts file, and how many rollouts of its failures file never got a reward."""
    rows = [row for _, row in read_jsonl(rollouts)]
    failures = sibling(rollouts, "_failures.jsonl")
    finished = {_key(row) for row in rows}
    failed = {_key(row) for _, row in read_jsonl(failures)} if failures.exists() and failures.stat().st_size else set()
    return rows, len(failed - finished)


def _key(row: Row) -> tuple[Any, Any]:
    return row.get(TASK_INDEX), row.get(ROLLOUT_INDEX)
