"""What the benchmarks of training take on their command lines."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def training_parser(prog: str, description: str | None, *, sides: Sequence[str], on_gpu: str) -> argparse.ArgumentParser:
    """A parser with what they share; `sides` are measured beside each other, `on_gpu` is what trains there."""
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help=f"{on_gpu} on the first CUDA device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each turn")
    parser.add_argument("--sides", nargs="+", choices=sides, default=sides)
    return parser


def chosen(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    *,
    named: str,
    known: Collection[str],
    on_gpu: Mapping[str, Any],
    on_cpu: Mapping[str, Any],
) -> argparse.Namespace:
    """The parsed options, those that are left out as on that device; `named` is the positional one, each of which must be `known`.

    Prints the versions. Ends the program where something is wrong.
    """
    options = parser.parse_args(argv)
    for name, value in (on_gpu if options.gpu else on_cpu).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if "ours" not in options.sides:
        parser.error("--sides needs ours, beside which the others are shown")
    if unknown := [one for one in getattr(options, named) if one not in known]:
        parser.error(f"no {named.removesuffix('s')} {unknown[0]!r}; there are {', '.join(known)}")
    print(", ".join(f"{name} {version_of(name)}" for name in ("gym-bridge", "torch", "transformers", "trl")))
    return options


def present_sides(options: argparse.Namespace) -> list[Any]:
    """The sides that can be measured here; those that cannot are told."""
    missing = [side for side in options.sides if side.startswith("trl") and version_of("trl") == "none"]
    if missing:
        print(f"left out, because TRL is not installed: {', '.join(missing)}")
    return [side for side in options.sides if side not in missing]


def version_of(name: str) -> str:
    """Of an installed package; none where it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
