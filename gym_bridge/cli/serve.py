"""`gym-bridge serve`."""

import asyncio
import signal

import click
import orjson

from gym_bridge.cli.options import output_options


@click.command("serve", epilog="Example: gym-bridge serve arithmetic --port 9000")
@click.argument("name")
@click.option("--port", type=int, default=0, show_default=True, help="Port on 127.0.0.1; 0 takes a free one.")
@click.option(
    "--shuffle-rewards", is_flag=True, help="Give each rollout the reward of an earlier one: a control that cannot be learned."
)
@output_options
def command(name: str, port: int, shuffle_rewards: bool, quiet: bool, as_json: bool) -> None:
    """Start the resource server NAME, print its address when it is ready, and serve until Ctrl-C or SIGTERM."""
    from gym_bridge.resource_servers.http import serve
    from gym_bridge.resource_servers.registry import SERVERS

    server = SERVERS.load(name)(shuffle_rewards=shuffle_rewards)

    def say(url: str) -> None:
        click.echo(orjson.dumps({"name": name, "url": url}).decode() if as_json else f"{name}: {url}")

    async def run() -> None:
        task = asyncio.ensure_future(serve(server, port=port, on_ready=say))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return

    asyncio.run(run())
