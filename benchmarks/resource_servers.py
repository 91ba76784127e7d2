"""How fast a resource server answers beside NeMo Gym's, what memory live sessions take, and how fast the sandbox runs programs.

    python -m benchmarks.resource_servers [rate] [calculator] [office] [sandbox] [--nemo-gym-venv VENV]

Without parts: all of them, rate where a venv is given, here or in GYM_BRIDGE_NEMO_GYM_VENV. Prints Markdown tables. `rate` asks
`benchmarks/weather_server.py` and NeMo Gym's `example_single_tool_call` the same requests in turns; ratios within a turn count.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.null_servers import ANSWER, CALL, REASONING, TOOL_OUTPUT, USAGE
from benchmarks.parts import RESOURCES, ratios, row, spread, table
from benchmarks.processes import ROOT, Server, memory_mib, printed_by, serving
from benchmarks.resource_servers_client import Answered, Call, Load
from benchmarks.weather_tasks import task
from gym_bridge.resource_servers.code.sandbox import Program, Sandbox
from gym_bridge.resource_servers.registry import load_server

OURS = "benchmarks/weather_server.py"
WITH_UVLOOP = "import runpy, sys, uvloop; uvloop.install(); del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
"""NeMo Gym's servers run on uvloop, which uvicorn takes by itself only where it starts the loop."""
SESSIONS = {"calculator": 20_000, "office": 1_000}
MAX_TASKS = 1_000
"""Different ones; sessions beyond them are of the same tasks again."""
KNOBS: dict[str, dict[str, Any]] = {"calculator": {"depth": 6}, "office": {"num_actions": 3}}
SEARCHES: dict[str, list[Call]] = {
    "calculator": [],
    "office": [
        ("/directory_find", '{"name":"a"}'),
        ("/mail_search", '{"query":"the","page":1}'),
        ("/calendar_search", '{"query":"2026","page":1}'),
        ("/tasks_search", '{"query":"done","page":1}'),
    ],
}


