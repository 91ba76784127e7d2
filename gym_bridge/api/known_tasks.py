"""What a file of tasks tells of the worth of answers: to try its verifier, and to demonstrate."""

from collections.abc import Sequence
from pathlib import Path

from gym_bridge.api.requested import tasks_of
from gym_bridge.errors import DataError
from gym_bridge.rollouts.known_answers import KnownAnswer, known_answers
from gym_bridge.schemas.play_settings import PlaySettings
from gym_bridge.schemas.rollouts import TASK_INDEX, Row


def known_server(settings: PlaySettings) -> str | None:
    """The server of ours that the tasks are played at; None where it is somebody else's."""
    elsewhere = settings.head_url or settings.gym_config or (settings.server is not None and "://" in settings.server)
    return None if elsewhere else settings.server


def answers_of(row: Row, *, server: str | None, others: Sequence[Row] = ()) -> list[KnownAnswer]:
    """All that is known of a task: by its row, by its `server` where that is one of ours, by `others`. Raises DataError."""
    if server is None:
        return known_answers(row, others=others)
    from gym_bridge.resource_servers.registry import written_answers

    return known_answers(row, others=others, written=written_answers(server, row))


def right_answers(tasks: Path, *, server: str | None, limit: int | None) -> dict[int, list[KnownAnswer]]:
    """By task index what is known to be right. Raises DataError for a task of which nothing is."""
    found: dict[int, list[KnownAnswer]] = {}
    for row in tasks_of(tasks, limit):
        index = row[TASK_INDEX]
        found[index] = [one for one in answers_of(row, server=server) if one.kind == "good"]
        if not found[index]:
            raise DataError(f"task {index} tells no right answer: no expected_answer, ground_truth or known_answers", path=tasks)
    return found


def tried_answers(tasks: Path, *, server: str | None, limit: int | None) -> dict[int, list[KnownAnswer]]:
    """By task index all that is known: what is right, what is wrong, and what would fool a verifier."""
    rows = list(tasks_of(tasks, limit))
    return {row[TASK_INDEX]: answers_of(row, server=server, others=rows) for row in rows}
