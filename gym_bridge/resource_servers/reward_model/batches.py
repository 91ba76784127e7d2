"""Requests gathered for a moment and answered together, in one thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

GivenT = TypeVar("GivenT")


class Batches(Generic[GivenT]):
    """Calls of `score`, at most `batch_size` at once. A request waits up to `gather_s` for others, or while a batch runs."""

    def __init__(
        self, score: Callable[[Sequence[GivenT]], list[float]], *, thread: ThreadPoolExecutor, batch_size: int, gather_s: float
    ):
        self._score, self._thread, self._batch_size, self._gather_s = score, thread, batch_size, gather_s
        self._waiting: asyncio.Queue[tuple[GivenT, asyncio.Future[float]]] = asyncio.Queue()
        self.sizes: list[int] = []
        """Of the batches so far, the last hundred."""
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Answer no more."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    async def one(self, given: GivenT) -> float:
        """The score of one. Raises what `score` raises."""
        scored: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((given, scored))
        return await scored

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            with suppress(TimeoutError):
                async with asyncio.timeout(self._gather_s):
                    while len(batch) < self._batch_size:
                        batch.append(await self._waiting.get())
            self.sizes = [*self.sizes[-99:], len(batch)]
            try:
                scores = await loop.run_in_executor(self._thread, self._score, [given for given, _ in batch])
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                for _, scored in batch:
                    if not scored.done():
                        scored.set_exception(error)
                continue
            for (_, scored), score in zip(batch, scores, strict=True):
                if not scored.done():
                    scored.set_result(score)
