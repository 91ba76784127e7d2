"""`gym-bridge eval` and `gym-bridge eval compare`."""

from pathlib import Path
from typing import Any

import click

from gym_bridge.api import evaluating
from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.config import validate
from gym_bridge.schemas.play_settings import EvalSettings


class RunByDefault(click.Group):
    """A group whose bare options mean `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with `run` put before options that name no command."""
        bare = bool(args) and args[0].startswith("-") and args[0] not in ("-h", "--help")
        return super().parse_args(ctx, ["run", *args] if bare else args)


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split(",")
    if not all(one.strip().isdecimal() and int(one) for one in parts):
        raise click.BadParameter(f"expected whole numbers from 1 on, such as 1,4,16, got {value!r}")
    return tuple(map(int, parts))


k_option = click.option(
    "-k",
    "ks",
    callback=_numbers,
    metavar="K,...",
    help="Of pass@k, pass^k, cons@k, best@k. [default: 1, 2, 4, ... up to the attempts]",
)


@click.group("eval", cls=RunByDefault)
def command() -> None:
    """Play held-out tasks, summarise rollouts, compare two policies on the same tasks."""


@command.command("run", epilog="Example: gym-bridge eval --input heldout.jsonl --output runs/x/eval.jsonl --server arithmetic")
@settings_options(EvalSettings)
@k_option
@output_options
def run(ks: tuple[int, ...] | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Play held-out tasks and report the mean reward with its 95 % interval, clustered by task."""
    _print(evaluating.evaluate(validate(EvalSettings, given(options)), ks=ks, quiet=quiet), as_json)


@command.command("report", epilog="Example: gym-bridge eval report runs/x/rollouts.jsonl")
@click.argument("rollouts", type=click.Path(path_type=Path))
@k_option
@output_options
def report(rollouts: Path, ks: tuple[int, ...] | None, quiet: bool, as_json: bool) -> None:
    """Summarise an existing ROLLOUTS file."""
    _print(evaluating.summarize_file(rollouts, ks=ks), as_json)


@command.command("compare", epilog="Example: gym-bridge eval compare runs/x/eval_before.jsonl runs/x/eval_after.jsonl")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@k_option
@output_options
def compare(before: Path, after: Path, ks: tuple[int, ...] | None, quiet: bool, as_json: bool) -> None:
    """The paired difference of two ROLLOUTS files over the same tasks, with its 95 % interval and p-value."""
    _print(evaluating.compare(before, after, ks=ks), as_json)


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        click.echo(result.to_text())
