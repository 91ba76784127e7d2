"""`gym-bridge nemo-rl sft`, `dpo`, `grpo` and `rm`: a dataset for NeMo RL; `nemo-rl import`: its config for us."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gym_bridge.cli.options import output_options
from gym_bridge.cli.printing import print_json


@click.group("nemo-rl")
def command() -> None:
    """Hand a dataset to NeMo RL, or bring a config of it here."""


def _verb(algorithm: Any) -> None:
    example = f"gym-bridge nemo-rl {algorithm} --data data/ --model Qwen/Qwen3-0.6B --output cfg.yaml --run ~/RL"
    help_text = (
        f"Write NeMo RL's config for {algorithm} on a dataset; --run starts its training. OVERRIDES such as "
        f"{algorithm}.max_num_steps=100 go into it."
    )

    @command.command(algorithm, help=help_text, epilog=f"Example: {example}")
    @click.argument("overrides", nargs=-1)
    @click.option(
        "--data",
        required=True,
        multiple=True,
        type=click.Path(path_type=Path),
        help="A directory of datasets, or a file; may be given several times. Files named validation, valid or val are for "
        "validation.",
    )
    @click.option("--model", required=True, help="The model that NeMo RL trains; its tokenizer measures the rows.")
    @click.option("--base", type=click.Path(path_type=Path), help="NeMo RL's config to build on. Default: its own example.")
    @click.option("--output", required=True, type=click.Path(path_type=Path), help="The override file.")
    @click.option("--run", "checkout", type=click.Path(path_type=Path), help="Start the training in this checkout of NeMo RL.")
    @output_options
    def verb(overrides: tuple[str, ...], checkout: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
        from gym_bridge.api.nemo_rl import run_nemo_rl, write_nemo_rl_config

        plan = write_nemo_rl_config(algorithm, overrides=overrides, checkout=checkout, **options)
        if as_json:
            print_json(
                {
                    "output": str(plan.output),
                    "command": list(plan.command),
                    "rows": plan.facts.num_train,
                    "longest": plan.facts.longest,
                    "config": plan.config,
                    "warnings": plan.warnings,
                }
            )
        else:
            for note in () if quiet else plan.notes:
                click.echo(note)
            for warning in plan.warnings:
                click.echo(f"warning: {warning}", err=True)
            click.echo(f"{plan.output}: start it in a checkout of NeMo RL with\n  {plan.describe_command()}")
        if checkout is not None:
            raise click.exceptions.Exit(run_nemo_rl(plan))


for _algorithm in ("sft", "dpo", "grpo", "rm"):
    _verb(_algorithm)


@command.command("import", epilog="Example: gym-bridge nemo-rl import grpo_math_1B.yaml --output grpo.yaml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Our config, for train --config; a new file. Default: print it.")
@output_options
def import_command(file: Path, output: Path | None, quiet: bool, as_json: bool) -> None:
    """Make our config of FILE, one of NeMo RL for grpo, sft, dpo or rm. Every key without a counterpart is named on stderr."""
    from gym_bridge.api.nemo_rl_import import as_yaml, import_nemo_rl_config

    imported = import_nemo_rl_config(file, output=output)
    if as_json:
        print_json(asdict(imported))
        return
    for note in () if quiet else imported.notes():
        click.echo(note, err=True)
    if output is None:
        click.echo(as_yaml(imported, file), nl=False)
    else:
        click.echo(f"{output}: start it with gym-bridge train {imported.verb} --config {output}")
