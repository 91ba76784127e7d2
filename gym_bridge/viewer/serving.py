"""The page on a port of the loopback, until it is ended."""

import asyncio
import errno
from collections.abc import Callable

from aiohttp import web

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.addresses import LOOPBACK
from gym_bridge.tokens.tokenizer import Tokenizer
from gym_bridge.viewer.application import application
from gym_bridge.viewer.exports import Exports
from gym_bridge.viewer.library import Library
from gym_bridge.viewer.site import Site
from gym_bridge.viewer.token_pages import TokenPages

STOP_TIMEOUT_S = 1.0


async def serve(library: Library, *, port: int, on_ready: Callable[[str], None], tokenizer: Tokenizer | None = None) -> None:
    """Show a library on `port` (0: any free one) until cancelled; `on_ready` gets the address once it listens.

    Raises ConfigError when the port is taken.
    """
    site = Site(library)
    with Exports() as exports:
        app = application(site, TokenPages(site, tokenizer=tokenizer), exports)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
        await runner.setup()
        try:
            listener = web.TCPSite(runner, LOOPBACK, port)
            try:
                await listener.start()
            except OSError as error:
                told = "is taken; name another --port, or 0 for any" if error.errno == errno.EADDRINUSE else error.strerror
                raise ConfigError(f"port {port} {told}") from error
            host, taken = runner.addresses[0][:2]
            on_ready(f"http://{host}:{taken}/")
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
