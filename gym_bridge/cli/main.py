"""`gym-bridge`: finds the verb, runs it, and turns errors into one line and an exit code."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

import click

from gym_bridge.errors import GymBridgeError, nearest
from gym_bridge.schemas.launched import launched
from gym_bridge.version import __version__

VERBS = {
    "collect": "Play tasks against a resource server and log the rollouts.",
    "reverify": "Score stored rollouts again, without sampling.",
    "doctor": "Play one rollout against a server and a model, and tell what works.",
    "check-reward": "Try a reward on known answers and a small batch, before training on it.",
    "transform": "Turn rollouts into a dataset: response, sft, grpo, dpo, preference or tasks.",
    "audit": "Check rollouts or a dataset against a model's tokens and template.",
    "prep": "Resolve placeholders in task files, check the rows and write them in shards.",
    "nemo-rl": "Write NeMo RL's config for a dataset, start its training, or read its config as ours.",
    "train": "Train a policy (sft, dpo, grpo) or a reward model (rm).",
    "plan": "Tell what memory and time a training will need, before it starts.",
    "launch": "Start a training on Slurm, Kubernetes or hosts: print the script, or submit it.",
    "checkpoint": "Export, import and inspect models: Hugging Face, DCP, NeMo RL's checkpoints, LoRA adapters.",
    "eval": "Play held-out tasks and report rewards with honest intervals.",
    "view": "Look at runs and rollouts on a local web page.",
    "recipe": "The steps of post-training as one command each: SFT, DPO, reward models, RLVR, RLHF, and chains of them.",
    "serve": "Start a resource server, or a model as an OpenAI endpoint.",
    "tasks": "Write tasks of a resource server.",
    "quickstart": "The whole loop on a small real model, in minutes, on a CPU.",
}
MODULES = {"eval": "evaluate", "nemo-rl": "nemo_rl", "check-reward": "check_reward"}
BUG, INTERRUPTED = 1, 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; help needs only their sentences."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of a user's way."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command."""
        if cmd_name not in VERBS:
            return None
        return import_module(f"gym_bridge.cli.{MODULES.get(cmd_name, cmd_name)}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest verb for an unknown one."""
        if args[0] not in VERBS:
            raise click.UsageError(f"unknown verb {args[0]!r}{nearest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without importing any."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gym-bridge")
def cli() -> None:
    """From NeMo Gym rollouts to trained models. `gym-bridge VERB --help` tells the rest."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line and exit: 0 done, 2 the user's mistake, 1 a server's or our own fault, 130 Ctrl-C, 143 SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        _exit(cli.main(arguments, prog_name="gym-bridge", standalone_mode=False))
    except (KeyboardInterrupt, click.Abort):
        _end("interrupted; what was done stays on disk, and the same command goes on from there", INTERRUPTED, debug)
    except click.ClickException as error:
        _end(error.format_message(), error.exit_code, debug)
    except GymBridgeError as error:
        _end(str(error), error.exit_code, debug)
    except Exception as error:  # the CLI's door: our own fault, told in one line
        _end(f"internal error: {type(error).__name__}: {error} (run again with --debug for the traceback)", BUG, debug)


def _terminated(number: int, frame: FrameType | None) -> None:
    """End as an exception would, so that open files are closed and started servers are stopped."""
    sys.exit(128 + number)


def _end(message: str, exit_code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"gym-bridge: {' '.join(message.split())}", err=True)
    _exit(exit_code)


def _exit(code: int | None) -> None:
    """End this process. One of several that train together ends at once: gloo's threads, which may want the interpreter's lock
    while it is torn down, would abort it."""
    if launched() is None:
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
