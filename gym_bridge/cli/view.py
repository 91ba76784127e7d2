"""`gym-bridge view`."""

import asyncio
import signal
from pathlib import Path

import click

from gym_bridge.cli.options import output_options
from gym_bridge.cli.printing import print_json
from gym_bridge.errors import ConfigError

PORT = 8642


@click.command("view", epilog="Example: gym-bridge view runs/grpo out/rollouts.jsonl")
@click.argument("paths", metavar="RUN_OR_FILES...", nargs=-1, required=True)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="Port of the loopback; 0: any free one."
)
@click.option(
    "--model", help="Whose tokenizer tells the text of tokens; without it that of the run's own model, where it lies here."
)
@click.option("--export", type=click.Path(path_type=Path), help="Write one page that opens from disk, and end.")
@output_options
def command(paths: tuple[str, ...], port: int, model: str | None, export: Path | None, quiet: bool, as_json: bool) -> None:
    """Look at runs and rollouts on a local web page: curves, groups, conversations, tokens, failures; Ctrl-C ends it.

    RUN_OR_FILES are run directories, rollouts files, or directories that hold some. The page follows them while they grow, and is
    there for this machine alone. Nothing of it is fetched from elsewhere, and nothing in a rollout can run.
    """
    from gym_bridge.api.viewing import export_page, view

    if export is not None:
        if model is not None:
            raise ConfigError("--model: an exported page holds no tokens; leave one of --model and --export out")
        export_page(paths, export, quiet=quiet)
        if as_json:
            print_json({"page": str(export)})
        elif not quiet:
            click.echo(f"{export}: open it in a browser")
        return

    def say(url: str) -> None:
        if as_json:
            print_json({"url": url})
        else:
            click.echo(f"view: {url}")

    async def run() -> None:
        task = asyncio.ensure_future(view(paths, port=port, model=model, on_ready=say, quiet=quiet))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return

    asyncio.run(run())
