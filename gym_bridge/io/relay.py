"""Shows what other processes append to a log, while they run."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

LOOK_S = 0.5


@contextmanager
def relayed(log: Path, stream: TextIO) -> Iterator[None]:
    """While the block lasts, whole lines that are appended to the log go to the stream too, but for the very last one: that is the
    end, of which the caller tells in its own words. The log need not be there yet."""
    ended, begin = threading.Event(), log.stat().st_size if log.exists() else 0
    thread = threading.Thread(target=_relay, args=(log, begin, stream, ended), name="relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _relay(log: Path, at: int, stream: TextIO, ended: threading.Event) -> None:
    held = b""
    while True:
        last = ended.wait(LOOK_S)
        if log.exists():
            with log.open("rb") as file:
                file.seek(at)
                held += file.read()
                at = file.tell()
            *lines, rest = held.splitlines(keepends=True) or [b""]
            held = rest
            if lines:
                stream.write(b"".join(lines).decode(errors="replace"))
                stream.flush()
        if last:
            return
