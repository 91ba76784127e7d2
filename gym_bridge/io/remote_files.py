"""Files behind URLs, through fsspec: fetched to their mirrors before they are read, and sent from there once they are written.

An object store appends to nothing and renames nothing, so that a log or a dataset grows in its mirror and goes out whole.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gym_bridge.errors import ConfigError, missing_extra
from gym_bridge.io.jsonl import written_aside
from gym_bridge.io.task_inputs import materialized_inputs_beside
from gym_bridge.schemas.remote_names import mirrored, url_of

TELLING = (
    *("size", "ETag", "etag", "md5Hash", "md5", "content_md5", "Content-MD5", "Digest", "crc32c", "generation", "sha", "oid"),
    *("blob_id", "xet_hash", "lfs", "last_commit", "ino", "mtime", "modificationTime", "created", "updated"),
    *("LastModified", "Last-Modified", "last_modified"),
)
"""What a file system says of a file that changes with its content."""
WITHOUT_DIRECTORIES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hf", "oci", "oss")
"""Stores of objects: s3fs would make a bucket of a typing error."""
ROWS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
BESIDE = ("_failures", "_materialized_inputs", "_aggregate_metrics", "_reverified")
"""How the stems of files end that stand beside rollouts."""


def fetch(path: Path, *, optional: bool = False) -> None:
    """Bring the file of which `path` is the mirror, unless it is as it was when it was fetched or sent; another path stays alone.

    `optional`: there may be none. Raises ConfigError when it cannot be read, and when both it and its mirror have changed.
    """
    url = url_of(path)
    if url is None:
        return
    with _told(url, "read"):
        files, place = _file_system(url)
        files.invalidate_cache()
        known = _known(path)
        if not files.exists(place):
            if known and path.exists() and known["here"] == _here(path):  # it was there, and somebody has removed it
                path.unlink()
                _notes(path).unlink()
            if optional or path.exists():  # what was written here is sent yet
                return
            raise ConfigError(f"{url}: there is no such file")
        there = _marks(files, place)
        if known.get("there") == there and path.exists():
            return
        if path.exists() and known.get("here") != _here(path):
            raise ConfigError(f"{url} has changed, and so has what was written to {path} and not sent; move one of them away")
        with written_aside(path) as file, files.open(place, "rb") as source:
            while piece := source.read(1 << 22):
                file.write(piece)
        _note(path, there)


def send(path: Path, *, replace: bool = True) -> None:
    """Write the file of which `path` is the mirror; another path stays alone.

    Raises ConfigError when it is refused, and, without `replace`, where what is there has changed since it was fetched or sent.
    """
    url, known = url_of(path), _known(path)
    if url is None or not path.exists() or known.get("here") == _here(path):
        return
    try:
        with _told(url, "write"):
            files, place = _file_system(url)
            if not replace and files.exists(place) and _marks(files, place) != known.get("there"):
                raise ConfigError(f"{url} has changed while this ran, and is left alone")
            if url.partition("://")[0] not in WITHOUT_DIRECTORIES:
                files.makedirs(files._parent(place), exist_ok=True)
            files.put_file(str(path), place)
            files.invalidate_cache(files._parent(place))
            _note(path, _marks(files, place))
    except ConfigError as error:
        raise ConfigError(f"{error}; it is whole in {path}") from error


def fetched_rows(paths: Iterable[Path]) -> list[Path]:
    """The files of rows that are meant: of a directory, here or behind a URL, its shards in order; all of them are here then.

    Raises ConfigError for a directory without shards, and as `fetch`.
    """
    found = []
    for path in paths:
        shards = list(_shards(path))
        for one in shards:
            fetch(one)
            fetch(materialized_inputs_beside(one), optional=True)
        found += shards
    return found


@contextmanager
def log_elsewhere(files: Iterable[Path], directory: Path) -> Iterator[None]:
    """Inside, the files of a log that stand behind URLs are here, with those in its directory; they are sent when the block ends,
    however it ends. Raises ConfigError as `fetch` and `send`."""
    files = list(files)
    url = url_of(directory)
    if url is None:
        yield
        return
    for path in (*files, *_names_below(url)):
        fetch(path, optional=True)
    fetched = [path for path in (*files, *_names_below(url)) if path.exists()]
    try:
        yield
    finally:
        here = sorted(one for one in directory.glob("*") if not one.name.startswith(".")) if directory.is_dir() else []
        for path in (*here, *files):  # rows after what they hang on
            send(path, replace=False)
        for path in fetched:
            if not path.exists():
                _remove(path)


def _names_below(url: str) -> list[Path]:
    """The mirrors of the files of a directory; none where there is no such directory."""
    with _told(url, "read"):
        files, place = _file_system(url)
        files.invalidate_cache()
        return _listed(url, files, place) if files.isdir(place) else []


def _listed(url: str, files: Any, place: str) -> list[Path]:
    """Under the name that the user has for the directory: a file system has others for itself."""
    names = [one.rstrip("/").rpartition("/")[2] for one in files.ls(place, detail=False)]
    return [mirrored(f"{url.rstrip('/')}/{name}") for name in names if name]


def _remove(path: Path) -> None:
    url = url_of(path)
    assert url is not None, "it is a mirror"
    with _told(url, "remove"):
        files, place = _file_system(url)
        if files.exists(place):
            files.rm_file(place)
        _notes(path).unlink(missing_ok=True)


def _shards(path: Path) -> Iterator[Path]:
    url = url_of(path)
    if url is None:
        if not path.is_dir():
            yield path
            return
        names = {one.name: one for one in path.iterdir() if one.is_file()}
    else:
        with _told(url, "read"):
            files, place = _file_system(url)
            if not files.isdir(place):
                yield path
                return
            names = {one.name: one for one in _listed(url, files, place)}
    rows = [one for name, one in sorted(names.items()) if _is_shard(name)]
    if not rows:
        raise ConfigError(f"{url or path}: a directory without rollouts; expected files that end in {', '.join(ROWS)}")
    yield from rows


def _is_shard(name: str) -> bool:
    ending = next((one for one in ROWS if name.endswith(one)), None)
    return ending is not None and not name.removesuffix(ending).endswith(BESIDE)


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the file's name there."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise missing_extra(url.partition("://")[0] + "://", "remote") from None
    return url_to_fs(url)


@contextmanager
def _told(url: str, doing: str) -> Iterator[None]:
    """Raises ConfigError in place of what a file system raises: there is no end of kinds."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except ImportError as error:
        raise ConfigError(f"{url}: {error}; pip install 'gym-bridge[remote]'") from error
    except Exception as error:
        raise ConfigError(f"cannot {doing} {url}: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error


def _marks(files: Any, place: str) -> str:
    files.invalidate_cache()
    told = files.info(place)
    return json.dumps({name: str(told[name]) for name in TELLING if told.get(name) is not None}, sort_keys=True)


def _here(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _notes(path: Path) -> Path:
    return path.with_name(f".{path.name}.remote")


def _known(path: Path) -> dict[str, Any]:
    """What was true of both when they were last equal."""
    try:
        return json.loads(_notes(path).read_bytes())
    except (OSError, ValueError):
        return {}


def _note(path: Path, there: str) -> None:
    with written_aside(_notes(path)) as file:
        file.write(json.dumps({"there": there, "here": _here(path)}).encode())
