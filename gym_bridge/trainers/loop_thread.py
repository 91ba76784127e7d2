"""An event loop in a thread of its own, for coroutines that a synchronous training loop waits for."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, TypeVar

from gym_bridge.rollouts.event_loop import new_event_loop, rationed_collections

log = logging.getLogger(__name__)

T = TypeVar("T")
CLOSING_S = 30.0


class LoopThread:
    """The loop; `closers` are awaited in it when it ends."""

    def __init__(self, name: str = "collector"):
        self.closers: list[Callable[[], Awaitable[None]]] = []
        self._loop, self._rationing = new_event_loop(), ExitStack()
        self._rationing.enter_context(rationed_collections())
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; Ctrl-C cancels it first."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Begin a coroutine and go on."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the loop, some time from now."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        """Cancel what runs, close what is to be closed and end the thread; closing again does nothing.

        What fails then is logged: it must not take the place of the error that ended the run.
        """
        if self._loop.is_closed():
            return

        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for error in await asyncio.gather(*(close() for close in self.closers), return_exceptions=True):
                if isinstance(error, BaseException):
                    log.warning("closing a connection failed: %s: %s", type(error).__name__, error)

        try:
            self.start(end()).result(timeout=CLOSING_S)
        except TimeoutError:
            log.warning("what plays did not end within %g s", CLOSING_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._rationing.close()
