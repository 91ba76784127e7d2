"""Where the questions of placeholders come from: local files, or a dataset of the Hugging Face hub."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gym_bridge.errors import ConfigError, missing_extra
from gym_bridge.io.digests import digest_file
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.transforms.placeholders import KNOWN_SOURCES, HubDataset

SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDataset:
    """Files whose rows are counted on from one to the next."""

    files: tuple[Path, ...]

    def identity(self) -> str:
        """Digest over the files."""
        total = sha256()
        for path in self.files:
            total.update(bytes.fromhex(digest_file(path)))
        return f"sha256:{total.hexdigest()}"


Source = LocalDataset | HubDataset


def parse_sources(given: Iterable[str]) -> dict[str, Source]:
    """The sources that `--source` names, beside the known ones. Raises ConfigError for one that cannot be read."""
    sources: dict[str, Source] = dict(KNOWN_SOURCES)
    for text in given:
        name, found, place = text.partition("=")
        if not found or not name or not place:
            raise ConfigError(f"--source {text!r}: expected DATASET=PATH or DATASET=ORG/NAME:SPLIT")
        known = KNOWN_SOURCES.get(name)
        sources[name] = _source(place, known.split if known else "train")
    return sources


def identity(source: Source) -> str:
    """What tells one source from another in a manifest's key."""
    return source.identity() if isinstance(source, LocalDataset) else f"hub:{source.name}:{source.split}"


def describe(source: Source) -> str:
    """Where the rows come from, for the manifest."""
    if isinstance(source, HubDataset):
        return f"{source.name}:{source.split}"
    return ", ".join(str(path) for path in source.files)


def rows_at(source: Source, numbers: Iterable[int], columns: Iterable[str]) -> dict[int, Mapping[str, Any]]:
    """The rows of these numbers, those that exist, with `columns` in them. Raises ConfigError when the source cannot be read."""
    wanted = sorted(set(numbers))
    if isinstance(source, HubDataset):
        return _hub_rows(source, wanted)
    found: dict[int, Mapping[str, Any]] = {}
    start = 0
    for path in source.files:
        read = _parquet_rows if path.suffix == ".parquet" else _json_rows
        start += read(path, start, wanted, set(columns), found)
    return found


def _source(place: str, split: str) -> Source:
    path = Path(place).expanduser()
    if path.is_file() and path.suffix in SUFFIXES:
        return LocalDataset(files=(path,))
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.suffix in SUFFIXES)
        of_split = [one for one in files if one.name.startswith(f"{split}-") or split in one.relative_to(path).parts[:-1]]
        if not files:
            raise ConfigError(f"{path}: no .jsonl or .parquet file there")
        return LocalDataset(files=tuple(of_split or files))
    name, _, named_split = place.partition(":")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return HubDataset(name=name, split=named_split or split)
    raise ConfigError(f"--source {place}: no .jsonl or .parquet file, no directory of them, and no ORG/NAME of the hub")


def _json_rows(path: Path, start: int, wanted: list[int], columns: set[str], found: dict[int, Mapping[str, Any]]) -> int:
    numbers, count = set(wanted), 0
    for _, row in read_jsonl(path):
        if start + count in numbers:
            found[start + count] = row
        count += 1
    return count


def _parquet_rows(path: Path, start: int, wanted: list[int], columns: set[str], found: dict[int, Mapping[str, Any]]) -> int:
    import polars as pl
    from polars.exceptions import PolarsError

    try:
        present = [name for name in pl.read_parquet_schema(path) if name in columns]
        count = pl.scan_parquet(path).select(pl.len()).collect().item()
        here = [number - start for number in wanted if start <= number < start + count]
        if present and here:
            rows = pl.read_parquet(path, columns=present)[here].to_dicts()
            found.update({start + number: row for number, row in zip(here, rows, strict=True)})
    except (OSError, PolarsError) as error:
        raise ConfigError(f"{path}: no readable parquet file: {error}") from error
    return count


def _hub_rows(source: HubDataset, wanted: list[int]) -> dict[int, Mapping[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise missing_extra(f"fetching {source.name} from the Hugging Face hub, instead of --source DATASET=PATH,", "hub") from None
    try:
        rows: Any = load_dataset(source.name, split=source.split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{source.name} cannot be fetched from the Hugging Face hub ({reason}); name a local copy with --source DATASET=PATH"
        ) from error
    return {number: rows[number] for number in wanted if number < len(rows)}
