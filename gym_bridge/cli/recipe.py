"""`gym-bridge recipe list`, `recipe show` and `recipe run`."""

import sys
from pathlib import Path

import click

from gym_bridge.cli.options import output_options
from gym_bridge.cli.printing import print_json, print_table
from gym_bridge.errors import UNFIT


@click.group("recipe")
def command() -> None:
    """The steps of post-training, each as one command: what it takes, what it gives, and which comes next."""


@command.command("list", epilog="Example: gym-bridge recipe list")
@output_options
def list_(quiet: bool, as_json: bool) -> None:
    """The recipes, in the order in which people take them."""
    from gym_bridge.recipes.catalogue import recipes

    found = recipes()
    if as_json:
        print_json([{**one.manifest.step.model_dump(), "configs": one.configs} for one in found])
        return
    print_table([(one.manifest.step.id, ", ".join(one.configs), one.manifest.step.name) for one in found])


@command.command("show", epilog="Example: gym-bridge recipe show dpo")
@click.argument("name")
@output_options
def show(name: str, quiet: bool, as_json: bool) -> None:
    """What the recipe NAME takes and gives, when to choose it, its parameters, known errors and what comes next."""
    from gym_bridge.recipes.catalogue import find_recipe
    from gym_bridge.recipes.telling import description

    recipe = find_recipe(name)
    if as_json:
        print_json({**recipe.manifest.model_dump(), "folder": str(recipe.folder), "configs": recipe.configs})
    else:
        click.echo(description(recipe))


@command.command("run", epilog="Example: gym-bridge recipe run sft -c tiny output=runs/first num_train_tasks=64")
@click.argument("name")
@click.argument("overrides", nargs=-1)
@click.option("-c", "--config", default="default", show_default=True, help="One of the recipe's configs, or a YAML file.")
@click.option("--dry-run", is_flag=True, help="Check all settings, print the commands and stop.")
@output_options
def run(name: str, overrides: tuple[str, ...], config: str, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Run the recipe NAME (one of `recipe list`, or a folder of yours), stage by stage; the same command goes on where it stopped.

    OVERRIDES set its parameters, such as model=runs/sft, and any setting of a stage, such as stages.train.policy.lr=1e-5.
    """
    from gym_bridge.recipes.catalogue import find_recipe
    from gym_bridge.recipes.planning import plan
    from gym_bridge.recipes.running import run_plan, shown_stage
    from gym_bridge.recipes.telling import commands

    planned = plan(find_recipe(name), config=config, overrides=overrides)
    if dry_run and as_json:
        print_json([{"stage": one.name, "command": shown_stage(one)} for one in (*planned.stages, *planned.first_round())])
        return
    if dry_run:
        click.echo(commands(planned))
        return
    say = (lambda text: None) if quiet or as_json else click.echo
    report = run_plan(planned, say, quiet=quiet or as_json, to_stderr=as_json)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        click.echo(report.to_text())
        click.echo(f"report: {Path(planned.output, 'report.html')}")
    if report.regressions:
        sys.exit(UNFIT)
