"""The process behind `ScorerPool`: `python -m gym_bridge.resource_servers.scorer_worker package.module:name GIB SECONDS`.

Reads arguments as JSON lines from stdin, writes `{"result": ...}` or `{"error": "..."}` to stdout, and ends with its stdin.
The process gives up what scoring does not need: it writes no file, opens no socket, starts no program, and dies soon after its
deadline on its own. That is a second lock and no sandbox: a function that would evaluate what a model wrote checks it first.
"""

import io
import os
import resource
import signal
import sys
import tokenize
from collections.abc import Callable
from typing import Any

import orjson

from gym_bridge.config import load_object
from gym_bridge.errors import ConfigError

RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)
"""What parsers and scorers raise on nonsense. Anything else ends the process, and a new one takes its place."""
HARMLESS = frozenset({"os.listdir", "os.scandir", "os.walk", "os.putenv", "os.unsetenv"})
REFUSED_FAMILIES = ("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "ftplib.", "urllib.", "webbrowser.")
GRACE_S = 2


def main(function: str, memory_gib: int, deadline_s: float) -> None:
    """Answer until stdin ends."""
    requests, replies = _own_pipes()
    resource.setrlimit(resource.RLIMIT_AS, (memory_gib << 30, memory_gib << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        score: Callable[..., Any] = load_object(function)
    except ConfigError as error:
        _write(replies, {"error": str(error)})
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.addaudithook(_refuse)
    _write(replies, {"result": "ready"})
    for line in requests:
        signal.setitimer(signal.ITIMER_REAL, deadline_s + GRACE_S)  # its default action ends the process, also in C code
        try:
            reply = {"result": score(**orjson.loads(line))}
        except RAISED as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, reply)


def _own_pipes() -> tuple[io.BufferedReader, io.BufferedWriter]:
    """stdin and stdout for ourselves: what the function prints or reads goes nowhere."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    return requests, replies


def _write(replies: io.BufferedWriter, value: dict[str, Any]) -> None:
    replies.write(orjson.dumps(value) + b"\n")
    replies.flush()


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which nothing in Python can take away again."""
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or (event.startswith(REFUSED_FAMILIES) and event not in HARMLESS):
        raise PermissionError(f"a scorer may not {event}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
