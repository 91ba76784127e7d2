"""`gym-bridge quickstart`."""

import resource
from pathlib import Path

import click

from gym_bridge.cli.options import output_options
from gym_bridge.cli.printing import print_json


@click.command("quickstart", epilog="Example: gym-bridge quickstart --seed 1")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where the run directory goes."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which tasks, and all random numbers.")
@click.option("--control", is_flag=True, help="Train on shuffled rewards: then the policy must not improve.")
@output_options
def command(output: Path, seed: int, control: bool, quiet: bool, as_json: bool) -> None:
    """The whole loop on a small real model: collect, transform, SFT, GRPO, and held-out rewards before and after.

    Takes minutes on two CPU cores and needs no account. Exit 0 only when the policy measurably improved. An interrupted
    quickstart goes on where it stopped; a finished one is followed by a new run.
    """
    from gym_bridge.recipes.quickstart import report
    from gym_bridge.recipes.quickstart.job import open_quickstart

    say = click.echo if not (quiet or as_json) else lambda text: None
    quickstart = open_quickstart(output, seed=seed, control=control)
    quickstart.run(say)
    outcome = report.verdict(quickstart.directory, control=control)
    stages = report.table(quickstart)
    page = report.write_html(quickstart, outcome, stages)
    quickstart.finish()
    if as_json:
        print_json({"directory": str(quickstart.directory), "improved": outcome.improved, "as_expected": outcome.as_expected})
    else:
        _print_table(stages.header, stages.rows)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        click.echo("\n".join(["", *report.tree(quickstart.directory), "", *outcome.sentences()]))
        click.echo(f"report: {page}; {sum(quickstart.progress.seconds.values()):.0f} s in all, {memory:.1f} GiB at most")
    if not outcome.as_expected:
        raise click.exceptions.Exit(1)


def _print_table(header, rows) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, show_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(width=160).print(table)
