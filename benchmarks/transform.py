"""How fast `gym-bridge transform` is, beside a bare loop of orjson.loads and orjson.dumps on one core.

    python -m benchmarks.transform [formats] [filters] [workers] [memory] [--shape small|tools|tokens]

Without parts: all of them. Rows are shaped like those of NeMo Gym's example_single_tool_call (small, 3 KB), of its
workplace_assistant (tools, 35 KB), and like small rows with inline token ids (tokens, 350 KB). Each measurement is a process of its
own, bare and ours in turns, because other work on the machine comes and goes: ratios within a turn count. Prints Markdown tables.
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import orjson

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures" / "nemo_gym"
FORMATS = ("response", "sft", "grpo", "dpo", "preference", "tasks")
GROUP_SIZE = 4
SHAPES = {"small": "example_single_tool_call", "tools": "workplace_assistant", "tokens": "example_single_tool_call"}
AIMS = {"response": 0.7, "sft": 0.7, "tasks": 1.2}
PROMPT_TOKENS, COMPLETION_TOKENS = 8000, 4500

BARE = """
import os, sys, time, orjson
start, cpu = time.perf_counter(), time.process_time()
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as target:
    for line in source:
        target.write(orjson.dumps(orjson.loads(line), option=orjson.OPT_APPEND_NEWLINE))
    target.flush()
    os.fsync(target.fileno())
print(time.perf_counter() - start, time.process_time() - cpu)
"""
OURS = """
import resource, sys, time
from pathlib import Path
from gym_bridge import transform
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms import engine

