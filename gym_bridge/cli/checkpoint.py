"""`gym-bridge checkpoint export`, `checkpoint import` and `checkpoint inspect`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gym_bridge.cli.options import output_options
from gym_bridge.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from gym_bridge.api.checkpoints import Exported
    from gym_bridge.api.inspecting import CheckpointReport

NOT_WHOLE = 1
OUTPUT = click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="A new directory; one that exists is refused."
)
SHARD_SIZE = click.option(
    "--max-shard-size", default="5GB", show_default=True, help="Bytes of one weight file at most: 5GB, 500MB, 2GiB."
)


@click.group("checkpoint")
def command() -> None:
    """Bring models in and out, and look at them."""


@command.command("export", epilog="Example: gym-bridge checkpoint export runs/sft --output my-model --dtype bfloat16")
@click.argument("source")
@OUTPUT
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="bfloat16",
    show_default=True,
    help="Of the weights. A checkpoint's are float32, which float32 alone keeps bit for bit.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["hf", "dcp"]),
    default="hf",
    show_default=True,
    help="hf: for transformers and vLLM. dcp: torch.distributed.checkpoint's safetensors storage; holds the model in memory.",
)
@click.option(
    "--adapter",
    type=click.Choice(["merged", "apart"]),
    default="merged",
    show_default=True,
    help="After LoRA: the whole model, or the adapter alone as peft stores it.",
)
@SHARD_SIZE
@click.option("--push-to-hub", metavar="NAME", help="Upload it to this model repository too, with HF_TOKEN from the environment.")
@click.option("--private", is_flag=True, help="Make the repository private, if it is made.")
@output_options
def export_command(source: str, output: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Write the model of SOURCE, a run, a checkpoint, a directory or a model's name, for others to load."""
    from gym_bridge.api.checkpoints import ExportSettings, export_checkpoint

    exported = export_checkpoint(source, output, ExportSettings(**options))
    _tell(exported, quiet=quiet, as_json=as_json)


@command.command("import", epilog="Example: gym-bridge checkpoint import step_100 --model Qwen/Qwen3-0.6B --output base")
@click.argument("source", type=click.Path(path_type=Path))
@OUTPUT
@click.option("--model", help="The model whose config and tokenizer it gets, where SOURCE has none.")
@click.option(
    "--trust-pickle",
    is_flag=True,
    help="Read weights that are pickled. That runs whatever code their author put into them: only for files of people you trust.",
)
@SHARD_SIZE
@output_options
def import_command(source: Path, output: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Make a Hugging Face directory, for policy.model, of SOURCE: one, a DCP directory, or NeMo RL's step_N."""
    from gym_bridge.api.checkpoints import import_checkpoint

    exported = import_checkpoint(source, output, **options)
    _tell(exported, quiet=quiet, as_json=as_json)


@command.command("inspect", epilog="Example: gym-bridge checkpoint inspect runs/sft --json")
@click.argument("path", type=click.Path(path_type=Path))
@output_options
def inspect_command(path: Path, quiet: bool, as_json: bool) -> None:
    """Say what PATH is, what it holds, and whether it is whole; exit code 1 when it is not, or holds NaN."""
    from gym_bridge.api.inspecting import inspect_checkpoint

    report = inspect_checkpoint(path)
    if as_json:
        print_json(asdict(report) | {"whole": not report.problems})
    elif not quiet:
        print_table(_rows(report))
    if report.problems:
        raise click.exceptions.Exit(NOT_WHOLE)


def _tell(exported: "Exported", *, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json(asdict(exported))
    elif not quiet:
        click.echo(f"{exported.output}: {exported.num_bytes / 1e6:.1f} MB, of {exported.source}")
        if exported.url:
            click.echo(exported.url)


def _rows(report: "CheckpointReport") -> list[tuple[str, str]]:
    total = sum(report.num_parameters.values())
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in report.num_parameters.items())
    size = f" of {report.tokenizer_size:,} tokens" if report.tokenizer_size else ""
    template = "with" if report.has_chat_template else "without"
    rows = [
        ("path", str(report.path)),
        ("kind", report.kind),
        ("weights", str(report.weights)),
        ("step", _text(report.step)),
        ("architecture", _text(report.architecture)),
        ("parameters", f"{total:,} ({dtypes}), {report.num_bytes / 1e6:.1f} MB" if total else "-"),
        *report.shape.items(),
        ("tokenizer", f"{report.tokenizer}{size}, {template} a chat template" if report.tokenizer else "-"),
        *((f"adapter {key}", _text(value)) for key, value in (report.adapter or {}).items()),
        *report.settings.items(),
        ("sha256", _text(report.sha256)),
        ("whole", "no" if report.problems else "yes"),
        *(("problem", one) for one in report.problems),
    ]
    return [(name, _text(value)) for name, value in rows]


def _text(value: Any) -> str:
    return "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
