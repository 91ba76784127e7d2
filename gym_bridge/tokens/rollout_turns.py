"""The model calls of a rollout in token ids, from the store beside its file or from its row: the same either way."""

from pathlib import Path

from gym_bridge.errors import DataError
from gym_bridge.io.inline_tokens import inline_turns
from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.io.token_store import TokenStore
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, Row
from gym_bridge.schemas.tokens import TurnTokens


class RolloutTurns:
    """Reads the turns of the rollouts of one file."""

    def __init__(self, directory: Path):
        """`directory` is where the file's token store would be, `R.tokens`; there need not be one."""
        self._store = TokenStore(directory) if directory.is_dir() else None

    @property
    def files(self) -> list[Path]:
        """The files of the store, oldest first."""
        return [] if self._store is None else self._store.chunks()

    def of(self, row: Row, view: RolloutView) -> tuple[TurnTokens, ...]:
        """The model calls of a rollout; none where its endpoint did not report the ids of each.

        Raises DataError: without a path for ids in the row that contradict themselves, with one for a damaged store.
        """
        return self._stored(row, view) or inline_turns(row)

    def _stored(self, row: Row, view: RolloutView) -> tuple[TurnTokens, ...]:
        if self._store is None or view.task_index is None or view.rollout_index is None:
            return ()
        try:
            return self._store.read((view.task_index, view.rollout_index, attempt_of(row)))
        except DataError as error:
            if error.path == self._store.directory:  # it holds none of this rollout; a torn chunk is another matter
                return ()
            raise


def token_directory(path: Path) -> Path:
    """`R.tokens` for `R.jsonl`, `R.jsonl.gz` and `R.jsonl.zst`."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".jsonl") + ".tokens")


def attempt_of(row: Row) -> int:
    """Which attempt at its rollout a row tells of; 0 where it does not say."""
    ours = row.get("gym_bridge")
    attempt = (ours if isinstance(ours, dict) else {}).get("attempt", row.get(ATTEMPT_INDEX, 0))
    return attempt if type(attempt) is int else 0
