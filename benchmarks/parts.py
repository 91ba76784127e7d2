"""The parts of the benchmark: each starts its servers, runs clients in turns and prints a table."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.client import Figures, Run
from benchmarks.processes import ROOT, Server, cpu_s_of, memory_mib, null_server, printed_by, serving
from benchmarks.weather_tasks import write_tasks

AGENT, RESOURCES = "example_single_tool_call_agent", "example_single_tool_call"
THEIRS = "ng_collect_rollouts"


def rate(options: Namespace, directory: Path) -> None:
    """Ours beside the bare script, in turns."""
    tasks = write_tasks(directory / "tasks.jsonl", num_tasks=options.rollouts)
    table("in flight", "bare/s", "ours/s", "ours / bare", "bare CPU ms", "ours CPU ms", "servers CPU ms")
    with null_server("model") as model, null_server("resources") as resources:
        whole = weather_run(tasks, model, resources)
        for concurrency in options.concurrency:
            bare, ours, served = [], [], []
            for turn in range(options.turns):
                run = replace(whole, concurrency=concurrency)
                bare.append(client(replace(run, kind="bare")))
                before = cpu_s_of(model.pid) + cpu_s_of(resources.pid)
                ours.append(client(replace(run, output=str(directory / f"{concurrency}_{turn}" / "rollouts.jsonl"))))
                served.append((cpu_s_of(model.pid) + cpu_s_of(resources.pid) - before) / options.rollouts)
            row(
                concurrency,
                spread(one.rate for one in bare),
                spread(one.rate for one in ours),
                ratios(ours, bare),
                *(f"{1e3 * median(one.cpu_s / one.rollouts for one in kind):.2f}" for kind in (bare, ours)),
                f"{1e3 * median(served):.2f}",
            )


def in_flight(options: Namespace, directory: Path) -> None:
    """All rollouts at once against a slow model."""
    tasks = write_tasks(directory / "tasks.jsonl", num_tasks=options.in_flight)
    table("in flight", "complete", "seconds", "CPU s", "lag p50 ms", "lag p99 ms", "lag max ms", "peak MiB")
    with null_server("model", delay_s=options.model_delay_s) as model, null_server("resources") as resources:
        run = replace(weather_run(tasks, model, resources), concurrency=options.in_flight, sampled=True)
        for turn in range(options.turns):
            found = client(replace(run, output=str(directory / str(turn) / "rollouts.jsonl")))
            lags = (found.lag_p50_ms, found.lag_p99_ms, found.lag_max_ms)
            seconds = (f"{found.seconds:.1f}", f"{found.cpu_s:.1f}")
            row(options.in_flight, found.rollouts, *seconds, *(f"{lag or 0:.0f}" for lag in lags), f"{found.peak_mib:.0f}")


def memory(options: Namespace, directory: Path) -> None:
    """Resident memory while the log grows, with repeats of few tasks and with distinct tasks."""
    table("tasks", "rollouts", "rate/s", "first MiB", "at 10 %", "at 50 %", "at the end", "peak")
    for num_tasks in (max(1, options.memory_rollouts // 200), options.memory_rollouts):
        _memory_over(num_tasks, options.memory_rollouts // num_tasks, directory / str(num_tasks))


def _memory_over(num_tasks: int, repeats: int, directory: Path) -> None:
    """One line of the table."""
    directory.mkdir()
    tasks = write_tasks(directory / "tasks.jsonl", num_tasks=num_tasks)
    output = directory / "run" / "rollouts.jsonl"
    samples: list[tuple[int, float]] = []

    def watch(pid: int) -> None:
        if output.exists() and output.stat().st_size:
            samples.append((output.stat().st_size, memory_mib(pid)))

    with null_server("model") as model, null_server("resources") as resources:
        run = replace(weather_run(tasks, model, resources), output=str(output), num_repeats=repeats)
        found = client(run, watch=watch, every_s=0.5)
    total = output.stat().st_size
    places = [next((mib for size, mib in samples if size >= share * total), samples[-1][1]) for share in (0.0, 0.1, 0.5)]
    row(num_tasks, found.rollouts, f"{found.rate:.0f}", *(f"{mib:.1f}" for mib in (*places, samples[-1][1], found.peak_mib)))


def workers(options: Namespace, directory: Path) -> None:
    """One process beside several."""
    tasks = write_tasks(directory / "tasks.jsonl", num_tasks=options.rollouts)
    kinds = (1, options.workers)
    found: dict[int, list[Figures]] = {kind: [] for kind in kinds}
    served: dict[int, list[float]] = {kind: [] for kind in kinds}
    with null_server("model") as model, null_server("resources") as resources:
        for turn in range(options.turns):
            for kind in kinds:
                run = replace(weather_run(tasks, model, resources), concurrency=256, workers=kind)
                before = cpu_s_of(model.pid) + cpu_s_of(resources.pid)
                found[kind].append(client(replace(run, output=str(directory / f"{kind}_{turn}" / "rollouts.jsonl"))))
                served[kind].append(cpu_s_of(model.pid) + cpu_s_of(resources.pid) - before)
    table("workers", "rollouts/s", "to one", "CPU ms: parent", "workers", "servers", "cores busy")
    for kind in kinds:
        used = [median(one.cpu_s for one in found[kind]), median(one.workers_cpu_s for one in found[kind]), median(served[kind])]
        busy = sum(used) / median(one.seconds for one in found[kind])
        each = (f"{1e3 * one / options.rollouts:.2f}" for one in used)
        row(kind, spread(one.rate for one in found[kind]), ratios(found[kind], found[1]), *each, f"{busy:.2f}")


def nemo_gym(options: Namespace, directory: Path) -> None:
    """Against NeMo Gym's own resources server and agent: its collector, ours in both modes, the bare script."""
    python = str(options.nemo_gym_venv.absolute() / "bin" / "python")
    tasks = write_tasks(directory / "tasks.jsonl", num_tasks=options.nemo_gym_rollouts)
    with ExitStack() as stack:
        model = stack.enter_context(null_server("model"))
        script = [str(ROOT / "tests" / "nemo_gym" / "serve.py"), "--model-url", f"{model.said['model']}/v1", RESOURCES]
        served = stack.enter_context(serving(python, *script, log=directory / "log"))
        run = weather_run(tasks, model, Server(served.pid, {"resources": served.said["resources"][RESOURCES]}))
        runs = {
            "ours, agent mode": replace(run, agent_url=served.said["agents"][RESOURCES], resources_url=""),
            "ours": run,
            "bare": replace(run, kind="bare"),
        }
        table("in flight", "client", "rollouts/s", "to ng_collect_rollouts", "to bare", "CPU ms", "NeMo Gym's servers' CPU ms")
        for concurrency in options.concurrency:
            found: dict[str, list[Figures]] = {}
            spent: dict[str, list[float]] = {}
            for turn in range(options.turns):
                for name in (THEIRS, *runs):
                    before = cpu_s_of(served.pid)
                    output = str(directory / f"{concurrency} {turn} {name}" / "rollouts.jsonl")
                    if name == THEIRS:
                        figures = their_client(python, served.said["head"], AGENT, str(tasks), output, "1", str(concurrency))
                    else:
                        figures = client(replace(runs[name], concurrency=concurrency, output=output))
                    found.setdefault(name, []).append(figures)
                    spent.setdefault(name, []).append(cpu_s_of(served.pid) - before)
            for name, figures in found.items():
                cpu_ms = 1e3 * median(one.cpu_s / one.rollouts for one in figures)
                served_ms = 1e3 * median(spent[name]) / options.nemo_gym_rollouts
                compared = (ratios(figures, found[THEIRS]), ratios(figures, found["bare"]))
                row(concurrency, name, spread(one.rate for one in figures), *compared, f"{cpu_ms:.2f}", f"{served_ms:.2f}")


