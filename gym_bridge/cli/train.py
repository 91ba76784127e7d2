"""`gym-bridge train sft`, `train dpo`, `train rm` and `train grpo`."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from gym_bridge.api import training
from gym_bridge.cli.options import output_options
from gym_bridge.cli.printing import print_json
from gym_bridge.config import load_config
from gym_bridge.schemas.launched import launched
from gym_bridge.schemas.nemo_rl_key import Verb
from gym_bridge.schemas.nemo_rl_keys import nemo_rl_keys
from gym_bridge.schemas.settings import DPOSettings, GRPOSettings, RewardModelSettings, SFTSettings
from gym_bridge.schemas.shipped_configs import find_config

CONFIG_HELP = "A YAML file, or the name of a shipped one such as sft/tiny. Later --config files win."

ENDINGS = {
    "signal": "stopped by SIGTERM",
    "time": "stopped by trainer.max_time_s",
    "patience": "stopped early by trainer.patience",
}


@click.group("train")
def command() -> None:
    """Train a policy; settings come from --config files and from overrides such as policy.lr=1e-5."""


STORED = {
    "from_rollouts": ("data.rollouts", "Train on these rollouts, which hold token ids and log-probs, instead of playing."),
    "from_groups": ("data.groups", "Train on these ranked groups of rollouts instead of playing."),
    "replay": ("data.replay", "Take the steps again that a run recorded, without server and sampler."),
}


def _stored_options(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option("--record", is_flag=True, help="Keep every step whole, for --replay.")(function)
    for name, (_, help_text) in reversed(STORED.items()):
        flag = "--" + name.replace("_", "-")
        function = click.option(flag, name, type=click.Path(path_type=Path), help=help_text)(function)
    return function


def options_as_overrides(options: Mapping[str, Any]) -> list[str]:
    """Options of `train grpo` as the settings that they are short for."""
    paths = [f"{key}={options[name]}" for name, (key, _) in STORED.items() if options.get(name) is not None]
    return [*(["data.train=null"] if paths else []), *paths, *(["trainer.record=true"] if options.get("record") else [])]


def _verb(
    name: Verb, settings_model: type[SFTSettings | DPOSettings | RewardModelSettings | GRPOSettings], help_text: str, example: str
) -> None:
    @command.command(name, help=help_text, epilog=f"Example: {example}")
    @click.argument("overrides", nargs=-1)
    @click.option("--config", "configs", multiple=True, help=CONFIG_HELP)
    @click.option("--dry-run", is_flag=True, help="Print the resolved settings and stop.")
    @click.option("--metrics-port", type=int, help="Short for logger.metrics_port: serve the newest numbers to Prometheus.")
    @(_stored_options if name == "grpo" else lambda function: function)
    @output_options
    def verb(
        overrides: tuple[str, ...],
        configs: tuple[str, ...],
        dry_run: bool,
        metrics_port: int | None,
        quiet: bool,
        as_json: bool,
        **options: Any,
    ) -> None:
        if (started := launched()) and not started.leads:
            if not dry_run and not training.follow_leader():
                sys.exit(1)
            return
        files = [find_config(one, verb=name) for one in configs]
        port = [] if metrics_port is None else [f"logger.metrics_port={metrics_port}"]
        given = [*options_as_overrides(options), *port, *overrides]
        settings = load_config(settings_model, files=files, overrides=given, foreign=nemo_rl_keys(name))
        if dry_run:
            _print_settings(settings.model_dump(mode="json"))
            return
        result = training.train(settings, quiet=quiet)
        if as_json:
            told = {
                "steps": result.steps,
                "stopped": result.stopped,
                "checkpoint": str(result.checkpoint),
                "metrics": result.metrics,
            }
            print_json(told)
            return
        ending = ENDINGS.get(result.stopped, "done")
        click.echo(f"{settings.trainer.output}: {ending} after {result.steps} steps; checkpoint {result.checkpoint}")
        if "mfu" in result.metrics and not quiet:
            from gym_bridge.policy.flops import FORMULA

            click.echo(f"mfu {result.metrics['mfu']:.3f}: {FORMULA}")


def _print_settings(values: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    click.echo(OmegaConf.to_yaml(OmegaConf.create(values)), nl=False)


_verb(
    "sft",
    SFTSettings,
    "Supervised fine-tuning on chat rows with tools; the same command again goes on from the last checkpoint.",
    "gym-bridge train sft --config sft/tiny data.train=sft.jsonl trainer.output=runs/sft",
)
_verb(
    "dpo",
    DPOSettings,
    "Preference optimisation on pairs: DPO, cDPO, robust DPO, IPO, SimPO, ORPO, KTO; the same command again goes on from the last "
    "checkpoint.",
    "gym-bridge train dpo --config dpo/tiny data.train=dpo.jsonl policy.model=runs/sft trainer.output=runs/dpo",
)
_verb(
    "rm",
    RewardModelSettings,
    "A reward model on pairs, after Bradley and Terry; the same command again goes on from the last checkpoint.",
    "gym-bridge train rm --config rm/tiny data.train=dpo.jsonl policy.model=runs/sft trainer.output=runs/rm",
)
_verb(
    "grpo",
    GRPOSettings,
    "Online reinforcement learning against a resource server; the same command again goes on from the last checkpoint.",
    "gym-bridge train grpo --config rlvr/tiny data.train=tasks.jsonl env.server=arithmetic trainer.output=runs/grpo",
)
