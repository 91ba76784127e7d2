"""Task rows by their index, out of `R_materialized_inputs.jsonl`: servers leave fields of a task out of what they answer."""

from pathlib import Path
from weakref import finalize

import msgspec

from gym_bridge.errors import ConfigError
from gym_bridge.io.blocks import STDIN, RangeReader
from gym_bridge.io.jsonl import BYTE_ORDER_MARK
from gym_bridge.schemas.rollouts import TASK_INDEX


class _Indexed(msgspec.Struct, rename={"task_index": TASK_INDEX}):
    task_index: int | None = None


_DECODER = msgspec.json.Decoder(_Indexed)


def materialized_inputs_of(rollouts: Path) -> Path | None:
    """The materialized inputs beside a rollouts file, where there are some: of R.jsonl, R.jsonl.gz and R.jsonl.zst alike."""
    if rollouts == STDIN:
        return None
    path = materialized_inputs_beside(rollouts)
    return path if path.is_file() and path != rollouts else None


def materialized_inputs_beside(rollouts: Path) -> Path:
    """Where they stand when there are some."""
    stem = rollouts.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".jsonl")
    return rollouts.with_name(f"{stem}_materialized_inputs.jsonl")


class TaskInputs:
    """The first row of every task in a materialized inputs file. Holds places, not rows."""

    def __init__(self, path: Path):
        """Read the index of every row; what is no row in UTF-8 with an index is passed over. Raises ConfigError for an unreadable
        file."""
        self._path, self._ranges = path, RangeReader()
        self._places: dict[int, tuple[int, int]] = {}
        finalize(self, self._ranges.close)
        offset = 0
        try:
            with path.open("rb") as file:
                for line in file:
                    index = _task_index(line)
                    if index is not None:
                        self._places.setdefault(index, (offset, len(line)))
                    offset += len(line)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error

    def line(self, task_index: int) -> bytes | None:
        """The row of a task, as it stands in the file; None for a task that the file does not have."""
        if task_index not in self._places:
            return None
        return self._ranges.read(self._path, *self._places[task_index]).removeprefix(BYTE_ORDER_MARK)


def _task_index(line: bytes) -> int | None:
    try:
        if not line.isascii():
            line.decode()
        return _DECODER.decode(line.removeprefix(BYTE_ORDER_MARK)).task_index
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
