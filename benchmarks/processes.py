"""Processes that a benchmark starts and looks at, through /proc."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int | str, field: str = "VmRSS") -> float:
    """Resident memory of a process: now (VmRSS), or its peak (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has no {field}")


def cpu_s_of(pid: int) -> float:
    """User and system seconds of a process, without its children's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves."""

    pid: int
    said: dict[str, Any]
    """URLs by name."""


@contextmanager
def serving(*command: str, log: Path | None = None) -> Iterator[Server]:
    """A server that prints one line of JSON when it is ready, for as long as the block lasts."""
    errors = log.open("wb") if log is not None else None
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(command)} ended before it served" + (f"; see {log}" if log else ""))
        yield Server(process.pid, json.loads(line))
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(10)
        process.stdout.close()
        if errors is not None:
            errors.close()


def null_server(name: str, *, delay_s: float = 0.0) -> AbstractContextManager[Server]:
    """A null model or resource server in a process of its own; as `serving`."""
    return serving(sys.executable, "-m", "benchmarks.null_servers", name, "--delay-s", str(delay_s))


def printed_by(command: list[str], *, watch: Callable[[int], None] | None = None, every_s: float = 1.0) -> str:
    """The last line that a command prints; `watch` is called with its process id every so often while it runs."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    while True:
        try:
            out, _ = process.communicate(timeout=every_s)
            break
        except subprocess.TimeoutExpired:
            if watch is not None:
                watch(process.pid)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return out.strip().splitlines()[-1]
