"""Names of files that may stand elsewhere, behind URLs that fsspec knows: s3://, gs://, hf:// and the like.

Here such a file has a place in the cache, its mirror, under whose path all code reads and writes it; `io.remote_files` brings the
two together.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from gym_bridge.config import cache_directory
from gym_bridge.errors import ConfigError

HERE = ("file", "local")
"""Schemes of this machine's own files."""
URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")


def mirrored(name: str | Path) -> Path:
    """The path of a file by its name; of a URL the place of its mirror.

    Raises ConfigError for a URL that no path can stand for, ValueError for what is no name.
    """
    if not isinstance(name, str | Path):
        raise ValueError("expected the name of one file")
    found = URL.fullmatch(str(name))
    if found is None:
        return Path(name)
    if found[1] in HERE:
        return Path(found[2])
    path = _mirrors() / found[1] / found[2].strip("/")
    if url_of(path) != str(name).rstrip("/") or ".." in path.parts:
        raise ConfigError(f"{name}: a file cannot be kept here under this URL; leave out empty, . and .. parts")
    return path


def url_of(path: Path) -> str | None:
    """The URL whose mirror is at `path`; None for a path that is none."""
    try:
        scheme, *rest = path.relative_to(_mirrors()).parts
    except ValueError:
        return None
    return f"{scheme}://{'/'.join(rest)}"


def shown(path: Path) -> str:
    """As the user has named it."""
    return url_of(path) or str(path)


def _mirrors() -> Path:
    return cache_directory() / "remote"


FileName = Annotated[Path, BeforeValidator(mirrored), PlainSerializer(shown)]
"""A path of this machine or a URL."""