def rate(options: argparse.Namespace, directory: Path) -> None:
    """Ours beside NeMo Gym's, in turns."""
    visits = written(directory / "visits.jsonl", (weather_visit(number) for number in range(64)))
    python = str(options.nemo_gym_venv.absolute() / "bin" / "python")
    script = [str(ROOT / "tests" / "nemo_gym" / "serve.py"), "--model-url", "http://127.0.0.1:9/v1", RESOURCES]
    table("in flight", "endpoint", "NeMo Gym's/s", "ours/s", "ours / NeMo Gym's", "NeMo Gym's CPU ms", "our CPU ms")
    with ours(OURS) as mine, serving(python, "-c", WITH_UVLOOP, *script, log=directory / "log") as theirs:
        sides = ((theirs.said["resources"][RESOURCES], theirs.pid), (mine.said["url"], mine.pid))
        for side in sides:
            asked(visits, *side, concurrency=16, repeats=10)  # first requests are slower
        for concurrency in options.concurrency:
            repeats = max(1, options.requests // concurrency)
            found: dict[str, list[tuple[Answered, Answered]]] = {}
            for _ in range(options.turns):
                turn = [asked(visits, *side, concurrency=concurrency, repeats=repeats) for side in sides]
                for slow, fast in zip(*turn, strict=True):
                    found.setdefault(fast.path, []).append((slow, fast))
            for path, pairs in found.items():
                slower, faster = zip(*pairs, strict=True)
                rates = (spread(one.rate for one in slower), spread(one.rate for one in faster), ratios(faster, slower))
                row(concurrency, path, *rates, cpu_ms(slower), cpu_ms(faster))


def memory(name: str, options: argparse.Namespace, directory: Path) -> None:
    """Live sessions of a server, seeded and worked on."""
    sessions = options.sessions or SESSIONS[name]
    rows = list(load_server(name).tasks(num_tasks=min(sessions, MAX_TASKS), seed=0, split="train", **KNOBS[name]))
    visits = written(directory / "visits.jsonl", (visit(one, SEARCHES[name]) for one in islice(cycle(rows), sessions)))
    with ours(name) as server:
        url, before = server.said["url"], memory_mib(server.pid)
        seeded, worked_on = asked(visits, url, server.pid, concurrency=min(32, sessions))
        peak = memory_mib(server.pid, "VmHWM")
    table("sessions", "calls", "before MiB", "seeded MiB", "worked on MiB", "peak MiB", "grown MiB", "seeds/s", "calls/s")
    mib = (before, seeded.memory_mib, worked_on.memory_mib, peak, worked_on.memory_mib - before)
    row(sessions, worked_on.requests, *(f"{one:.0f}" for one in mib), f"{seeded.rate:.0f}", f"{worked_on.rate:.0f}")


def sandbox(options: argparse.Namespace, directory: Path) -> None:
    """Short programs of Python, as many at once as the sandbox takes."""
    table("programs", "programs/s", "layers")

    async def crowd() -> tuple[float, int]:
        async with Sandbox() as box:
            runs = [box.run(Program(source="print(input())"), str(n).encode()) for n in range(options.programs)]
            started = time.perf_counter()
            found = await asyncio.gather(*runs)
            seconds = time.perf_counter() - started
            if [one.stdout for one in found] != [f"{n}\n".encode() for n in range(options.programs)]:
                raise SystemExit("a program did not answer")
            return options.programs / seconds, len(box.layers())

    found = [asyncio.run(crowd()) for _ in range(options.turns)]
    row(options.programs, spread(rate for rate, _ in found), found[0][1])


def ours(name: str) -> AbstractContextManager[Server]:
    """A server of ours in a process of its own."""
    return serving(sys.executable, "-m", "gym_bridge", "serve", name, "--json", "--until-stdin-closes")


def weather_visit(number: int) -> list[Call]:
    """One call of each kind, of 1.0 KB, 24 bytes and 2.3 KB."""
    told = {"type": "function_call_output", "call_id": CALL["call_id"], "output": TOOL_OUTPUT.decode()}
    response = {
        "id": "resp_68b1d7df9c0c81a3",
        "object": "response",
        "created_at": 1795000000,
        "model": "null",
        "output": [REASONING, CALL, told, ANSWER],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": USAGE,
    }
    one = task(number)
    verified = {**one, "response": response}
    return [("/seed_session", json.dumps(one)), (f"/{CALL['name']}", str(CALL["arguments"])), ("/verify", json.dumps(verified))]


def visit(one: dict[str, Any], searches: list[Call]) -> list[Call]:
    """Opening a session, and what the ground truth does in it."""
    calls = [(f"/{call['name']}", call["arguments"]) for call in one["ground_truth"]]
    return [("/seed_session", json.dumps(one)), *searches, *calls]


def written(path: Path, visits: Iterable[list[Call]]) -> Path:
    """The file of the visits."""
    with path.open("w") as file:
        for one in visits:
            file.write(json.dumps(one) + "\n")
    return path


def asked(visits: Path, url: str, pid: int, **how: int) -> list[Answered]:
    """The figures of a load from a process of its own."""
    load = Load(url=url, pid=pid, visits=str(visits), **how)
    command = [sys.executable, "-m", "benchmarks.resource_servers_client", json.dumps(asdict(load))]
    return [Answered(**one) for one in json.loads(printed_by(command))]


def cpu_ms(turns: Iterable[Answered]) -> str:
    """CPU time of the server for one request."""
    return f"{1e3 * median(one.cpu_s / one.requests for one in turns):.2f}"


PARTS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "rate": rate,
    "calculator": partial(memory, "calculator"),
    "office": partial(memory, "office"),
    "sandbox": sandbox,
}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64], help="connections of the part rate")
    parser.add_argument("--requests", type=int, default=2000, help="of one run of the part rate, to each endpoint")
    parser.add_argument("--turns", type=int, default=5, help="how often each server is asked")
    parser.add_argument("--sessions", type=int, help="of the memory parts; else 20,000 of calculator, 1,000 of office")
    parser.add_argument("--programs", type=int, default=200, help="of one run of the part sandbox")
    venv = os.environ.get("GYM_BRIDGE_NEMO_GYM_VENV")
    parser.add_argument("--nemo-gym-venv", type=Path, default=venv, help="a venv with nemo-gym (make nemo-gym-venv)")
    found = parser.parse_args(given)
    if unknown := set(found.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    if "rate" in found.parts and found.nemo_gym_venv is None:
        parser.error("the part rate needs --nemo-gym-venv")
    return found


def main(given: list[str] | None = None) -> None:
    """Run the parts."""
    options = arguments(given)
    chosen = options.parts or [name for name in PARTS if name != "rate" or options.nemo_gym_venv]
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}, load {load}")
    print(", ".join(f"{name} {version(name)}" for name in ("aiohttp", "pydantic", "pydantic_core")))
    for name in chosen:
        with tempfile.TemporaryDirectory() as directory:
            print(f"\n## {name}\n", flush=True)
            PARTS[name](options, Path(directory))
    print(f"\nload {' '.join(f'{one:.1f}' for one in os.getloadavg())}")


if __name__ == "__main__":
    sys.exit(main())
