"""The viewer on a large file: the index, the first page, rollouts, filters, and memory.

    python -m benchmarks.view --rows 200000 --gib 2

The file is made beside TMPDIR's others, and removed. The server is a process of its own, asked over HTTP as a browser asks.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import psutil

WORDS = (
    "sum",
    "call",
    "tool",
    "check",
    "number",
    "again",
    "result",
    "table",
    "because",
    "answer",
    "first",
    "then",
    "left",
    "right",
)
GROUP_SIZE = 8


def row(number: int, size: int, draw: random.Random) -> dict[str, Any]:
    """A rollout with two tool calls, of some `size` bytes."""
    task, index = divmod(number, GROUP_SIZE)
    text = " ".join(draw.choices(WORDS, k=max(1, (size - 1200) * 10 // 55)))
    calls = [
        {"type": "function_call", "call_id": f"c{turn}", "name": draw.choice(("search", "add")), "arguments": '{"q": "tables"}'}
        for turn in range(2)
    ]
    outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": text[: len(text) // 4]} for call in calls]
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text[len(text) // 2 :]}]}
    pairs = [item for pair in zip(calls, outputs, strict=True) for item in pair]
    return {
        "responses_create_params": {"input": [{"role": "user", "content": f"Task {task}: find the number."}]},
        "_ng_task_index": task,
        "_ng_rollout_index": index,
        "reward": float(draw.random() < 0.4),
        "response": {"model": "m", "status": "completed", "output": [*pairs, said], "usage": {"output_tokens": size // 5}},
        "gym_bridge": {"stop_reason": "answered", "num_turns": 3, "num_tool_calls": 2, "timings_s": {"total": draw.random()}},
    }


def write(path: Path, num_rows: int, num_bytes: int) -> None:
    """A rollouts file of so many rows and about so many bytes."""
    draw = random.Random(0)
    with path.open("wb") as file:
        for number in range(num_rows):
            file.write(orjson.dumps(row(number, num_bytes // num_rows, draw)) + b"\n")


def fetch(url: str) -> float:
    """Seconds until the whole page is there."""
    started = time.perf_counter()
    with urllib.request.urlopen(url) as reply:
        reply.read()
    return time.perf_counter() - started


class Server:
    """`gym-bridge view` as a process; `seconds` until its first page was there."""

    def __init__(self, path: Path, cache: Path):
        started = time.perf_counter()
        command = [sys.executable, "-m", "gym_bridge", "view", str(path), "--port", "0", "--quiet", "--json"]
        environ = {**os.environ, "GYM_BRIDGE_CACHE": str(cache)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environ)
        assert self.process.stdout is not None
        self.url = orjson.loads(b"".join(self.process.stdout.readline() for _ in range(3)))["url"].rstrip("/")
        self.ready_s = time.perf_counter() - started
        self.first_page_s = fetch(f"{self.url}/files/0")
        self.seconds = time.perf_counter() - started

    @property
    def memory_mib(self) -> tuple[float, float]:
        """Resident now, and at most so far; of this process and what it started."""
        own = psutil.Process(self.process.pid)
        status = Path(f"/proc/{own.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
        return sum(one.memory_info().rss for one in (own, *own.children(recursive=True))) / 2**20, peak

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--gib", type=float, default=2.0)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="gym-bridge-bench-") as directory:
        path = Path(directory) / "rollouts.jsonl"
        write(path, asked.rows, int(asked.gib * 2**30))
        print(f"{asked.rows:,} rows, {path.stat().st_size / 2**30:.2f} GiB\n\n| what | figure |\n|---|---|")
        first = Server(path, Path(directory) / "cache")
        print(f"| first start: index and first page | {first.seconds:.1f} s, resident {first.memory_mib[0]:.0f} MiB |")
        first.stop()
        server = Server(path, Path(directory) / "cache")
        print(f"| second start to the first page | {server.seconds:.2f} s, of it the page {server.first_page_s:.2f} s |")
        draw = random.Random(1)
        rollouts = sorted(fetch(f"{server.url}/files/0/rollouts/{draw.randint(1, asked.rows)}") for _ in range(100))
        print(f"| a rollout: median, slowest of 100 | {statistics.median(rollouts) * 1000:.0f} ms, {rollouts[-1] * 1000:.0f} ms |")
        for name, query in (
            ("reward of 1, page 3", "reward_min=1&page=3"),
            ("tool add, most tokens", "tool=add&sort=tokens"),
            ("where num_tool_calls > 1 and reward < 1", "where=num_tool_calls+%3E+1+and+reward+%3C+1"),
            ("groups, widest spread", ""),
            ("text that one row has", f"text=task+{asked.rows // GROUP_SIZE - 1}%3A"),
            ("text that every row has", "text=find"),
        ):
            place = "files/0/groups?group_sort=spread" if name.startswith("groups") else f"files/0?{query}"
            print(f"| {name} | {fetch(f'{server.url}/{place}'):.2f} s |")
        now, peak = server.memory_mib
        print(f"| memory after all of it | {now:.0f} MiB resident, {peak:.0f} MiB at most |")
        server.stop()


if __name__ == "__main__":
    main()
