"""The event loop of a process that plays: its turns stay short with ten thousand rollouts in flight."""

import asyncio
import gc
import selectors
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

EVENTS_A_TURN = 64
"""Sockets that one turn of the loop serves; serving them takes about 10 ms."""
YOUNG, MIDDLE, NEVER = 3_000, 3, 1_000_000_000
"""Thresholds of Python's garbage collector. Its own 700 and 10 cost 6 % of the CPU time at 64 rollouts in flight, these 4 %; a
MIDDLE of 10 stalls 10,000 rollouts for 0.1 s at a time."""
FULL_EVERY_S, FULL_SHARE = 60.0, 1 / 200
"""A full collection comes so often at most, and takes at most this share of the time."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` for many rollouts: few sockets a turn, and few full collections of garbage.

    asyncio serves every socket that is ready before it looks at its timers: with 10,000 rollouts in flight a turn took up to 1.6 s,
    in which thousands of further sockets became ready, and timeouts and the sync of the log waited. Python starts a full
    collection whenever a quarter more objects live: with 10,000 in flight one stalls the loop for up to 0.7 s, and all of them took
    about half of the CPU time, for next to nothing: what is part of no cycle is freed at once, and a rollout leaves no cycle.
    """
    with rationed_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """One of short turns, which collects garbage in full now and then; to be run inside `rationed_collections`."""
    loop = asyncio.SelectorEventLoop(_ShortTurns())
    loop.call_later(FULL_EVERY_S, _collect_fully, loop)
    return loop


class _ShortTurns(selectors.DefaultSelector):
    """Tells of a few ready sockets at a time; the kernel tells of the others again, those that wait longest first."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout)[:EVENTS_A_TURN]


@contextmanager
def rationed_collections() -> Iterator[None]:
    """Inside, Python of itself collects the youngest garbage alone, in all threads."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG, MIDDLE, NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _collect_fully(loop: asyncio.AbstractEventLoop) -> None:
    started = time.monotonic()
    gc.collect()
    loop.call_later(max(FULL_EVERY_S, (time.monotonic() - started) / FULL_SHARE), _collect_fully, loop)
