"""Held-out tasks played, and rollouts summarised and compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gym_bridge.api.collecting import play
from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.io.jsonl import read_jsonl, written_aside
from gym_bridge.io.remote_files import send
from gym_bridge.io.rollout_log import sibling
from gym_bridge.schemas.play_settings import EvalSettings
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, Row

if TYPE_CHECKING:
    from gym_bridge.evaluation.summary import Comparison, EvalSummary


def evaluate(settings: EvalSettings, *, ks: Sequence[int] | None = None, quiet: bool = True) -> "EvalSummary":
    """Play held-out tasks and summarise the rewards; the summary is written beside the rollouts. `ks` as in `summarize_file`.

    Raises as `collect` does, and ConfigError for a k above the attempts of a task.
    """
    if ks and isinstance(settings.num_repeats, int) and max(ks) > settings.num_repeats:
        raise ConfigError(f"k={max(ks)}: each task has {settings.num_repeats} attempts; raise --num-repeats, or lower k")
    result = play(settings, title="eval", quiet=quiet)
    if not (result.ledger.completed or result.ledger.truncated):
        raise ServerError(f"no task was played: {result.stopped}; {result.ledger.describe()}", url=str(settings.output))
    summary = summarize_file(settings.output, ks=ks).model_copy(update={"num_not_played": result.ledger.not_attempted})
    told = sibling(settings.output, "_summary.json")
    with written_aside(told) as file:
        file.write(summary.model_dump_json(indent=2).encode())
    send(told)
    return summary


def summarize_file(rollouts: Path, *, ks: Sequence[int] | None = None) -> "EvalSummary":
    """The summary of a rollouts file; its failures file, when there is one, tells how many have no reward.

    `ks`: of pass@k and its kin; left out: 1, 2, 4, ... up to the fewest attempts. Raises ConfigError for a k above these.
    """
    from gym_bridge.evaluation.summary import summarize

    rows, num_failed = _finished_rows(rollouts)
    return summarize(rows, num_failed=num_failed, ks=ks)


def compare(before: Path, after: Path, *, ks: Sequence[int] | None = None) -> "Comparison":
    """Two rollouts files over the same tasks, paired by task; `ks` as in `summarize_file`.

    Raises DataError when their tasks differ."""
    from gym_bridge.evaluation.summary import compare as compare_rows

    rows_before, num_failed_before = _finished_rows(before)
    rows_after, num_failed_after = _finished_rows(after)
    return compare_rows(rows_before, rows_after, num_failed_before=num_failed_before, num_failed_after=num_failed_after, ks=ks)


def _finished_rows(rollouts: Path) -> tuple[list[Row], int]:
    """The rows of a rollouts file, and how many rollouts of its failures file never got a reward."""
    rows = [row for _, row in read_jsonl(rollouts)]
    failures = sibling(rollouts, "_failures.jsonl")
    finished = {_key(row) for row in rows}
    failed = {_key(row) for _, row in read_jsonl(failures)} if failures.exists() and failures.stat().st_size else set()
    return rows, len(failed - finished)


def _key(row: Row) -> tuple[Any, Any]:
    return row.get(TASK_INDEX), row.get(ROLLOUT_INDEX)