if __name__ == "__main__":
    everything = {"min_reward": "none"} if sys.argv[3] in ("response", "sft") else {}
    given = {"to": sys.argv[3], "output": sys.argv[2], "workers": sys.argv[4]}
    given |= everything | dict(one.split("=", 1) for one in sys.argv[5:])
    settings = TransformSettings.model_validate(given, strict=False)
    start, cpu = time.perf_counter(), time.process_time()
    transform([Path(sys.argv[1])], settings)
    seconds = time.perf_counter() - start, time.process_time() - cpu
    print(*seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
FILTERS = ("where=reward > 0.5 and not truncated", "where_group=0 < pass_rate < 1", "where=num_turns <= 8")
OF_MEMORY = (*((to, ()) for to in FORMATS), ("sft", ("dedupe=near",)), ("sft", ("report",)), ("dpo", ("report",)))


def write_rows(path: Path, shape: str, *, mib: float) -> int:
    """A rollouts file of about that size, its rollouts in groups with rewards that differ; returns the number of rows."""
    drawn = random.Random(0)
    models = [orjson.loads(line) for line in (FIXTURES / f"{SHAPES[shape]}.jsonl").read_bytes().splitlines()]
    count = 0
    with path.open("wb") as file:
        while file.tell() < mib * 2**20:
            row = orjson.loads(orjson.dumps(models[count // GROUP_SIZE % len(models)]))
            row |= {"_ng_task_index": count // GROUP_SIZE, "_ng_rollout_index": count % GROUP_SIZE}
            row |= {"agent_ref": {"name": "agent"}, "reward": float(count % GROUP_SIZE == 0), "expected_answer": "42"}
            _mark(row, count)
            if shape == "tokens":
                _add_tokens(row["response"]["output"], drawn)
            file.write(orjson.dumps(row) + b"\n")
            count += 1
    return count


def _mark(row: dict[str, Any], count: int) -> None:
    """Make prompts differ between tasks, and answers between siblings, so that they make pairs."""
    asked = next(item for item in reversed(row["responses_create_params"]["input"]) if item["role"] == "user")
    asked["content"] = f"{asked['content']} ({count // GROUP_SIZE})"
    answer = {"type": "output_text", "text": f"Answer {count}.", "annotations": []}
    row["response"]["output"].append({"type": "message", "role": "assistant", "status": "completed", "content": [answer]})


def _add_tokens(output: list[dict[str, Any]], drawn: random.Random) -> None:
    prompt = [drawn.randrange(50_000) for _ in range(PROMPT_TOKENS)]
    for item in output:
        if item.get("type") == "function_call" or item.get("role") == "assistant":
            sampled = [drawn.randrange(50_000) for _ in range(COMPLETION_TOKENS)]
            logprobs = [-drawn.random() for _ in sampled]
            item |= {"prompt_token_ids": list(prompt), "generation_token_ids": sampled, "generation_log_probs": logprobs}
            prompt += sampled


def formats(options: argparse.Namespace, directory: Path) -> None:
    """Every format beside the bare loop, in one process; both bring their file to the disk."""
    _table("rows", "KB a row", "format", "bare rows/s", "ours rows/s", "ours / bare", "by CPU time", "aim")
    for shape in options.shape:
        path = directory / f"{shape}.jsonl"
        count = write_rows(path, shape, mib=options.mib)
        for to in FORMATS:
            _row(
                shape, f"{path.stat().st_size / count / 1000:.1f}", to, *_beside_bare(options, path, count, to), AIMS.get(to, 0.45)
            )
        path.unlink()


def filters(options: argparse.Namespace, directory: Path) -> None:
    """Tasks chosen by expressions, whose rows are copied, beside the bare loop."""
    _table("rows", "filter", "bare rows/s", "ours rows/s", "ours / bare", "by CPU time", "aim")
    for shape in options.shape:
        path = directory / f"{shape}.jsonl"
        count = write_rows(path, shape, mib=options.mib)
        for chosen in FILTERS:
            _row(shape, chosen, *_beside_bare(options, path, count, "tasks", chosen), 1.2)
        path.unlink()


def _beside_bare(options: argparse.Namespace, path: Path, count: int, to: str, *settings: str) -> list[str]:
    """Rates of the bare loop and of ours, and ours by the bare one, by the clock and by CPU time."""
    bare, ours = [], []
    for _ in range(options.turns):
        bare.append(_run(BARE, path, path.with_name("bare.out")))
        ours.append(_run(OURS, path, path.with_name("ours.out"), to, 1, *settings))
    rates = [f"{count / median(seconds for seconds, *_ in one):.0f}" for one in (bare, ours)]
    by_wall, by_cpu = ([theirs[n] / mine[n] for theirs, mine in zip(bare, ours, strict=True)] for n in (0, 1))
    return [*rates, _spread(by_wall), _spread(by_cpu)]


def workers(options: argparse.Namespace, directory: Path) -> None:
    """Two processes beside one, on a large file."""
    _table("rows", "GiB", "format", "seconds of one", "two / one", "aim")
    for shape in options.shape:
        path = directory / f"{shape}.jsonl"
        write_rows(path, shape, mib=options.workers_gib * 1024)
        for to in ("sft", "dpo"):
            one, two = [], []
            for _ in range(options.turns):
                one.append(_run(OURS, path, directory / "ours.out", to, 1)[0])
                two.append(_run(OURS, path, directory / "ours.out", to, 2)[0])
            ratio = [alone / together for alone, together in zip(one, two, strict=True)]
            _row(shape, f"{path.stat().st_size / 2**30:.1f}", to, f"{median(one):.1f}", _spread(ratio), 1.7)
        path.unlink()


def memory(options: argparse.Namespace, directory: Path) -> None:
    """Peak memory over a large file."""
    _table("rows", "GiB", "number of rows", "format", "seconds", "peak MiB", "aim")
    for shape in options.shape:
        path = directory / f"{shape}.jsonl"
        count = write_rows(path, shape, mib=options.memory_gib * 1024)
        for to, settings in OF_MEMORY:
            given = [f"report={directory / 'report.json'}" if one == "report" else one for one in settings]
            seconds, _, peak = _run(OURS, path, directory / "ours.out", to, 1, *given)
            told = " ".join((to, *(f"--{one.replace('=', ' ')}" for one in settings)))
            _row(shape, f"{path.stat().st_size / 2**30:.1f}", count, told, f"{seconds:.0f}", f"{peak:.0f}", "under 500")
        path.unlink()


def _run(code: str, *arguments: object) -> list[float]:
    """What a script prints, in a process of its own."""
    script = Path(arguments[1]).with_name("measured.py")  # pyright: ignore[reportArgumentType]
    script.write_text(code)
    done = subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, env=_env())
    if done.returncode:
        raise SystemExit(done.stderr)
    return [float(one) for one in done.stdout.split()]


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _table(*names: str) -> None:
    print(f"| {' | '.join(names)} |\n| {' | '.join('---' for _ in names)} |", flush=True)


def _row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


PARTS = {"formats": formats, "filters": filters, "workers": workers, "memory": memory}


def main(given: list[str] | None = None) -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--mib", type=float, default=256, help="size of the files of formats and filters")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers-gib", type=float, default=1)
    parser.add_argument("--memory-gib", type=float, default=3)
    options = parser.parse_args(given)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}, load {load}")
    print(", ".join(f"{name} {version(name)}" for name in ("orjson", "msgspec", "polars")))
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as directory:
            print(f"\n## {name}\n", flush=True)
            PARTS[name](options, Path(directory))


if __name__ == "__main__":
    main()
