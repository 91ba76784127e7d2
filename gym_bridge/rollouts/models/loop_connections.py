"""Connections for whoever asks, in whatever event loop: each loop gets its own, which end with it."""

import asyncio
from collections.abc import Mapping

from gym_bridge.rollouts.cookies import Cookies
from gym_bridge.rollouts.http import JSON_HEADERS, HttpClient, Reply


class LoopConnections(HttpClient):
    """A pool of connections for each event loop that posts. A task of the loop closes the pool when it is cancelled, as
    `asyncio.run` cancels all tasks at its end."""

    def __init__(self, *, max_connections: int = 0):
        super().__init__(max_connections=max_connections)
        self._pools: dict[asyncio.AbstractEventLoop, tuple[HttpClient, asyncio.Task[None]]] = {}

    async def post(
        self,
        url: str,
        body: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] = JSON_HEADERS,
        cookies: Cookies | None = None,
    ) -> Reply:
        """As `HttpClient.post`, over the pool of the loop that calls."""
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            pool = HttpClient(max_connections=self._max_connections)
            self._pools[loop] = pool, loop.create_task(self._keep(loop, pool))
        return await self._pools[loop][0].post(url, body, timeout_s=timeout_s, headers=headers, cookies=cookies)

    async def close(self) -> None:
        """Release the connections of the loop that calls."""
        _, keeper = self._pools.get(asyncio.get_running_loop(), (None, None))
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _keep(self, loop: asyncio.AbstractEventLoop, pool: HttpClient) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            del self._pools[loop]
            await pool.close()
