"""How fast `gym-bridge collect` is, beside a bare aiohttp script and NeMo Gym's own collector.

    python -m benchmarks.collect [rate] [in-flight] [memory] [workers] [nemo-gym] [--nemo-gym-venv VENV]

Without parts: all of them, nemo-gym where a venv is given. Prints Markdown tables. The clients run in processes of their own, one
after the other and in turns, because other work on the machine comes and goes: ratios within a turn count, rates are for
orientation.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from benchmarks import parts

PARTS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "rate": parts.rate,
    "in-flight": parts.in_flight,
    "memory": parts.memory,
    "workers": parts.workers,
    "nemo-gym": parts.nemo_gym,
}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64, 256], help="of the parts rate and nemo-gym")
    parser.add_argument("--rollouts", type=int, default=8000, help="of one run of the parts rate and workers")
    parser.add_argument("--turns", type=int, default=5, help="how often each client runs")
    parser.add_argument("--in-flight", type=int, default=10_000, help="rollouts of the part in-flight, all at once")
    parser.add_argument("--model-delay-s", type=float, default=5.0, help="after which the model of that part answers")
    parser.add_argument("--memory-rollouts", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=2, help="processes of the part workers, beside one")
    parser.add_argument("--nemo-gym-venv", type=Path, help="a venv with nemo-gym (make nemo-gym-venv)")
    parser.add_argument("--nemo-gym-rollouts", type=int, default=600, help="of one run of the part nemo-gym")
    found = parser.parse_args(given)
    if unknown := set(found.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    if "nemo-gym" in found.parts and found.nemo_gym_venv is None:
        parser.error("the part nemo-gym needs --nemo-gym-venv")
    return found


def main(given: list[str] | None = None) -> None:
    """Run the parts."""
    options = arguments(given)
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}, load {load}")
    print(", ".join(f"{name} {version(name)}" for name in ("aiohttp", "orjson", "yarl", "multidict")))
    chosen = options.parts or [name for name in PARTS if name != "nemo-gym" or options.nemo_gym_venv]
    for name in chosen:
        with tempfile.TemporaryDirectory() as directory:
            print(f"\n## {name}\n", flush=True)
            PARTS[name](options, Path(directory))
    print(f"\nload {' '.join(f'{one:.1f}' for one in os.getloadavg())}")


if __name__ == "__main__":
    sys.exit(main())
