"""`gym-bridge eval`, `eval --config`, `eval report` and `eval compare`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gym_bridge.api import evaluating, suites
from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.config import load_config, validate
from gym_bridge.errors import UNFIT
from gym_bridge.schemas.play_settings import EvalSettings
from gym_bridge.schemas.suite_settings import SuiteSettings


class RunByDefault(click.Group):
    """A group whose bare options mean `run`, and with a --config among them `suite`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with the command put before options that name none."""
        bare = bool(args) and args[0].startswith("-") and args[0] not in ("-h", "--help")
        meant = "suite" if any(one.partition("=")[0] == "--config" for one in args) else "run"
        return super().parse_args(ctx, [meant, *args] if bare else args)


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


def _table_options(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option("--markdown", is_flag=True, help="Print the tables in Markdown.")(function)
    return output_options(function)


@click.group("eval", cls=RunByDefault)
def command() -> None:
    """Play held-out tasks, summarise rollouts, compare policies on the same tasks.

    Without a command's name: run, and with --config suite.
    """


@command.command("run", epilog="Example: gym-bridge eval --input heldout.jsonl --output runs/x/eval.jsonl --server arithmetic")
@settings_options(EvalSettings, short={"num_repeats": "-n"})
@k_option
@_table_options
def run(ks: tuple[int, ...] | None, quiet: bool, as_json: bool, markdown: bool, **options: Any) -> None:
    """Play held-out tasks and report the mean reward with its 95 % interval, clustered by task."""
    _print(evaluating.evaluate(validate(EvalSettings, given(options)), ks=ks, quiet=quiet), as_json=as_json, markdown=markdown)


@command.command("report", epilog="Example: gym-bridge eval report runs/x/rollouts.jsonl")
@click.argument("rollouts", type=click.Path(path_type=Path))
@k_option
@_table_options
def report(rollouts: Path, ks: tuple[int, ...] | None, quiet: bool, as_json: bool, markdown: bool) -> None:
    """Summarise an existing ROLLOUTS file."""
    _print(evaluating.summarize_file(rollouts, ks=ks), as_json=as_json, markdown=markdown)


@command.command("compare", epilog="Example: gym-bridge eval compare runs/x/eval_before.jsonl runs/x/eval_after.jsonl")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@k_option
@_table_options
def compare(before: Path, after: Path, ks: tuple[int, ...] | None, quiet: bool, as_json: bool, markdown: bool) -> None:
    """The paired difference of two ROLLOUTS files over the same tasks, with its 95 % interval and p-value."""
    _print(evaluating.compare(before, after, ks=ks), as_json=as_json, markdown=markdown)


@command.command("suite", epilog="Example: gym-bridge eval --config suite.yaml max_regression=0.02")
@click.argument("overrides", nargs=-1)
@click.option("--config", "configs", multiple=True, type=click.Path(path_type=Path), help="A YAML file. Later ones win.")
@click.option("--max-regression", type=float, help="Exit with 3 where a policy may have lost more than this against the baseline.")
@_table_options
def suite(
    overrides: tuple[str, ...],
    configs: tuple[Path, ...],
    max_regression: float | None,
    quiet: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """Play several policies on several sets of tasks, and compare each with a baseline.

    Settings: output, sets, policies, play, baseline, max_regression, ks.
    """
    bound = [] if max_regression is None else [f"max_regression={max_regression}"]
    settings = load_config(SuiteSettings, files=configs, overrides=[*overrides, *bound])
    found = suites.evaluate_suite(settings, quiet=quiet)
    _print(found, as_json=as_json, markdown=markdown)
    if found.regressions:
        sys.exit(UNFIT)


def _print(result: Any, *, as_json: bool, markdown: bool) -> None:
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        click.echo(result.to_markdown() if markdown else result.to_text())
