"""`gym-bridge nemo-rl`."""

from pathlib import Path
from typing import Any

import click

from gym_bridge.api.nemo_rl import run_nemo_rl, write_nemo_rl_config
from gym_bridge.cli.options import output_options
from gym_bridge.cli.printing import print_json


@click.command(
    "nemo-rl", epilog="Example: gym-bridge nemo-rl sft --data data/ --model Qwen/Qwen3-0.6B --output cfg.yaml --run ~/RL"
)
@click.argument("algorithm", type=click.Choice(["sft", "dpo", "grpo", "rm"]))
@click.argument("overrides", nargs=-1)
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="A directory of datasets, or a file; may be given several times. Files named validation, valid or val are for validation.",
)
@click.option("--model", required=True, help="The model that NeMo RL trains; its tokenizer measures the rows.")
@click.option("--base", type=click.Path(path_type=Path), help="NeMo RL's config to build on. Default: its example for ALGORITHM.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The override file.")
@click.option("--run", "checkout", type=click.Path(path_type=Path), help="Start the training in this checkout of NeMo RL.")
@output_options
def command(algorithm: Any, overrides: tuple[str, ...], checkout: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Write NeMo RL's config for a dataset; --run starts its training. OVERRIDES such as sft.max_num_steps=100 go into it."""
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
