"""`gym-bridge audit`."""

from pathlib import Path

import click

from gym_bridge import api
from gym_bridge.cli.options import output_options
from gym_bridge.cli.printing import print_json


@click.command("audit", epilog="Example: gym-bridge audit sft.jsonl --model smollm2-135m --show 1")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--model", default="smollm2-135m", show_default=True, help="Whose tokenizer and chat template the file is checked against."
)
@click.option("--show", type=int, default=0, show_default=True, help="Print the tokens of so many rows, trained ones in brackets.")
@output_options
def command(file: Path, model: str, show: int, quiet: bool, as_json: bool) -> None:
    """Check FILE, a rollouts file or a dataset; exit 1 when anything in it is wrong."""
    report = api.audit(file, model=model, show=show)
    if as_json:
        print_json(report.model_dump())
    else:
        for text in report.shown:
            click.echo(text)
        for problem in report.problems:
            click.echo(f"{file}:{problem.line}: {problem.message}", err=True)
        click.echo(f"{file}: {report.describe()}")
    if report.problems:
        raise click.exceptions.Exit(1)