def weather_run(tasks: Path, model: Server, resources: Server) -> Run:
    """Ours over every task once, 64 in flight."""
    return Run(
        kind="collect",
        tasks=str(tasks),
        output="",
        model_url=model.said["model"],
        resources_url=resources.said["resources"],
        num_repeats=1,
        concurrency=64,
    )


def client(run: Run, **watching: Any) -> Figures:
    """The figures of a run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.client", json.dumps(asdict(run))]
    return Figures(**json.loads(printed_by(command, **watching)))


def their_client(python: str, *arguments: str) -> Figures:
    """The figures of NeMo Gym's collector."""
    command = [python, str(ROOT / "benchmarks" / "nemo_gym_collector.py"), *arguments]
    return Figures(**json.loads(printed_by(command)), workers_cpu_s=0.0, peak_mib=0.0)


def table(*names: str) -> None:
    """The head of a Markdown table."""
    row(*names)
    row(*("---" for _ in names))


def row(*cells: object) -> None:
    """A row of it."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def spread(values: Iterable[float]) -> str:
    """Median (least to most)."""
    found = sorted(values)
    return f"{median(found):.0f} ({found[0]:.0f} to {found[-1]:.0f})"


def ratios(ours: Sequence[Figures], others: Sequence[Figures]) -> str:
    """The ratios of rates within each turn: median (least to most)."""
    found = sorted(one.rate / other.rate for one, other in zip(ours, others, strict=True))
    return f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"
