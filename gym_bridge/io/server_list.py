"""Servers that may come and go: their addresses, given once, or in a file that changes while they are used."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from gym_bridge.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""The file is looked at so often at most."""

Made = TypeVar("Made")


class ServerList:
    """Base URLs by number; a URL keeps its number, also when it comes back. May be asked from any thread.

    A file names one URL a line, `#` begins a comment. Where it names none, or cannot be read, the servers of before stay.
    """

    def __init__(self, named: Sequence[str], *, setting: str):
        """`named`: URLs, or one file; `setting`: what the user calls them. Raises ConfigError for a file that cannot be read."""
        files = [one for one in named if "://" not in one]
        if files and len(named) > 1:
            raise ConfigError(f"{setting}: {files[0]} is no URL; expected URLs such as http://127.0.0.1:8000, or one file of them")
        self._file = Path(files[0]) if files else None
        self._numbers: dict[str, int] = {}
        self._current: Mapping[int, str] = {}
        self._lock, self._looked, self._trouble = threading.Lock(), time.monotonic(), ""
        try:
            self._take(named if self._file is None else _urls(self._file))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{setting}={self._file}: {_reason(error)}") from error

    def __str__(self) -> str:
        return str(self._file) if self._file is not None else ", ".join(self._current.values())

    def current(self) -> Mapping[int, str]:
        """Those that are listed now; the same object for as long as they are the same."""
        if self._file is not None and time.monotonic() - self._looked >= LOOK_S:
            with self._lock:
                self._looked = time.monotonic()
                self._look(self._file)
        return self._current

    def each(self, make: Callable[[str], Made]) -> Callable[[], Mapping[int, Made]]:
        """What `make` makes of a URL, once for each, of those that are listed when it is asked."""
        made: dict[int, Made] = {}
        last: tuple[Mapping[int, str], Mapping[int, Made]] = ({}, {})

        def listed() -> Mapping[int, Made]:
            nonlocal last
            now = self.current()
            if last[0] is not now:
                for number, url in now.items():
                    if number not in made:
                        made[number] = make(url)
                last = now, {number: made[number] for number in now}
            return last[1]

        return listed

    def _look(self, file: Path) -> None:
        try:
            urls = _urls(file)
        except (OSError, ValueError) as error:
            trouble = f"{file}: {_reason(error)}; the servers of before are used"
            if trouble != self._trouble:
                log.warning("%s", trouble)
            self._trouble = trouble
            return
        self._trouble = ""
        if urls and urls != [*self._current.values()]:
            self._take(urls)
            log.info("servers now: %s", ", ".join(urls))

    def _take(self, urls: Sequence[str]) -> None:
        self._current = {self._numbers.setdefault(url, len(self._numbers)): url for url in urls}


def _urls(file: Path) -> list[str]:
    """Raises OSError, and ValueError for a line that is none."""
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = list(dict.fromkeys(filter(None, lines)))
    for one in found:
        if not one.startswith(("http://", "https://")):
            raise ValueError(f"{one!r} is no URL; expected one a line, such as http://127.0.0.1:8000")
    return found


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
