"""What is selected on the page as a file: datasets through `transform`, rollouts as they are, a page to share."""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from gym_bridge.errors import ConfigError
from gym_bridge.io.task_inputs import materialized_inputs_beside
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms.engine import transform_files
from gym_bridge.viewer.rollout_file import RolloutFile
from gym_bridge.viewer.row_search import lines_of

FORMATS = {
    "sft": "SFT rows",
    "dpo": "DPO pairs",
    "tasks": "tasks",
    "response": "response rows",
    "preference": "preference rows",
    "rollouts": "rollouts, as they are",
    "page": "a page to share",
}
"""What may be exported, by name."""


MAX_KEPT = 16
"""Exports that are there at once; the oldest goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file to be saved."""

    path: Path
    to: str
    """One of FORMATS."""
    of: int
    """Number of the rollouts file that it was made of."""
    num_rows: int
    num_selected: int
    dropped: Mapping[str, int]
    """Rollouts that are not in it, by reason."""

    @property
    def name(self) -> str:
        """What a browser is to call it."""
        return self.path.name


class Exports:
    """Files that were made of selections; a `with` block removes them."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="gym-bridge-view-", ignore_cleanup_errors=True)
        self._numbers = itertools.count()
        self._made: dict[str, Exported] = {}

    def __enter__(self) -> "Exports":
        return self

    def __exit__(self, *error: object) -> None:
        self._directory.cleanup()

    def find(self, key: str) -> Exported:
        """A file by its key. Raises ConfigError for one that is not there."""
        if key not in self._made:
            raise ConfigError("that export is gone; make it again")
        return self._made[key]

    def add(self, make: Callable[[Path], Exported]) -> str:
        """The key of what `make` makes in a directory of its own, which goes when it raises."""
        key = str(next(self._numbers))
        place = Path(self._directory.name) / key
        place.mkdir()
        try:
            self._made[key] = make(place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        for old in list(self._made)[:-MAX_KEPT]:
            shutil.rmtree(self._made.pop(old).path.parent, ignore_errors=True)
        return key

    def dataset(self, file: RolloutFile, chosen: pl.DataFrame, to: str, *, of: int) -> str:
        """The key of a selection in a format of `transform`, or as it is with `rollouts`; `of` is the file's number.

        Raises ConfigError where no row is left, DataError for a row that cannot be converted.
        """
        stem = _plain_name(file.path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".jsonl"))

        def make(place: Path) -> Exported:
            rollouts = place / f"{stem}_selection.jsonl"
            num_rows = _write(file, chosen, rollouts)
            if to == "rollouts":
                unread = chosen.height - num_rows
                dropped = {"bad_row": unread} if unread else {}
                return Exported(path=rollouts, to=to, of=of, num_rows=num_rows, num_selected=chosen.height, dropped=dropped)
            output = place / f"{stem}_{to}.jsonl"
            try:
                report = transform_files([rollouts], TransformSettings(to=to, output=output, on_bad_row="skip"))
            except ConfigError as error:
                raise ConfigError(str(error).replace(str(output), output.name)) from error
            rollouts.unlink()
            return Exported(path=output, to=to, of=of, num_rows=report.rows_out, num_selected=chosen.height, dropped=report.dropped)

        if not chosen.height:
            raise ConfigError("nothing is selected; loosen the filter")
        return self.add(make)


def _write(file: RolloutFile, chosen: pl.DataFrame, path: Path) -> int:
    """Write the rows that can be read, with the tasks as played beside them; how many. Raises ConfigError."""
    readable = chosen.filter(pl.col("problem").is_null())
    try:
        with path.open("wb") as written:
            written.writelines(line + b"\n" for _, line in lines_of(file, readable))
        if file.inputs is not None:
            materialized_inputs_beside(path).symlink_to(file.inputs.resolve())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; set TMPDIR to a place with room") from error
    return readable.height


def _plain_name(name: str) -> str:
    """A name that every browser and every disk takes."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "._-") else "_" for one in name)
